"""``bench``: ours, torch and the copy, in turns, on the shapes of real models."""

import argparse
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import groupnorm

from .._core import LAYOUTS
from .command import (
    OK,
    WRONG_RESULT,
    BadInput,
    add_activation,
    add_threads,
    finite_number,
    require,
    require_memory,
    require_target,
    whole_number,
)
from .contest import OURS, Arena, Case, Outcome, Setting, play, sets_of
from .files import suffix_of
from .machine import keep_freed_memory
from .report import JSON_KEYS, as_json, plot, progress_of, table

CASES = (
    Case("Stable Diffusion UNet, first", (2, 320, 64, 64), 32),
    Case("Stable Diffusion UNet, middle", (2, 1280, 8, 8), 32),
    Case("Stable Diffusion VAE", (1, 128, 512, 512), 32),
    Case("ResNet-50-GN, first", (32, 64, 56, 56), 32),
    Case("ResNet-50-GN, last", (32, 2048, 7, 7), 32),
    Case("SegResNet, 3-D", (1, 32, 96, 96, 96), 8),
    Case("small CNN", (16, 32, 64, 64), 8),
    Case("diffusion policy, 1-D", (1, 256, 16), 8),
    Case("Conv-TasNet, 1-D", (1, 512, 3000), 1),
    Case("tiny", (1, 32, 8, 8), 8),
    Case("MLP", (8, 512), 32),
)

_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_SECONDS, _QUICK_SECONDS = 2.0, 0.2


def _shape(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)+", text):
        return tuple(map(int, text.split("x")))
    raise argparse.ArgumentTypeError(
        f"must be sizes as in 2x320x64x64, N and C first; got {text!r}"
    )


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time group normalization on shapes of real models, beside torch or NumPy",
        description="Check group normalization on shapes of real models against float64, then time "
        "it on random data, in turns with torch (or NumPy) and with a copy of the same bytes. Prints "
        "the median and the 99th percentile of single calls. Buffers rotate through 4 times the "
        "last-level cache, at least 256 MB, at most 4096 buffers and half of the memory that the "
        "process may use. Each call allocates its result, from memory that earlier calls freed. "
        "`groupnorm bench`, the C++ command, times the engine alone.",
    )
    add = parser.add_argument
    add("--shape", type=_shape, help="time this shape only: sizes as in 2x320x64x64, N and C first")
    add(
        *("--groups", "-g"),
        type=whole_number(),
        metavar="G",
        help="number of groups of --shape; default: what suggest_groups returns",
    )
    add("--dtype", choices=_BYTES, default="f32", help="dtype of x and y; default: f32")
    add(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        metavar="LAYOUT",
        help="channels_first or channels_last (a memory format in torch); default: channels_first",
    )
    add_activation(parser)
    add(
        "--backward", action="store_true", help="time forward and backward, to dx, dgamma and dbeta"
    )
    add(
        "--hot",
        action="store_true",
        help="use one set of buffers, which stays in the caches, instead of rotating",
    )
    add(
        "--compile", action="store_true", help="time torch.compile as well; compiling takes a while"
    )
    add(
        "--api",
        choices=("torch", "numpy"),
        help="library to compare with; default: torch if it is installed, else numpy",
    )
    add_threads(parser, "the default of torch, or of this package with --api numpy")
    add(
        "--seconds",
        type=finite_number(0, 3600),
        metavar="S",
        help=f"seconds per shape, after the check and the warm-up; default: {_SECONDS:g}",
    )
    add("--quick", action="store_true", help=f"same as --seconds {_QUICK_SECONDS:g}")
    add("--json", action="store_true", help=f"print one object per line: {' '.join(JSON_KEYS)}")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot the times to this .png file (needs matplotlib)",
    )
    parser.set_defaults(command=_bench)


