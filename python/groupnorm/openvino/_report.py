"""What became of a model's norms."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Replaced(NamedTuple):
    """A norm that the engine computes now."""

    node: str  # its friendly name
    op: str  # its operator
    activation: str  # "none", or that behind it, which the operator computes too
    layout: str  # in which it is computed
    why: str  # in that layout


class Left(NamedTuple):
    """A norm that stays as it is."""

    node: str
    op: str
    reason: str


@dataclass
class Report:
    """What `optimize` did."""

    precision: str  # "f32", "bf16" or "f16": that which the model is to be compiled with
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        """Returns a line for each norm."""
        count = len(self.replaced)
        lines = [f"{count} of {count + len(self.left)} norms replaced, for {self.precision}"]
        for node, op, activation, layout, why in self.replaced:
            fused = "" if activation == "none" else f" with {activation}"
            lines.append(f"  {op} {node}{fused}: {layout}: {why}")
        lines += [f"  left: {op} {node}: {reason}" for node, op, reason in self.left]
        return "\n".join(lines)
