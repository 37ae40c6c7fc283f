"""At a terminal: --help is as wide as it is, and the shells complete words."""

import fcntl
import os
import pathlib
import pty
import shutil
import struct
import subprocess
import termios

import pytest

COMPLETION = pathlib.Path(__file__).parents[2] / "tools" / "completion"
COMMANDS = [[], ["info"], ["run"], ["check"], ["bench"], ["groups"]]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_help_is_as_wide_as_columns(cli, command, columns):
    text = cli.ok(*command, "--help", env={"COLUMNS": str(columns)})
    widest = max(text.splitlines(), key=len)
    assert len(widest) <= columns, widest
    assert not any(line.endswith(" ") for line in text.splitlines())
    whole = cli.ok(*command, "--help", env={"COLUMNS": "10000"})
    assert "".join(text.split()) == "".join(whole.split())


@pytest.mark.parametrize("text", ["", "0", "-5", "wide", "0x50", "99999999999999999999999"])
def test_columns_that_are_no_width_are_passed_over(cli, text):
    expected = cli.ok("run", "--help", env={"COLUMNS": "80"})
    assert cli.ok("run", "--help", env={"COLUMNS": text}) == expected


def test_help_is_as_wide_as_the_terminal(cli):
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    subprocess.run([cli.executable, "info", "--help"], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    text = os.read(reader, 1 << 16).decode().replace("\r\n", "\n")
    os.close(reader)
    assert text == cli.ok("info", "--help", env={"COLUMNS": "50"})


# The words of a command line, and some that complete the last of them; None: any file name.
COMPLETIONS = [
    (["r"], {"run"}),
    ([""], {"info", "run", "check", "bench", "groups"}),
    (["--v"], {"--version"}),
    (["run", "--la"], {"--layout"}),
    (["bench", "--in"], {"--in-place"}),
    (["check", "--dev"], {"--deviation"}),
    (["run", "--layout", "channels_l"], {"channels_last"}),
    (["bench", "--dtype", "f"], {"f16", "f32", "f64"}),
    (["check", "--norm", "batch_g"], {"batch_given", "batch_group"}),
    (["run", "--activation", "gelu"], {"gelu", "gelu_tanh"}),
    (["run", "--target", "sc"], {"scalar"}),
    (["run", "only-fi"], {"only-file.npy"}),
    (["run", "only-file.npy", "-o", "only-fi"], {"only-file.npy"}),
]
BASH = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_groupnorm "$1"
[[ ${#COMPREPLY[@]} == 0 ]] && mapfile -t COMPREPLY < <(compgen -f -- "${!#}")
printf '%s\n' "${COMPREPLY[@]}"
"""
FISH = r"""
source $argv[1]
complete -C (string join -- ' ' groupnorm $argv[2..])
"""


@pytest.mark.parametrize("words, expected", COMPLETIONS, ids=str)
def test_bash_completes(cli, words, expected):
    (cli.directory / "only-file.npy").touch()
    found = subprocess.run(
        ["bash", "-c", BASH, "bash", COMPLETION / "groupnorm.bash", cli.executable, *words],
        cwd=cli.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (set(found.stdout.split()), found.stderr) == (expected, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize("words, expected", COMPLETIONS, ids=str)
def test_fish_completes(cli, words, expected):
    if words[-1] == "":
        words = [*words[:-1], "''"]  # an empty word, quoted
    (cli.directory / "only-file.npy").touch()
    os.symlink(cli.executable, cli.directory / "groupnorm")
    found = subprocess.run(  # whose lines are words, with what they are behind a tab
        ["fish", "--no-config", "-c", FISH, COMPLETION / "groupnorm.fish", *words],
        cwd=cli.directory,
        env={**os.environ, "PATH": f"{cli.directory}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    words = {line.partition("\t")[0] for line in found.stdout.splitlines()}
    assert (words, found.stderr) == (expected, "")


ZSH = r"""
autoload() { :; }; compadd() { shift; print -l -- ${(M)@:#$PREFIX*}; }
_files() { print -l -- $PREFIX*(N); }
complete_words() { local -a words=("$@"); local CURRENT=$# PREFIX=${@[-1]}; source $script; }
script=$1; shift
complete_words "$@"
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize("words, expected", COMPLETIONS, ids=str)
def test_zsh_completes(cli, words, expected):
    (cli.directory / "only-file.npy").touch()
    found = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", COMPLETION / "_groupnorm", cli.executable, *words],
        cwd=cli.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (set(found.stdout.split()), found.stderr) == (expected, "")
