"""The file that a benchmark writes."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def write_results(
    path: pathlib.Path,
    about: Mapping[str, Any],
    tables: Mapping[str, Sequence[dict[str, Any]]],
    keys: Sequence[str] = ("case", "threads"),
) -> None:
    """Writes rows of tables, in the place of those that the file has of the same `keys`."""
    held = json.loads(path.read_text()) if path.exists() else {}

    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys)

    rows = {}
    for name, measured in tables.items():
        again = {case(row) for row in measured}
        rows[name] = [row for row in held.get(name, []) if case(row) not in again]
        rows[name] += measured
    path.write_text(json.dumps({**about, **rows}, indent=1) + "\n")
