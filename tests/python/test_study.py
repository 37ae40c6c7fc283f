"""``python -m groupnorm study``: what it writes, going on after an end, its numbers, refusals."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import test_cli

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import groupnorm.torch
from groupnorm._cli import study as command
from groupnorm._study import data, network, paper, plan, summary, timing, training

cli, without = test_cli.cli, test_cli.without

TINY = ("study", "--quick", "--data", "digits", "--images", "32", "--epochs", "2", "-o", "out")
STUDY = plan.Study("digits", 32, 2, 1, (32, 8, 2))
FILES = ["convergence.png", "error_by_batch.png", "groups.png"]
FILES += ["report.md", "results.jsonl", "study.json", "times.json"]


@pytest.fixture(scope="module")
def images():
    return data.load("digits", 64)


@pytest.fixture(autouse=True)
def one_thread():
    """As the command: threads that wait for each other take long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quick_times(monkeypatch):
    monkeypatch.setattr(command, "_QUICK_SECONDS", 0)
    monkeypatch.setattr(timing, "CASES", (timing.Case(2, 8),))


def run_of(norm="GN", batch=8, seed=0, epochs=2, **options):
    groups = plan.GROUPS if norm == "GN" else None
    run = training.Run("digits", 64, "residual", norm, groups, None, 0.1, batch, epochs, seed)
    return dataclasses.replace(run, **options)


# What a study writes


def test_a_study_is_complete_and_goes_on_where_it_was_stopped(cli, monkeypatch):
    torch.set_num_threads(2)
    cli.ok(*TINY, stderr=None)
    assert torch.get_num_threads() == 2
    _assert_complete(cli)
    whole = (cli.directory / "out" / "results.jsonl").read_bytes()
    _assert_goes_on(cli, whole, monkeypatch)


def _assert_complete(cli):
    out = cli.directory / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    for name in FILES[:3]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == [dataclasses.asdict(run) for run in STUDY.runs()]
    errors = {tuple(row["run"].values()): row["outcome"]["errors"] for row in rows}
    found = json.loads((out / "study.json").read_text())
    report = (out / "report.md").read_text()
    for name, norms in found["errors"].items():
        for norm, curves in norms.items():
            for batch, curve in curves.items():
                run = STUDY.of_norm(name, norm, int(batch))[0]
                raw = errors[tuple(dataclasses.asdict(run).values())]
                assert [each["mean"] for each in curve] == raw
                assert f"{raw[-1]:.1f}" in report
    assert set(found["errors"]["residual"]["GN"]) == {"32", "8", "2", "1"}
    assert list(map(int, found["groups"])) == list(map(int, found["channels"])) == [*paper.SIZES]
    assert "python -m groupnorm study --quick --data digits --images 32 --epochs 2`" in report
    assert str(cli.directory) not in report + (out / "study.json").read_text()
    for words in ("groupnorm 0", "torch", "Seeds 0", "24.1", "34.7"):
        assert words in report
    assert all(name in report for name in FILES[:3])


def _assert_goes_on(cli, whole, monkeypatch):
    train, runs = training.train, []

    def stopped(run, images):
        if len(runs) == 5:
            raise KeyboardInterrupt
        runs.append(run)
        return train(run, images)

    again = (*TINY[:-1], "again")
    monkeypatch.setattr(training, "train", stopped)
    assert cli(*again)[0] == 130
    results = cli.directory / "again" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 5
    assert not (cli.directory / "again" / "report.md").exists()

    monkeypatch.setattr(
        training, "train", lambda run, images: runs.append(run) or train(run, images)
    )
    cli.ok(*again, stderr=None)
    assert results.read_bytes() == whole
    assert len(runs) == len(set(runs)) == len(STUDY.runs())
    cli.ok(*again, stderr=None)  # nothing is left to do
    assert len(runs) == len(STUDY.runs())


