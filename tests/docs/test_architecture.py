"""docs/architecture.md names every file of the library, and its levels hold."""

import re
from pathlib import Path

import pytest
from pages import ROOT, blocks, name_of, tracked

_PAGE = ROOT / "docs/architecture.md"
_INCLUDE = re.compile(r'^#include ["<]([\w./-]+)[">]', re.MULTILINE)


def _levels() -> list[list[str]]:
    """The files of each level of the first block of files, from top to bottom."""
    levels: list[list[str]] = []
    for line in next(b for b in blocks(_PAGE) if b.code.startswith("interfaces")).code.splitlines():
        if not line.startswith(" "):
            levels.append([])
            line = line.partition(" ")[2]
        levels[-1] += line.split()
    return levels


def _listed() -> list[str]:
    return [word for b in blocks(_PAGE) for word in b.code.split() if "/" in word]


@pytest.mark.parametrize(
    "patterns",
    [
        ("src/*.cpp", "src/*.h", "include/groupnorm/*"),
        ("bench/*.cpp", "bench/*.py"),
        ("data/*.py",),
        ("python/src/*",),
        ("integrations/*.cpp", "integrations/*.h"),
        ("scripts/*",),
    ],
    ids=lambda patterns: patterns[0].partition("/")[0],
)
def test_every_file_is_listed_once(patterns: tuple[str, ...]) -> None:
    listed = _listed()
    for path in map(name_of, tracked(*patterns)):
        assert listed.count(path) == 1, f"docs/architecture.md, Files: list {path} once"


def test_every_listed_file_exists() -> None:
    for path in _listed():
        assert (ROOT / path).exists(), f"docs/architecture.md lists {path}, which does not exist"


def _includes(path: str) -> list[str]:
    """Files of this project that a file includes."""
    found = []
    for target in _INCLUDE.findall((ROOT / path).read_text()):
        for folder in (Path(path).parent, Path("src"), Path("include")):
            if (ROOT / folder / target).is_file():
                found.append((folder / target).as_posix())
                break
    return found


def test_includes_do_not_point_up() -> None:
    levels = _levels()
    assert len(levels) > 5
    level_of = {path: i for i, files in enumerate(levels) for path in files}
    edges = [(path, target) for path in level_of for target in _includes(path)]
    assert len(edges) > 100
    for path, target in edges:
        if target == "src/tuning.h" or target in level_of:
            assert level_of[path] <= level_of[target], f"{path} includes {target} of a higher level"


def test_reference_and_kernels_stand_apart() -> None:
    own = {"src/reference.h", "src/dtype.h"}
    for path in ("src/reference.cpp", "src/reference.h"):
        others = {t for t in _includes(path) if not t.startswith("include/")} - own
        assert not others, f"{path} includes {others}"
    for path in map(name_of, tracked("src/kernels/*")):
        for target in _includes(path):
            allowed = ("src/kernels/", "include/", "src/dtype.h", "src/fold.h", "src/range.h")
            assert target.startswith((*allowed, "src/tuning.h")), f"{path} includes {target}"
