"""Every code block of README.md and docs/ runs, and prints what the page says.

The blocks of a page run in order in one directory, in which `groupnorm` is the checkout. Python
blocks share their names. A block of language `text` is the output of the block before it; `...`
stands for any text, and any white space for any other. C and C++ blocks are whole programs.
"""

import contextlib
import doctest
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks, name_of, pages

_MATCH = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_COMPILERS = {"c": "cc -std=c11", "cpp": "c++ -std=c++20"}
_NOT_RUN = {"", "text", "cmake"}  # output, diagrams; a cmake block is a file
_PAGES = [page for page in pages() if any(b.language not in _NOT_RUN for b in blocks(page))]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a user who has installed the library and the package."""
    build = Path(os.environ.get("GROUPNORM_BUILD", ROOT / "build/dev"))
    if not (build / "cmake_install.cmake").exists():
        pytest.fail(f"{build} has no build; cmake --preset dev && cmake --build --preset dev")
    prefix = tmp_path_factory.mktemp("prefix")
    subprocess.run(
        ["cmake", "--install", build, "--prefix", prefix], check=True, stdout=subprocess.DEVNULL
    )
    packages = ":".join(str(path) for path in prefix.rglob("pkgconfig"))
    path = [str(Path(sys.executable).parent), str(prefix / "bin"), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(path),
        "PKG_CONFIG_PATH": packages,
        "CMAKE_PREFIX_PATH": str(prefix),
        "CMAKE_GENERATOR": "Ninja",
    }


def _run_python(page: Path, block: Block, names: dict[str, object]) -> str:
    said = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(said):
        exec(code, names)  # noqa: S102 - the pages are ours
    return said.getvalue()


def _run_shell(page: Path, block: Block, command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        # -P: cmake must see the checkout where it is, not at the link, or it refuses other builds.
        ["bash", "-ePuo", "pipefail", "-c", command],
        check=False,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{name_of(page)}:{block.line}: {command}\n{done.stdout}"
    return done.stdout


def _compile_and_run(page: Path, block: Block, environment: dict[str, str]) -> str:
    source = Path(f"block{block.line}.{block.language}")
    source.write_text(block.code)
    flags = "$(pkg-config --cflags --libs --static groupnorm)"
    compiler = _COMPILERS[block.language]
    command = f"{compiler} {shlex.quote(source.name)} {flags} -o block && ./block"
    return _run_shell(page, block, command, environment)


@pytest.mark.parametrize("page", _PAGES, ids=name_of)
def test_blocks_run(
    page: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groupnorm").symlink_to(ROOT)
    names: dict[str, object] = {"__name__": "__main__"}
    said: str | None = None
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        if block.skip:
            said = None
        elif block.file:
            Path(block.file).write_text(block.code)
        elif block.language == "python":
            said = _run_python(page, block, names)
        elif block.language == "sh":
            said = _run_shell(page, block, block.code, environment)
        elif block.language in _COMPILERS:
            said = _compile_and_run(page, block, environment)
        elif block.language == "text":
            if said is not None:
                matches = doctest.OutputChecker().check_output(block.code, said, _MATCH)
                assert matches, f"{where}: the page says\n{block.code}\nbut it prints\n{said}"
            said = None
        else:
            assert not block.language, f"{where}: no way to run a block of '{block.language}'"


def test_every_skip_has_a_reason() -> None:
    for page in pages():
        for block in blocks(page):
            assert block.skip is None or len(block.skip.split()) > 2, f"{page}:{block.line}"