def test_a_killed_study_leaves_whole_files(cli):
    words = [word if word != "32" else "1024" for word in TINY]
    results = cli.directory / "out" / "results.jsonl"
    lines = 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "groupnorm", *words], stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 120
        while _lines(results) == lines and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
        assert _lines(results) > lines  # the second went on
        lines = _lines(results)
        for line in results.read_text().splitlines():
            assert len(json.loads(line)["outcome"]["errors"]) == 2
        json.loads((results.parent / "times.json").read_text())
        # Only what cannot be caught leaves a temporary file, and under another name.
        whole = [path.name for path in results.parent.iterdir() if path.name[0] != "."]
        assert sorted(whole) == ["results.jsonl", "times.json"]
    assert len(list(results.parent.iterdir())) <= 3


def _lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_other_studies_and_versions_do_not_count(cli):
    results = command._Results(cli.directory / "results.jsonl", {"torch": "1"})
    run, outcome = run_of(), training.Outcome([5.0], [None])
    results.add(run, outcome)
    same = command._Results(cli.directory / "results.jsonl", {"torch": "1"})
    assert same.get(run) == outcome
    assert same.get(dataclasses.replace(run, epochs=3)) is None
    newer = command._Results(cli.directory / "results.jsonl", {"torch": "2"})
    assert newer.get(run) is None
    newer.add(run, training.Outcome([6.0], [1.0]))
    assert command._Results(cli.directory / "results.jsonl", {"torch": "1"}).get(run) == outcome


# A run


def test_the_seed_decides_a_run(images):
    first = training.train(run_of(), images)
    torch.manual_seed(99)
    assert training.train(run_of(), images) == first
    assert training.train(run_of(seed=1), images).losses != first.losses


@pytest.mark.parametrize("batch", [32, 8, 1])
def test_every_batch_sees_the_same_examples(images, batch, monkeypatch):
    seen, rates = [], set()
    step = training.step

    def watched(model, optimizer, x, y):
        seen.extend(map(tuple, x.flatten(1).tolist()))
        rates.add(optimizer.param_groups[0]["lr"])
        return step(model, optimizer, x, y)

    monkeypatch.setattr(training, "step", watched)
    training.train(run_of(batch=batch), images)
    once = sorted(map(tuple, images.train_x.flatten(1).tolist()))
    assert sorted(seen[:64]) == sorted(seen[64:]) == once
    assert seen[:64] != seen[64:]  # another order
    assert max(rates) == pytest.approx(0.1 * batch / 32)


def test_it_learns():
    images = data.load("digits", 1184)
    assert abs(images.train_x.mean()) < 1e-5 and abs(images.train_x.std() - 1) < 1e-4
    assert len(images.train_y) + len(images.test_y) == 1797
    outcome = training.train(run_of(batch=16, images=1184), images)
    assert outcome.errors[-1] < 30  # by guessing: 90


def test_the_norms():
    def norms_of(*options):
        model = network.Residual(28, network.make_norm(*options))
        return [m for m in model.modules() if isinstance(m, torch.nn.modules.GroupNorm)]

    assert all(type(norm) is groupnorm.torch.GroupNorm for norm in norms_of("GN", 8))
    widths = [norm.num_channels for norm in norms_of("GN", 8)]
    assert widths == [16, 16, 16, 32, 32, 64, 64, 64, 64]
    for options, groups in (
        (("GN", 8), dict.fromkeys((16, 32, 64), 8)),
        (("GN", 32), {16: 16, 32: 32, 64: 32}),
        (("GN", None, 8), {16: 2, 32: 4, 64: 8}),
        (("GN", None, 32), {16: 1, 32: 1, 64: 2}),
        (("LN",), dict.fromkeys((16, 32, 64), 1)),
        (("IN",), {16: 16, 32: 32, 64: 64}),
    ):
        assert {n.num_channels: n.num_groups for n in norms_of(*options)} == groups, options
    assert norms_of("BN") == []


