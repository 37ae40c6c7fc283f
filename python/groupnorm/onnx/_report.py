"""What became of a model's norms."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Left(NamedTuple):
    """A norm that stays as it is."""

    node: str  # its name or, without one, its output's
    op: str  # its operator
    reason: str


@dataclass
class Report:
    """What `convert` did."""

    converted: dict[str, int] = field(default_factory=dict)  # by operator, how many there are now
    left: list[Left] = field(default_factory=list)
    nodes_before: int = 0  # of the graph, its subgraphs and functions
    nodes_after: int = 0  # the same; without fallbacks

    def __str__(self) -> str:
        """Returns a line for each operator and for each norm that was left."""
        count = sum(self.converted.values())
        nodes = f"{self.nodes_before} -> {self.nodes_after} nodes"
        lines = [
            f"{count} of {count + len(self.left)} norms converted; {nodes}",
            *(f"  {number:4} {name}" for name, number in sorted(self.converted.items())),
            *(f"  left: {op} {node}: {reason}" for node, op, reason in self.left),
        ]
        return "\n".join(lines)
