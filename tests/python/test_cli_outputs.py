"""``python -m groupnorm``: numbers are decimal, output arrives, files keep what is not replaced."""

import os
import signal
import stat
import subprocess
import sys
import time

import numpy
import pytest

RUN = ["run", "x.npy", "--norm", "layer", "-o"]
NOT_DECIMAL = ["0x10", "+5", "1_000", " 5", "5 ", "5x", "5,0", "", "\N{ARABIC-INDIC DIGIT FIVE}"]


class Program:
    """The command line as a process, in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        numpy.save(directory / "x.npy", numpy.arange(24, dtype="f4").reshape(2, 12))

    def __call__(self, *arguments, script='"$@"', env=None, **options):
        command = [sys.executable, "-m", "groupnorm", *map(str, arguments)]
        return subprocess.run(
            ["bash", "-c", script, "bash", *command],
            cwd=self.directory,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def ok(self, *arguments, **options):
        result = self(*arguments, **options)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def refused(self, *arguments, **options):
        result = self(*arguments, **options)
        assert (result.returncode, result.stdout) == (2, ""), result
        assert result.stderr.startswith("groupnorm: ") and result.stderr.count("\n") == 1, result
        return result.stderr

    def files(self):
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


@pytest.mark.parametrize("text", [*NOT_DECIMAL, "1e1", "1.0", "inf", "9" * 20, "9" * 5000])
@pytest.mark.parametrize(
    "arguments",
    [
        [*RUN, "y.npy", "--groups"],
        [*RUN, "y.npy", "--correction"],
        [*RUN, "y.npy", "--threads"],
        ["bench", "--api", "numpy", "--shape", "2x8", "--groups"],
        ["study", "--images"],
        ["study", "--epochs"],
        ["study", "--seeds"],
    ],
    ids=str,
)
def test_not_a_whole_number(refuse, arguments, text):
    assert f"{arguments[-1]}" in (message := refuse(*arguments, text)) and "must be " in message


@pytest.mark.parametrize("text", [*NOT_DECIMAL, "inf", "nan", "1e999", "1e", ".", "infinity", "-1"])
@pytest.mark.parametrize(
    "arguments",
    [[*RUN, "y.npy", "--eps"], ["bench", "--api", "numpy", "--shape", "2x8", "--seconds"]],
    ids=str,
)
def test_not_a_finite_number(refuse, arguments, text):
    assert f"{arguments[-1]}: must be " in refuse(*arguments, text)


@pytest.fixture
def refuse(program, monkeypatch, capsys):
    """In this process, which is quicker."""
    from groupnorm._cli import main

    def call(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        message: str = capsys.readouterr().err
        assert message.count("\n") == 1
        assert program.files() == ["x.npy"]
        return message

    monkeypatch.chdir(program.directory)
    return call


def test_zeros_before_a_number_change_nothing(program):
    out = program.ok(
        "run", "x.npy", "-o", "y.npy", "--groups", "06", "--eps", "001", "--threads", "01"
    )
    assert "6 groups" in out and "1 threads" in out


def test_the_number_of_threads_in_the_environment(program):
    for text in ("0x2", "0", "1025", "-1", "many", " 2", "2_0"):
        env = {"GROUPNORM_NUM_THREADS": text}
        for command in (["info"], [*RUN, "y.npy"]):
            message = program.refused(*command, env=env)
            assert f"GROUPNORM_NUM_THREADS: must be from 1 to 1024; got '{text}'" in message
        assert program.files() == ["x.npy"]
    program.ok(*RUN, "y.npy", "--threads", 1, env=env)
    assert "threads  2\n" in program.ok("info", env={"GROUPNORM_NUM_THREADS": "02"})


@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "--json"], ["--help"], ["--version"], [*RUN, "y.npy"]], ids=str
)
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_output_that_is_lost_is_told(program, arguments, where):
    result = program(*arguments, script=f'"$@" {where}')
    assert result.returncode == 2, result
    assert result.stderr.splitlines()[-1].startswith("groupnorm: standard output: "), result
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


def test_a_reader_that_has_had_enough(program):
    result = program("info", script='"$@" | true; exit ${PIPESTATUS[0]}')
    assert (result.returncode in (0, 128 + signal.SIGPIPE), result.stderr) == (True, "")


def test_one_file_under_two_names(program):
    (program.directory / "link.npy").symlink_to("x.npy")
    os.link(program.directory / "x.npy", program.directory / "hard.npy")
    numpy.save(program.directory / "gamma.npy", numpy.ones(12, "f4"))
    files, before = program.files(), (program.directory / "x.npy").read_bytes()
    for output, *more in (
        ("a.npy", "--stats", program.directory / "a.npy"),
        ("a.npy", "--stats", "x.npy"),
        ("a.npy", "--stats", "link.npy"),
        ("a.npy", "--stats", "hard.npy"),
        ("gamma.npy", "--gamma", "./gamma.npy"),
        ("a.npy", "--beta", "gamma.npy", "--stats", "gamma.npy"),
    ):
        assert "must be two files" in program.refused(*RUN, output, *more)
        assert program.files() == files
    assert (program.directory / "x.npy").read_bytes() == before


@pytest.mark.parametrize(
    "name, reason",
    [
        ("dangling.npy", "is a symbolic link to nothing"),
        ("loop.npy", "Too many levels"),
        ("hard.npy", "has 2 names (hard links)"),
        ("read-only.npy", "is read-only"),
        ("to-read-only.npy", "is read-only"),
    ],
)
def test_what_is_not_replaced(program, name, reason):
    folder = program.directory
    (folder / "dangling.npy").symlink_to("nothing")
    (folder / "loop.npy").symlink_to("loop.npy")
    (folder / "one").write_text("one")
    os.link(folder / "one", folder / "hard.npy")
    (folder / "read-only.npy").write_text("read-only")
    (folder / "read-only.npy").chmod(0o444)
    (folder / "to-read-only.npy").symlink_to("read-only.npy")
    files = program.files()
    for more in ([name], ["y.npy", "--stats", name]):
        assert reason in program.refused(*RUN, *more)
        assert program.files() == files
    assert os.path.samefile(folder / "one", folder / "hard.npy")
    assert (folder / "read-only.npy").read_text() == "read-only"


def test_output_where_the_text_goes(program):
    result = program(*RUN, "out.npy", script='"$@" >out.npy')
    assert result.returncode == 2 and "takes the output of this program" in result.stderr


def test_mode_owner_and_attributes_stay(program):
    path = program.directory / "old.npy"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
    attributes = {}
    try:
        os.setxattr(path, "user.origin", b"scanner 3")
        attributes = {"user.origin": b"scanner 3"}
    except (AttributeError, OSError):
        pass  # another system, or a file system without
    before = path.stat()
    (program.directory / "link.npy").symlink_to("old.npy")
    program.ok(*RUN, "link.npy", umask=0o077)
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert {name: os.getxattr(path, name) for name in attributes} == attributes
    assert (program.directory / "link.npy").is_symlink()
    assert numpy.load(path).shape == (2, 12)
    for umask in (0o022, 0o077):
        program.ok(*RUN, f"{umask}.npy", umask=umask)
        found = (program.directory / f"{umask}.npy").stat().st_mode
        assert stat.S_IMODE(found) == 0o666 & ~umask


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(program, number):
    numpy.save(program.directory / "x.npy", numpy.ones((64, 64, 64, 256), "f4"))
    (program.directory / "y.npy").write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-m", "groupnorm", *RUN, "y.npy"],
        cwd=program.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not any(name.startswith(".groupnorm.") for name in program.files()):
        assert process.poll() is None and time.monotonic() < deadline, "it wrote too fast"
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert (process.returncode, message) == (-number, b"")
    assert program.files() == ["x.npy", "y.npy"]
    assert (program.directory / "y.npy").read_text() == "old"
