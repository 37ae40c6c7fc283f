"""Which runs a study has."""

import dataclasses
from collections.abc import Iterator

from .network import WIDTH
from .training import Run

NORMS = ("BN", "GN", "LN", "IN")
GROUPS = 8  # of GN: 2, 4 and 8 channels a group in layers of 16, 32 and 64
# At 0.1, the paper's, steps on the plain network's linear layer of 1568 inputs diverge: at batch 32
# three of six runs, of BN and of GN, ended with errors above 60 %.
RATES = {"residual": 0.1, "plain": 0.02}
SWEEP = (64, 32, 16, 8, 4, 2, 1)  # groups, and channels a group: the paper's
SWEEP_BATCH = 32  # the paper's
LARGEST_BATCH = 32
assert SWEEP[0] == 4 * WIDTH


@dataclasses.dataclass(frozen=True)
class Study:
    """The size of a study: every run learns from `epochs` times `images` examples."""

    data: str
    images: int
    epochs: int
    seeds: int
    batches: tuple[int, ...]  # from large to small

    def _run(
        self,
        network: str,
        norm: str,
        batch: int,
        seed: int,
        groups: int | None = None,
        channels: int | None = None,
    ) -> Run:
        if norm == "GN" and groups is None and channels is None:
            groups = GROUPS
        return Run(
            data=self.data,
            images=self.images,
            network=network,
            norm=norm,
            groups=groups,
            channels=channels,
            rate=RATES[network],
            batch=batch,
            epochs=self.epochs,
            seed=seed,
        )

    def of_norm(self, network: str, norm: str, batch: int) -> list[Run]:
        """A run a seed."""
        return [self._run(network, norm, batch, seed) for seed in range(self.seeds)]

    def of_groups(self, groups: int) -> list[Run]:
        """A run a seed; one group is LN, one channel a group IN."""
        norm = {1: "LN", SWEEP[0]: "IN"}.get(groups, "GN")
        count = groups if norm == "GN" else None
        return [
            self._run("residual", norm, SWEEP_BATCH, seed, groups=count)
            for seed in range(self.seeds)
        ]

    def of_channels(self, channels: int) -> list[Run]:
        """A run a seed; all channels in a group is LN, one channel a group IN."""
        norm = {1: "IN", SWEEP[0]: "LN"}.get(channels, "GN")
        count = channels if norm == "GN" else None
        return [
            self._run("residual", norm, SWEEP_BATCH, seed, channels=count)
            for seed in range(self.seeds)
        ]

    def norms_of(self, network: str) -> tuple[str, ...]:
        return NORMS if network == "residual" else NORMS[:2]

    def batches_of(self, network: str, norm: str) -> tuple[int, ...]:
        """GN also takes images one by one."""
        one = (1,) if (network, norm) == ("residual", "GN") else ()
        return (*self.batches, *one)

    def runs(self) -> list[Run]:
        """All of them, each once, seed by seed."""
        found = dict.fromkeys(self._all())
        return sorted(found, key=lambda run: run.seed)

    def _all(self) -> Iterator[Run]:
        for network in ("residual", "plain"):
            for norm in self.norms_of(network):
                for batch in self.batches_of(network, norm):
                    yield from self.of_norm(network, norm, batch)
        for size in SWEEP:
            yield from self.of_groups(size)
            yield from self.of_channels(size)