@pytest.mark.parametrize(
    "name, side, positions",
    [
        ("residual", 28, [196, 49, 49, 16, 16, 4, 4, 1, 1]),
        ("residual", 8, [64, 16, 16, 4, 4, 1, 1, 1, 1]),
        ("plain", 28, [784, 196]),
    ],
)
def test_positions(name, side, positions):
    assert network.positions_of(name, side) == positions


# What is concluded


def claims_of(error):
    """Of a study in which a run ends with the error(run)."""
    study = plan.Study("mnist", 1984, 2, 2, (32, 8, 2))

    def get(run):
        last = error(run) + 0.1 * run.seed
        return training.Outcome([90.0, last], [2.0, 1.0])

    found = summary.summarize(study, get, [])["claims"]
    return [each["shows"] for each in found]


def test_claims():
    shows_all = claims_of(
        lambda run: (
            30.0
            if run.norm == "BN" and run.batch == 2
            else {"BN": 4.0, "GN": 6.0, "LN": 9.0, "IN": 9.0}[run.norm]
        )
    )
    assert shows_all == [True] * 8
    # Where all are alike, what remains is that GN does not depend on the batch.
    assert claims_of(lambda run: 5.0) == [False, True, False, False, False, False, True, False]
    reversed_ = claims_of(lambda run: 30.0 if run.norm == "GN" and run.batch < 32 else 5.0)
    assert reversed_[1:3] == [False, False] and not reversed_[6]


def test_differs():
    def spread(*values):
        return summary.Spread.of(values)

    assert summary.differs(spread(5, 6), spread(9, 10), 3000)
    assert not summary.differs(spread(5, 9.5), spread(9, 10), 3000)  # seeds overlap
    assert not summary.differs(spread(5.0, 5.1), spread(5.6, 5.7), 3000)  # 0.6 of +-1.2
    assert summary.differs(spread(5.0, 5.1), spread(5.6, 5.7), 30000)


# Refusals


@pytest.mark.parametrize(
    "options, words",
    [
        (("--images", "33"), "--images: must be a multiple of 32"),
        (("--images", "0"), "got 0"),
        (("--images", "1792", "--data", "mnist", "--images", "5024"), "below the 5000"),
        (("--images", "some"), "--images"),
        (("--epochs", "0"), "--epochs: must be from 1 to 1000; got '0'"),
        (("--seeds", "-1"), "--seeds"),
        (("--data", "cifar"), "--data"),
        (("--output", "there.txt"), "there.txt"),
        (("--batch", "2"), "--batch"),
    ],
)
def test_bad_options(cli, options, words):
    (cli.directory / "there.txt").write_text("mine")
    assert words in cli.refused("study", "--quick", "--data", "digits", *options)
    assert (cli.directory / "there.txt").read_text() == "mine"


@pytest.mark.parametrize("package", ["torch", "matplotlib", "sklearn"])
def test_missing_packages(cli, without, package):
    without(package)
    name = {"sklearn": "scikit-learn"}.get(package, package)
    line = cli.refused(*TINY)
    assert f"needs {name}, which is not installed: pip install groupnorm[study]" in line


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"run": {}, "versions": {}, "outcome": {"a": 1}}', "1"]
)
def test_foreign_results(cli, line):
    out = cli.directory / "out"
    out.mkdir()
    (out / "results.jsonl").write_text(line + "\n")
    assert "line 1 is not the result of a run" in cli.refused(*TINY)
    assert (out / "results.jsonl").read_text() == line + "\n"
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]


# The example in 3-D


def test_denoising(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    example = [sys.executable, root / "examples" / "denoise_mr.py", "--data", root / "data"]
    picture = tmp_path / "denoised.png"
    subprocess.run([*example, "--batch", "1", "--steps", "2", "--output", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = subprocess.run(
        [*example, "--output", tmp_path / "no" / "a.png"], check=False, capture_output=True
    )
    assert refused.returncode == 2 and b"--output" in refused.stderr
