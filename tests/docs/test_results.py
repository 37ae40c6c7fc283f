"""Tables between `<!-- bench:NAME -->` and `<!-- /bench -->` are made from docs/results/."""

import re
import sys
from pathlib import Path

import pytest
from pages import ROOT, name_of, pages

sys.path.insert(0, str(ROOT / "bench"))
import report

_RESULTS = sorted((ROOT / "docs/results").glob("*.json"))
_PAGES = [page for page in pages() if "<!-- bench:" in page.read_text()]


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    return report.tables(report.read(_RESULTS))


@pytest.mark.parametrize("page", _PAGES, ids=name_of)
def test_tables_are_those_of_the_results(page: Path, tables: dict[str, str]) -> None:
    text = page.read_text()
    assert report.fill(text, tables, name_of(page)) == text, (
        f"{name_of(page)} differs from docs/results: run "
        "python bench/report.py docs/results/*.json --update README.md docs/*.md"
    )


def test_a_page_that_differs_is_found(tables: dict[str, str]) -> None:
    page = next(page for page in _PAGES if page.name == "performance.md")
    text = page.read_text()
    changed = re.sub(r"(\| \[16, 32, 64, 64\], 8 \| )(\d)", r"\1 1\2", text, count=1)
    assert changed != text and report.fill(changed, tables, "changed") == text


def test_plots_are_those_of_the_results(tmp_path: Path) -> None:
    """The names: pixels depend on the version of matplotlib."""
    drawn = {path.name for path in report.plot(report.read(_RESULTS), tmp_path)}
    shown = set()
    for page in _PAGES:
        shown |= set(re.findall(r"plots/([\w-]+\.png)", page.read_text()))
    assert (
        shown
        == drawn
        == {path.name for path in (ROOT / "docs/plots").glob("*.png")} - {"mr_head.png"}
    )
