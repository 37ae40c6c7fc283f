"""The text of a study, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from . import paper
from .plan import GROUPS, RATES
from .summary import Summary
from .timing import CONTESTANTS
from .training import MOMENTUM, RATE_BATCH, WEIGHT_DECAY


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _spread(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = (f"{value[key]:.1f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}-{high})"


def _setting(summary: Summary) -> str:
    study, machine = summary["study"], summary["machine"]
    return f"""\
# Group normalization, measured

Written by `{summary["command"]}` with groupnorm {machine["groupnorm"]} ({machine["target"]}) and torch
{machine["torch"]} on one thread of: {machine["cpu"]}. Raw numbers: `results.jsonl`, `times.json`; those below, unrounded:
`study.json`. Another machine rounds differently, and training enlarges that:
expect other digits.

- Data: {summary["data"]}; {study["images"]} images to learn from, the other {summary["test_images"]} are the test.
- Every run sees {study["epochs"]} x {study["images"]} examples, whatever its batch. SGD, momentum {MOMENTUM}, weight decay
  {WEIGHT_DECAY}, no augmentation. The learning rate is in proportion to the batch, as in the paper, and falls to 0 along a
  cosine: {RATES["residual"]} x batch / {RATE_BATCH} for the residual network, {RATES["plain"]} for the plain one, whose large linear layer
  diverges at more.
- Seeds {", ".join(map(str, range(study["seeds"])))}, of the weights and of the order of images. Numbers are test errors in percent after the last
  epoch: the mean, and in brackets the least and the largest of the seeds.
- GN (G = {GROUPS} where nothing else is said), LN (over C, H, W) and IN are computed by groupnorm, forward and backward;
  BN is torch's `BatchNorm2d`, with running statistics in the test.
