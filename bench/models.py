"""Whole models with and without ``groupnorm.torch.replace_group_norm_``: latency and error.

The first speed-up is that of norms and their activations, the second of all that is fused.

    python bench/models.py                           # every model, on one thread and on all
    python bench/models.py --model vae --model segresnet --threads 1 2 --json models.json
    python bench/models.py --quick                   # small inputs, few rounds: does it run

The models are built from code, with random weights: latency does not depend on them. Those of
diffusers, monai and timm need these packages; two are in this file. A model and its replaced copy
share their weights and run in turns, round by round, so that both meet the same machine; the
speed-up is the median of the rounds' ratios, with their quartiles. Errors are the largest absolute
difference from the same model in float64, over the largest absolute output.
"""

import argparse
import copy
import gc
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groupnorm.torch.replace import Report, replace_group_norm_

# A ratio within so much of 1 is no difference, whatever its quartiles say.
NO_DIFFERENCE = 0.02


# --- The models of this file: batch 1, where latency is everything.


class ConvBlock(nn.Sequential):
    """Convolution, normalization, activation of a Diffusion Policy."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5) -> None:
        super().__init__(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(8, out_channels),
            nn.Mish(),
        )


class PolicyBlock(nn.Module):
    """Two convolutions, scaled and shifted by the condition between them."""

    def __init__(self, in_channels: int, out_channels: int, condition: int) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels)
        self.second = ConvBlock(out_channels, out_channels)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * out_channels))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None].chunk(2, dim=1)
        y: Tensor = self.second(scale * self.first(x) + shift) + self.shortcut(x)
        return y


class Policy(nn.Module):
    """The 1-d UNet that plans a robot's next actions (Chi et al., arXiv:2303.04137)."""

    def __init__(self, actions: int = 7, observation: int = 64) -> None:
        super().__init__()
        widths = (256, 512, 1024)
        self.embedding = 256
        self.step = nn.Sequential(nn.Linear(256, 1024), nn.Mish(), nn.Linear(1024, 256))
        condition = self.embedding + observation
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(itertools.pairwise((actions, *widths))):
            last = i == len(widths) - 1
            half = nn.Identity() if last else nn.Conv1d(b, b, 3, stride=2, padding=1)
            blocks = (PolicyBlock(a, b, condition), PolicyBlock(b, b, condition))
            self.down.append(nn.ModuleList([*blocks, half]))
        top = widths[-1]
        self.middle = nn.ModuleList([PolicyBlock(top, top, condition) for _ in range(2)])
        self.up = nn.ModuleList()
        for b, a in itertools.pairwise(reversed(widths)):
            blocks = (PolicyBlock(2 * b, a, condition), PolicyBlock(a, a, condition))
            self.up.append(nn.ModuleList([*blocks, nn.ConvTranspose1d(a, a, 4, 2, 1)]))
        self.last = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], actions, 1))

    def forward(self, x: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        half = self.embedding // 2
        rates = torch.exp(torch.arange(half, dtype=x.dtype) * (-math.log(10000) / (half - 1)))
        angles = step.to(x.dtype)[:, None] * rates
        embedded = self.step(torch.cat([angles.sin(), angles.cos()], dim=1))
        condition = torch.cat([embedded, observation], dim=1)
        kept = []
        down: Any = self.down
        for first, second, half_size in down:
            x = second(first(x, condition), condition)
            kept.append(x)
            x = half_size(x)
        for block in self.middle:
            x = block(x, condition)
        up: Any = self.up
        for first, second, double_size in up:
            x = torch.cat([x, kept.pop()], dim=1)
            x = double_size(second(first(x, condition), condition))
        y: Tensor = self.last(x)
        return y


class TasBlock(nn.Module):
    """One dilated block of Conv-TasNet: what it adds, and what it skips to the end."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(channels, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden, eps=1e-8)),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden),
            *(nn.PReLU(), nn.GroupNorm(1, hidden, eps=1e-8)),
        )
        self.residual = nn.Conv1d(hidden, channels, 1)
        self.skip = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return x + self.residual(y), self.skip(y)


class TasNet(nn.Module):
    """Separates two speakers (Conv-TasNet: Luo & Mesgarani, arXiv:1809.07454)."""

    def __init__(self, filters: int = 512, channels: int = 128, speakers: int = 2) -> None:
        super().__init__()
        self.speakers = speakers
        self.encoder = nn.Conv1d(1, filters, 16, stride=8, bias=False)
        self.norm = nn.GroupNorm(1, filters, eps=1e-8)
        self.narrow = nn.Conv1d(filters, channels, 1)
        self.blocks = nn.ModuleList(
            TasBlock(channels, filters, 2**i) for _ in range(3) for i in range(8)
        )
        self.mask = nn.Sequential(
            nn.PReLU(), nn.Conv1d(channels, speakers * filters, 1), nn.Sigmoid()
        )
        self.decoder = nn.ConvTranspose1d(filters, 1, 16, stride=8, bias=False)

    def forward(self, sound: Tensor) -> Tensor:
        code = self.encoder(sound).relu()
        x = self.narrow(self.norm(code))
        total = torch.zeros_like(x)
        for block in self.blocks:
            x, skipped = block(x)
            total = total + skipped
        masks = self.mask(total).chunk(self.speakers, dim=1)
        return torch.cat([self.decoder(mask * code) for mask in masks], dim=1)


# --- The list of models.


class Missing(Exception):
    """A package that a model needs is not to be had."""


@dataclass
class Case:
    """A model to measure."""

    model: nn.Module
    inputs: tuple[Any, ...]
    run: Callable[..., Any] = field(default=lambda model, *inputs: model(*inputs))


def _first(model: nn.Module, *inputs: Any) -> Tensor:
    y: Tensor = model(*inputs, return_dict=False)[0]
    return y


def _diffusers_unet(widths: tuple[int, ...], size: int, batch: int) -> Case:
    diffusers = _import("diffusers", "diffusers.models.unets.unet_2d")
    plain = len(widths) - 1
    model = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
    )
    return Case(model, (torch.randn(batch, 4, size, size), 10), _first)


def unet(quick: bool) -> Case:
    """diffusers UNet2DModel, widths 64 to 256, [2, 4, 64, 64]"""
    return _diffusers_unet((64, 128, 256, 256), 32 if quick else 64, 2)


def unet_sd(quick: bool) -> Case:
    """diffusers UNet2DModel, the widths of Stable Diffusion (320 to 1280), [1, 4, 32, 32]"""
    return _diffusers_unet((320, 640, 1280, 1280), 16 if quick else 32, 1)


def vae(quick: bool) -> Case:
    """diffusers AutoencoderKL of Stable Diffusion, decoder, to [1, 3, 256, 256]"""
    diffusers = _import("diffusers", "diffusers.models.autoencoders.autoencoder_kl")
    blocks = 4
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    del model.encoder
    size = 8 if quick else 32
    return Case(model.decoder, (torch.randn(1, 4, size, size),))


def segresnet(quick: bool) -> Case:
    """MONAI SegResNet, 16 filters, a volume [1, 1, 64, 64, 64]"""
    nets = _import("monai", "monai.networks.nets.segresnet")
    size = 32 if quick else 64
    return Case(nets.SegResNet(init_filters=16), (torch.randn(1, 1, size, size, size),))


def timm_case(name: str, quick: bool) -> Case:
    """A model of timm on an image."""
    size = 64 if quick else 224
    return Case(_import("timm").create_model(name), (torch.randn(1, 3, size, size),))


def resnet50_gn(quick: bool) -> Case:
    """timm resnet50_gn, an image [1, 3, 224, 224]"""
    return timm_case("resnet50_gn", quick)


def efficientnet_b0_gn(quick: bool) -> Case:
    """timm efficientnet_b0_gn, an image [1, 3, 224, 224]"""
    return timm_case("efficientnet_b0_gn", quick)


def resnetv2_50d_gn(quick: bool) -> Case:
    """timm resnetv2_50d_gn (norms that hold their ReLU), an image [1, 3, 224, 224]"""
    return timm_case("resnetv2_50d_gn", quick)


def policy(quick: bool) -> Case:
    """Diffusion Policy's 1-d UNet with Mish, widths 256 to 1024, 16 actions [1, 7, 16]"""
    return Case(Policy(), (torch.randn(1, 7, 16), torch.tensor([10]), torch.randn(1, 64)))


def tasnet(quick: bool) -> Case:
    """Conv-TasNet with one group a norm, PReLU before it, speech [1, 1, 4000]"""
    return Case(TasNet(), (torch.randn(1, 1, 1000 if quick else 4000),))


MODELS: dict[str, Callable[[bool], Case]] = {
    f.__name__: f
    for f in (
        *(unet, unet_sd, vae, segresnet),
        *(efficientnet_b0_gn, resnet50_gn, resnetv2_50d_gn, policy, tasnet),
    )
}


def _import(package: str, module: str | None = None) -> Any:
    if package in ("diffusers", "timm"):
        _mend_torchvision()
    try:
        return importlib.import_module(module or package)
    except ModuleNotFoundError as error:
        name = (error.name or package).partition(".")[0]
        raise Missing(f"needs {name}, which is not installed: pip install {name}") from error
    except Exception as error:
        raise Missing(f"needs {package}, which can't be imported: {error}") from error


def _mend_torchvision() -> None:
    """Lets a torchvision be imported whose operators were compiled for another torch.

    timm imports it, and calls none of them here. They get a schema and no kernel.
    """
    try:
        importlib.import_module("torchvision")
        return
    except ImportError:
        return
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    for name in ("nms", "qnms"):
        schema = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)


