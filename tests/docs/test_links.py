"""Links, and the names of tests and files that pages mention, lead somewhere."""

import re
from pathlib import Path

import pytest
from pages import ROOT, name_of, pages, tracked

_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
_FENCED = re.compile(r"^[ ]*```.*?^[ ]*```[ ]*$", re.DOTALL | re.MULTILINE)
_TEST = re.compile(r"\bTEST(?:_[PF])?\((\w+),\s*(\w+)\)")
_MENTIONED = re.compile(r"`([A-Z]\w+)\.([A-Z]\w+|\*)(?:\.\.\.)?`")
_FILE = re.compile(
    r"`((?:bench|cmake|data|docs|examples|include|python|scripts|src|tests)/[\w./-]+)`"
)


def _prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """As the site and the forge make them of headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(_prose(page)):
        if target.startswith("../cpp/"):
            continue  # pages of doxygen, which scripts/docs checks
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {target}: no such file"
        if anchor:
            assert anchor in _anchors(path), f"{name_of(page)}: {target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_mentioned_tests_and_files_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it tells of what was
    text = "".join(path.read_text() for path in tracked("tests/*.cpp"))
    names: dict[str, set[str]] = {}
    for suite, test in _TEST.findall(text):
        names.setdefault(suite, set()).add(test)
    for suite, test in _MENTIONED.findall(_prose(page)):
        if suite in names and test != "*":
            assert any(name.startswith(test) for name in names[suite]), (
                f"{name_of(page)}: {suite}.{test}: no such test"
            )
    for file in _FILE.findall(_prose(page)):
        found = (ROOT / file).exists() or any(ROOT.glob(file.rstrip("./") + "*"))
        assert found, f"{name_of(page)}: {file}: no such file"