def _cases(options: argparse.Namespace, api: str) -> list[Case]:
    if options.shape is None:
        if options.groups is not None:
            raise BadInput("--groups: needs --shape")
        cases = list(CASES)
    else:
        c = options.shape[1]
        groups = groupnorm.suggest_groups(c).groups if options.groups is None else options.groups
        if groups < 1 or c % groups:
            raise BadInput(
                f"--groups: must be at least 1 and divide the {c} channels; got {groups}"
            )
        cases = [Case("", options.shape, groups)]
    if options.layout == "channels_last":
        least = 4 if api == "torch" else 3
        cases = [case for case in cases if len(case.shape) >= least]
        if not cases:
            raise BadInput(
                f"--layout channels_last: needs a --shape of {least} sizes or more with {api}"
            )
    return cases


def _threads(options: argparse.Namespace, api: str) -> int:
    """Sets the number of threads if one was asked for, and returns what it is."""
    if api == "torch":
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        return torch.get_num_threads()
    if options.threads:
        groupnorm.set_num_threads(options.threads)
    return groupnorm.get_num_threads()


def _require_memory(case: Case, setting: Setting) -> None:
    """Refuses a shape that is too large for this process."""
    tensor = math.prod(case.shape) * _BYTES[setting.dtype]
    in_set = 3 if setting.backward else 2
    # Each contestant's result is there to be checked, and one group in float64 with its terms.
    needed = (sets_of(in_set * tensor, setting.hot) + 2) * in_set * tensor
    needed += 8 * 8 * math.prod(case.shape) // case.shape[0] // case.groups
    require_memory(needed, f"--shape {case.text}")


def _setting(options: argparse.Namespace) -> Setting:
    api = options.api or ("torch" if importlib.util.find_spec("torch") else "numpy")
    if api == "torch":
        require("torch", "torch", "--api torch")
    elif options.compile:
        raise BadInput("--compile: means nothing to --api numpy")
    return Setting(
        api=api,
        dtype=options.dtype,
        layout=options.layout,
        activation=options.activation,
        backward=options.backward,
        hot=options.hot,
        compile=options.compile,
        threads=_threads(options, api),
    )


def _arenas(setting: Setting) -> Callable[[Case, Setting], Arena]:
    if setting.api == "torch":
        from . import contest_torch

        return contest_torch.arena
    from . import contest_numpy

    contest_numpy.require_measurable(setting)
    return contest_numpy.arena


def _bench(options: argparse.Namespace) -> int:
    require_target()
    if options.plot is not None:
        if suffix_of(options.plot) != ".png":
            raise BadInput(f"--plot: '{options.plot}': the name must end in .png")
        require("matplotlib.figure", "bench", "--plot")
    if options.quick and options.seconds is not None:
        raise BadInput("--quick: means nothing beside --seconds")
    setting = _setting(options)
    arena_of = _arenas(setting)
    cases = _cases(options, setting.api)
    for case in cases:
        _require_memory(case, setting)
    seconds = options.seconds
    if seconds is None:
        seconds = _QUICK_SECONDS if options.quick else _SECONDS
    outcomes: list[Outcome] = []
    keep_freed_memory()
    try:
        with progress_of(len(cases)) as progress:
            for case in progress.over(cases):
                arena = arena_of(case, setting)
                for note in arena.absent:
                    progress.note(f"{case.text}: {note}")
                outcome = play(case, arena, seconds)
                del arena  # before the next one asks for memory
                outcomes.append(outcome)
                if outcome.wrong:
                    progress.note(
                        f"groupnorm: the result is wrong, so it was not timed: {case.text}, "
                        f"{case.groups} groups: error {outcome.errors[OURS]:.3f} of "
                        f"{outcome.bound:.4g}"
                    )
                elif options.json:
                    print(json.dumps(as_json(outcome, setting)), flush=True)
    finally:  # what is known when it is interrupted, too
        if outcomes and not options.json:
            print(table(outcomes, setting))
    if options.plot is not None:
        plot([outcome for outcome in outcomes if outcome.times], setting, options.plot)
        if not options.json:
            print(f"wrote    {options.plot}")
    return WRONG_RESULT if any(outcome.wrong for outcome in outcomes) else OK