- The paper: Wu & He, [arXiv:1803.08494](https://arxiv.org/abs/1803.08494), ResNet-50 on ImageNet, 8 workers. Its numbers
  stand here for their direction. Small networks on digits can't give the same ones."""


def _claims(summary: Summary) -> str:
    rows = [
        [each["claim"], each["paper"], each["here"], "yes" if each["shows"] else "**no**"]
        for each in summary["claims"]
    ]
    return f"""\
## The claims

"Shows" is computed: two errors differ if no seed of one reaches the other, and if their means are more than two standard
errors of {summary["test_images"]} test images apart.

{_table(("claim", "paper", "here", "shows"), rows)}

{_missing(summary)}"""


def _missing(summary: Summary) -> str:
    claims: dict[str, list[str]] = {}
    for each in summary["claims"]:
        if not each["shows"]:
            claims.setdefault(each["why_not"], []).append(f"*{each['claim']}*")
    if not claims:
        return "All of them show."
    reasons = [f"- {'; '.join(those)}: {why}" for why, those in claims.items()]
    return "\n".join(("Why some do not show:", "", *reasons))


def _positions(summary: Summary) -> str:
    small = summary["study"]["batches"][-1]
    rows = []
    for network, positions in summary["positions"].items():
        values = [str(small * count) for count in positions]
        rows.append([network, ", ".join(map(str, positions)), ", ".join(values)])
    return _table(("network", "positions of each norm", f"values a channel, batch {small}"), rows)


def _batches(summary: Summary) -> str:
    sections = []
    for network, norms in summary["errors"].items():
        batches = list(next(iter(norms.values())))
        batches += [b for curves in norms.values() for b in curves if b not in batches]
        rows = [
            [norm, *(_spread(curves[b][-1]) if b in curves else "-" for b in batches)]
            for norm, curves in norms.items()
        ]
        sections.append(_table((f"{network}: images a batch", *batches), rows))
    theirs = _table(
        ("the paper: images a worker", *map(str, paper.BATCHES)),
        [[norm, *map(str, errors)] for norm, errors in paper.BY_BATCH.items()],
    )
    return f"""\
## Error against batch

![error against batch](error_by_batch.png)

{sections[0]}

{sections[1]}

{theirs}

Why one network shows it and the other does not: BN's mean and variance are of batch x positions values of a channel.

{_positions(summary)}

Of two values, xhat is +1 and -1 whatever they were: only which is larger gets through. And where they are nearly
equal, rstd is up to 1 / sqrt(eps) = 316: so much are gradients enlarged on their way back. BN has two values in the last
layers of the residual network at batch 2; its running statistics, used in the test, then belong to another function than
the one that learned. The plain network never gets there: its norms see hundreds of values in the smallest batch. ResNet-50
lies in between: 7 x 7 positions in its last stage, 98 values at batch 2, but 53 norms, each of which adds its noise to the
one before. GN's values are of one image, so nothing in it depends on the batch. From one batch to another only the number
of steps and the learning rate change."""


def _convergence(summary: Summary) -> str:
    study, norms = summary["study"], summary["errors"]["residual"]
    rows = [
        [f"{norm}, batch {batch}", *(_spread(each) for each in curves[str(batch)])]
        for batch in (study["batches"][0], study["batches"][-1])
        for norm, curves in norms.items()
    ]
    epochs = [str(epoch + 1) for epoch in range(study["epochs"])]
    return f"""\
## Convergence

![error against epoch](convergence.png)

{_table(("residual: after epoch", *epochs), rows)}

A large batch means few steps here ({study["epochs"] * study["images"] // study["batches"][0]} at batch {study["batches"][0]}), so what differs there is also
how far a norm has come, not only where it would arrive. The paper trains for 100 epochs of ImageNet."""


def _sweep(summary: Summary, key: str, words: str, theirs: Sequence[float]) -> str:
    sizes = [int(size) for size in summary[key]]
    paper_row = dict(zip(paper.SIZES, theirs, strict=True))
    rows = [
        ["here", *(_spread(each) for each in summary[key].values())],
        ["paper", *(str(paper_row[size]) for size in sizes)],
    ]
    return _table((words, *map(str, sizes)), rows)


def _groups(summary: Summary) -> str:
    return f"""\
## The number of groups

![error against groups](groups.png)

{_sweep(summary, "groups", "groups", paper.BY_GROUPS)}

{_sweep(summary, "channels", "channels a group", paper.BY_CHANNELS)}

Residual network, batch {summary["sweep_batch"]}. Its layers have 16, 32 and 64 channels: where there are fewer than groups (or than
channels a group), each channel is a group (or all are one). So 64 groups and 1 channel a group are IN, 1 group and 64
channels a group are LN. The paper's layers have 64 channels and more: its G = 64 is not IN. In the last layers, at one
position, a group of two channels is two values, the case of BN at batch 2, and with the same end. A group of one channel
is one value: its xhat is 0 and only beta is left, so that IN learns here with the shortcuts past its last layers. What
breaks down is not a norm but the small number of values of a mean: for GN that is (channels / G) x positions, and it does
not depend on the batch."""


def _times(summary: Summary) -> str:
    rows = []
    for times in summary["times"]:
        case, found = times["case"], times["milliseconds"]
        base = found["none"]
        cells = [f"{base:.2f}"]
        cells += [f"{found[n]:.2f} (+{100 * (found[n] / base - 1):.0f} %)" for n in CONTESTANTS][1:]
        network = (
            f"{case['batch']} images {case['side']}x{case['side']}, {case['width']} to "
            f"{4 * case['width']} channels"
        )
        speed = found["GN, torch"] / found["GN, groupnorm"]
        rows.append([network, *cells, f"{speed:.2f}"])
    head = ("residual network", "no norm", *list(CONTESTANTS)[1:], "GN: torch / groupnorm")
    return f"""\
## Time of a training step

Milliseconds of processor time of a step (forward, backward, SGD), the medians of steps taken in turns by four copies of one
network that differ in their norms alone, one thread. In brackets: what is added to the step without norms. "GN, groupnorm" is
GroupNorm of groupnorm.torch within `groupnorm.torch.override()`.

{_table(head, rows)}

Above 1 in the last column groupnorm is faster. In steps as small as those of this study a norm has so little to compute
that the way to it, through Python and torch's autograd, takes the time, and that is the same for both: groupnorm's kernels lie
beneath torch's own operator. `bench/training.py` times larger norms and other batches, `python -m groupnorm bench` the norm alone."""


def render(summary: Summary) -> str:
    """The report of what `summarize` found, with "command" and "machine" beside it."""
    parts: list[Any] = [
        *(_setting(summary), _claims(summary), _batches(summary), _convergence(summary)),
        *(_groups(summary), _times(summary)),
    ]
    return "\n\n".join(parts) + "\n"