# --- Measuring.


@dataclass
class Result:
    """One model on one number of threads. Times in milliseconds."""

    model: str
    threads: int
    norms: int
    fused: int
    neighbours: int
    norm_share: float
    rounds: int
    torch_median: float
    torch_p99: float
    alone_median: float  # without neighbours
    ours_median: float
    ours_p99: float
    alone_speedup: float
    speedup: float
    speedup_quartiles: tuple[float, float]
    torch_error: float
    ours_error: float

    def verdict(self) -> str:
        low, high = self.speedup_quartiles
        if min(low, self.speedup - NO_DIFFERENCE) > 1:
            return "faster"
        if max(high, self.speedup + NO_DIFFERENCE) < 1:
            return "slower"
        return "no difference"


def replaced_copy(model: nn.Module, fuse_neighbours: bool = True) -> tuple[nn.Module, Report]:
    """A copy that shares its tensors with the model, its norms replaced."""
    shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    ours = copy.deepcopy(model, shared)
    return ours, replace_group_norm_(ours, fuse_neighbours=fuse_neighbours)


def double_output(case: Case) -> Tensor:
    """The output of the model in float64."""
    model = copy.deepcopy(case.model).double()
    inputs = (t.double() if _is_float(t) else t for t in case.inputs)
    y: Tensor = case.run(model, *inputs)
    return y


