"""The pages of the documentation and the fenced code blocks in them.

A comment on the line before a block says what it is, invisibly to the reader:

    <!-- file: NAME -->     the test writes the block to NAME, for the blocks that follow
    <!-- skip: REASON -->   the test does not run the block
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<mark>file|skip): (?P<what>.+?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>[^\n`]*)\n(?P<code>.*?)^[ ]*```[ ]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    code: str
    line: int  # of its first line of code in the page, from 1
    file: str | None = None
    skip: str | None = None


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, those that git does not know yet too."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for line in listing.splitlines() if (path := ROOT / line).is_file()]


def pages() -> list[Path]:
    """All Markdown files."""
    return tracked("*.md")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        lines = match["code"].splitlines(keepends=True)
        found.append(
            Block(
                language=match["language"].strip(),
                code="".join(line[indent:] if line.strip() else "\n" for line in lines),
                line=text.count("\n", 0, match.start("code")) + 1,
                file=match["what"] if match["mark"] == "file" else None,
                skip=match["what"] if match["mark"] == "skip" else None,
            )
        )
    return found