def _is_float(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def relative_error(y: Tensor, exact: Tensor) -> float:
    return ((y.double() - exact).abs().max() / exact.abs().max()).item()


def seconds(case: Case, model: nn.Module) -> float:
    start = time.perf_counter()
    case.run(model, *case.inputs)
    return time.perf_counter() - start


def norm_share(case: Case, report: Report) -> float:
    """The part of the model's time that torch spends in what was replaced and fused."""
    names = {r.name for r in report.replaced}
    names |= {a for r in report.replaced for a in r.activation_names}
    modules = {case.model.get_submodule(name) for name in names}
    total, depth, start = 0.0, 0, 0.0

    def before(*_: Any) -> None:
        nonlocal depth, start
        depth += 1
        if depth == 1:
            start = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal depth, total
        depth -= 1
        if depth == 0:
            total += time.perf_counter() - start

    hooks = [m.register_forward_pre_hook(before) for m in modules]
    hooks += [m.register_forward_hook(after) for m in modules]
    whole = sum(seconds(case, case.model) for _ in range(2))
    for hook in hooks:
        hook.remove()
    return total / whole


@contextmanager
def undisturbed() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        gc.enable()


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def measure(
    name: str,
    case: Case,
    threads: list[int],
    budget: float,
    least: int,
    progress: Callable[[str, float], None],
) -> Iterator[Result]:
    """Each number of threads: rounds of both, for budget seconds and at least so many."""
    case.model.eval()
    ours, report = replaced_copy(case.model)
    alone, _ = replaced_copy(case.model, fuse_neighbours=False)
    with undisturbed():
        progress(f"{name}: in float64", 0)
        exact = double_output(case)
        for count in threads:
            torch.set_num_threads(count)
            outputs = [case.run(model, *case.inputs) for model in (case.model, ours)]
            errors = [relative_error(y, exact) for y in outputs]
            share = norm_share(case, report)
            times: tuple[list[float], ...] = ([], [], [])
            turn = [(case.model, times[0]), (alone, times[1]), (ours, times[2])]
            begin = time.perf_counter()
            while len(times[0]) < least or (time.perf_counter() - begin < budget):
                for model, record in turn:
                    record.append(1e3 * seconds(case, model))
                turn.reverse()
                done = min((time.perf_counter() - begin) / budget, len(times[0]) / least)
                progress(f"{name}: {count} threads", min(done, 1))
            of_alone, ratios = (
                [a / b for a, b in zip(times[0], mine, strict=True)] for mine in times[1:]
            )
            yield Result(
                model=name,
                threads=count,
                norms=len(report.replaced),
                fused=sum(r.activation != "none" for r in report.replaced),
                neighbours=sum(bool(r.neighbours) for r in report.replaced),
                norm_share=share,
                rounds=len(ratios),
                torch_median=statistics.median(times[0]),
                torch_p99=percentile(times[0], 99),
                alone_median=statistics.median(times[1]),
                ours_median=statistics.median(times[2]),
                ours_p99=percentile(times[2], 99),
                alone_speedup=statistics.median(of_alone),
                speedup=statistics.median(ratios),
                speedup_quartiles=(percentile(ratios, 25), percentile(ratios, 75)),
                torch_error=errors[0],
                ours_error=errors[1],
            )


# --- What is shown.

COLUMNS = (
    *("model", "threads", "norms (activations, neighbours)", "share", "rounds"),
    *("torch ms", "p99", "norms alone", "ours ms", "p99"),
    *("speed-up", "of all", "quartiles", "error torch", "ours", ""),
)


def row(r: Result) -> tuple[str, ...]:
    low, high = r.speedup_quartiles
    return (
        *(r.model, str(r.threads), f"{r.norms} ({r.fused}, {r.neighbours})"),
        *(f"{r.norm_share:.0%}", str(r.rounds), f"{r.torch_median:.2f}", f"{r.torch_p99:.2f}"),
        *(f"{r.alone_median:.2f}", f"{r.ours_median:.2f}", f"{r.ours_p99:.2f}"),
        *(f"{r.alone_speedup:.2f}x", f"{r.speedup:.2f}x"),
        *(f"{low:.2f}-{high:.2f}", f"{r.torch_error:.1e}", f"{r.ours_error:.1e}", r.verdict()),
    )


def table(results: list[Result]) -> str:
    rows = [COLUMNS, *map(row, results)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(COLUMNS))]
    lines = []
    for r in rows:
        cells = [r[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(r[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, r[-1]]).rstrip())
    return "\n".join(lines)


def conclusion(results: list[Result]) -> str:
    """Where it does not help, and what the most would be."""
    lines = []
    for r in results:
        if r.verdict() != "faster":
            most = 1 / (1 - min(r.norm_share, 0.99))
            lines.append(
                f"{r.model}, threads {r.threads}: {r.verdict()}. Norms and their activations take "
                f"{r.norm_share:.0%} of its time with torch: without any it would be {most:.2f}x."
            )
    return "\n".join(lines) or "It helps everywhere above."


def machine() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "groupnorm", "diffusers", "monai", "timm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """On a terminal, by rich or tqdm where one is installed; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    rich = _installed("rich.progress")
    tqdm = _installed("tqdm")
    if rich is not None:
        console = importlib.import_module("rich.console").Console(stderr=True)
        with rich.Progress(console=console, transient=True) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda text, done: progress.update(task, description=text, completed=done)
    elif tqdm is not None:
        form = "{desc} {percentage:3.0f}% |{bar}|"
        with tqdm.tqdm(total=1.0, bar_format=form, leave=False) as bar:

            def show(text: str, done: float) -> None:
                bar.set_description_str(text, refresh=False)
                bar.n = done
                bar.refresh()

            yield show
    else:
        yield lambda *_: None


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None


def arguments(argv: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:16}{f.__doc__}" for name, f in MODELS.items())
    parser = argparse.ArgumentParser(
        description="Whole models with and without replace_group_norm_.",
        epilog=f"models:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = torch.get_num_threads()
    add = parser.add_argument
    add("--model", action="append", choices=MODELS, metavar="NAME", help="one more; default: all")
    add("--threads", nargs="+", type=int, default=sorted({1, cores}), metavar="N")
    add("--seconds", type=float, default=20, help="for each model and number of threads")
    add("--channels-last", action="store_true", help="models and inputs in channels_last(_3d)")
    add("--batch", type=int, metavar="N", help="examples of each input; default: as listed")
    add("--quick", action="store_true", help="small inputs and few rounds: no timing to quote")
    add("--json", metavar="FILE", help="the same numbers, and the machine")
    options = parser.parse_args(argv)
    if min(options.threads) < 1:
        parser.error(f"--threads: must be at least 1; got {min(options.threads)}")
    return options


def to_channels_last(case: Case) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for p in case.model.parameters():
        if p.dim() in formats:
            p.data = p.data.contiguous(memory_format=formats[p.dim()])
    case.inputs = tuple(
        t.contiguous(memory_format=formats[t.dim()])
        if isinstance(t, Tensor) and t.dim() in formats
        else t
        for t in case.inputs
    )


def to_batch(case: Case, size: int) -> None:
    case.inputs = tuple(
        t[:1].repeat(size, *(1,) * (t.dim() - 1)) if isinstance(t, Tensor) else t
        for t in case.inputs
    )


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    budget, least = (0.5, 3) if options.quick else (options.seconds, 7)
    results: list[Result] = []
    missing: dict[str, str] = {}
    with progress_bar() as progress:
        for name in options.model or MODELS:
            torch.manual_seed(0)
            try:
                case = MODELS[name](options.quick)
            except Missing as error:
                missing[name] = str(error)
                continue
            if options.batch:
                to_batch(case, options.batch)
            if options.channels_last:
                to_channels_last(case)
            results += measure(name, case, options.threads, budget, least, progress)
    about = machine()
    versions = (f"{k} {v}" for k, v in about["packages"].items())
    print(f"{about['processor']}, {about['cores']} cores; {', '.join(versions)}; float32")
    if options.quick:
        print("--quick: small inputs, few rounds; no timing to quote")
    if results:
        print(f"\n{table(results)}\n\n{conclusion(results)}")
    for name, reason in missing.items():
        print(f"{name} was not measured: it {reason}")
    if options.json:
        content = {
            "machine": about,
            "quick": options.quick,
            "channels_last": options.channels_last,
            "batch": options.batch,
            "results": [{**asdict(r), "verdict": r.verdict()} for r in results],
            "missing": missing,
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    return 1 if missing and options.model else 0


if __name__ == "__main__":
    sys.exit(main())
