"""What is printed reaches its reader, and what a written file replaces keeps all but its bytes."""

import os
import signal
import stat
import subprocess
import time

import numpy
import pytest

PRINTING = [
    ["info"],
    ["info", "--json"],
    ["groups", 320],
    ["check", "first/6x6"],
    ["check", "--list"],
    ["bench", "--shape", "2x8", "--norm", "layer", "--seconds", 0, "--json"],
    ["run", "x.npy", "--norm", "layer", "-o", "y.npy"],
    ["--help"],
    ["--version"],
]
RUN = ["run", "x.npy", "--norm", "layer", "-o"]


@pytest.fixture
def good(cli):
    cli.save("x.npy", numpy.arange(24, dtype="f4").reshape(2, 12))
    return cli


def shell(cli, script, *arguments):
    """The script, in which "$@" is the command line."""
    return subprocess.run(
        ["bash", "-c", script, "bash", cli.executable, *map(str, arguments)],
        cwd=cli.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("arguments", PRINTING, ids=str)
def test_output_that_is_lost_is_told(good, arguments):
    for where in (">/dev/full", ">&-"):
        result = shell(good, f'"$@" {where}', *arguments)
        assert result.returncode == 2, (where, result)
        assert result.stderr.startswith("groupnorm: standard output: "), (where, result)
        assert result.stderr.count("\n") == 1


def test_check_stops_where_nobody_hears(good):
    started = time.monotonic()
    shell(good, '"$@" >/dev/full', "check")
    first = time.monotonic() - started
    assert first < 5, "it went on through all cases"


@pytest.mark.parametrize("arguments", [["check", "--list"], ["check", "first/"]], ids=str)
def test_a_reader_that_has_had_enough(good, arguments):
    result = shell(good, '"$@" | head -n 1; exit ${PIPESTATUS[0]}', *arguments)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")
    assert result.stdout.count("\n") == 1


def test_closed_descriptors_do_not_become_those_of_files(good):
    """Else what is printed would be written into y.npy, or a message into x's place."""
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        shell(good, f'"$@" {closed}', *RUN, "y.npy")
        assert good.load("y.npy").shape == (2, 12), closed
        assert good.files() == ["x.npy", "y.npy"]


def test_one_file_under_two_names(good):
    (good.directory / "link.npy").symlink_to("x.npy")
    os.link(good.directory / "x.npy", good.directory / "hard.npy")
    (good.directory / "g.npy").symlink_to("gamma.npy")
    good.save("gamma.npy", numpy.ones(12, "f4"))
    files = good.files()
    before = good.load("x.npy")
    for output, *more in (
        ("a.npy", "--stats", "a.npy"),
        ("a.npy", "--stats", "./a.npy"),
        (good.directory / "a.npy", "--stats", f"../{good.directory.name}/a.npy"),
        ("a.npy", "--stats", "x.npy"),
        ("a.npy", "--stats", "link.npy"),
        ("a.npy", "--stats", "hard.npy"),
        ("g.npy", "--gamma", "gamma.npy"),
        ("a.npy", "--beta", "gamma.npy", "--stats", "g.npy"),
    ):
        assert "must be two files" in good.refused(*RUN, output, *more), (output, more)
        assert good.files() == files
        assert (good.load("x.npy") == before).all()


def test_output_may_be_the_input(good):
    expected = good.normalize(good.load("x.npy"), "--norm", "layer")
    (good.directory / "link.npy").symlink_to("x.npy")
    good.ok("run", "x.npy", "--norm", "layer", "-o", "link.npy")
    assert (good.load("x.npy") == expected).all()
    assert (good.directory / "link.npy").is_symlink()


@pytest.mark.parametrize("flag", ["-o", "--stats"])
@pytest.mark.parametrize(
    "name, reason",
    [
        ("-", "standard output takes no array"),
        ("/dev/stdout", "cannot be written"),
        ("/dev/stderr", "cannot be written"),
        ("/dev/fd/1", "cannot be written"),
        ("fifo", "is not a regular file"),
        ("dangling", "is a symbolic link to nothing"),
        ("loop", "Too many levels"),
        ("hard", "has 2 names (hard links)"),
        ("read-only", "is read-only"),
        ("to-read-only", "is read-only"),
        ("directory", "is a directory"),
        ("to-directory", "is a directory"),
        ("x.npy/", "Not a directory"),
        ("new/", "No such file"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_is_not_replaced(good, flag, name, reason):
    (good.directory / "dangling").symlink_to("nothing")
    (good.directory / "loop").symlink_to("loop")
    (good.directory / "one").write_text("one")
    os.link(good.directory / "one", good.directory / "hard")
    (good.directory / "read-only").write_text("read-only")
    (good.directory / "read-only").chmod(0o444)
    (good.directory / "to-read-only").symlink_to("read-only")
    (good.directory / "directory").mkdir()
    (good.directory / "to-directory").symlink_to("directory")
    os.mkfifo(good.directory / "fifo")
    files = good.files()
    other = ["--stats", "s.npy"] if flag == "-o" else ["-o", "y.npy"]
    assert reason in good.refused("run", "x.npy", "--norm", "layer", flag, name, *other)
    assert good.files() == files
    assert os.readlink(good.directory / "dangling") == "nothing"
    assert os.path.samefile(good.directory / "one", good.directory / "hard")
    assert (good.directory / "one").read_text() == "one"
    assert (good.directory / "read-only").read_text() == "read-only"


def test_output_where_the_text_goes(good):
    """/dev/stdout may be a regular file: the array and the text would overwrite each other."""
    for script in ('"$@" >out.npy', '"$@" 2>out.npy >/dev/null'):
        result = shell(good, script, *RUN, "out.npy")
        assert result.returncode == 2, result
    assert "takes the output of this program" in (good.directory / "out.npy").read_text()


@pytest.mark.parametrize("flag", ["-o", "--stats"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o2755])
def test_the_mode_stays(good, flag, mode):
    path = good.directory / "old.npy"
    path.write_text("old")
    path.chmod(mode)
    (good.directory / "link.npy").symlink_to("old.npy")
    other = ["--stats", "s.npy"] if flag == "-o" else ["-o", "y.npy"]
    good.ok("run", "x.npy", "--norm", "layer", flag, "link.npy", *other, umask=0o077)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (good.directory / "link.npy").is_symlink()
    assert good.load("old.npy").shape[0] == 2


def test_the_umask_is_for_new_files(good):
    for umask in (0o022, 0o077):
        good.ok(*RUN, f"{umask}.npy", umask=umask)
        assert stat.S_IMODE((good.directory / f"{umask}.npy").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_stays(good):
    path = good.directory / "old.npy"
    path.write_text("old")
    os.chown(path, 1234, 5678)
    path.chmod(0o640)
    good.ok(*RUN, "old.npy")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, 0o640)
    assert good.load("old.npy").shape == (2, 12)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="Linux has extended attributes")
def test_extended_attributes_stay(good):
    path = good.directory / "old.npy"
    path.write_text("old")
    try:
        os.setxattr(path, "user.origin", b"scanner 3")
        os.setxattr(path, "user.empty", b"")
    except OSError as error:
        pytest.skip(f"this file system has none: {error}")
    good.ok(*RUN, "old.npy")
    assert good.load("old.npy").shape == (2, 12)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
        "user.origin": b"scanner 3",
        "user.empty": b"",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mounted_file(good):
    for name in ("y.npy", "other"):
        (good.directory / name).write_text(name)
    mounted = subprocess.run(
        ["mount", "--bind", "other", "y.npy"], cwd=good.directory, capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert "Device or resource busy" in good.refused(*RUN, "y.npy")
        assert (good.directory / "y.npy").read_text() == "other"
        assert good.files() == ["other", "x.npy", "y.npy"]
    finally:
        subprocess.run(["umount", "y.npy"], cwd=good.directory, check=True)


def start_and_meet_a_temporary_file(cli, **options):
    process = subprocess.Popen(
        [cli.executable, *RUN, "y.npy"], cwd=cli.directory, stdout=subprocess.DEVNULL, **options
    )
    deadline = time.monotonic() + 60
    while not any(name.startswith(".groupnorm.") for name in os.listdir(cli.directory)):
        assert process.poll() is None and time.monotonic() < deadline, "it wrote too fast"
    return process


@pytest.fixture
def large(cli):
    """So large that writing y takes longer than to notice it."""
    cli.save("x.npy", numpy.ones((64, 64, 64, 256), "f4"))
    (cli.directory / "y.npy").write_text("old")
    return cli


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(large, number):
    process = start_and_meet_a_temporary_file(large)
    process.send_signal(number)
    assert process.wait(60) == -number
    assert large.files() == ["x.npy", "y.npy"]
    assert (large.directory / "y.npy").read_text() == "old"


def test_a_signal_that_is_ignored_stays_so(large):
    """As nohup and a shell's & do."""

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start_and_meet_a_temporary_file(large, preexec_fn=ignore)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert large.load("y.npy").shape == (64, 64, 64, 256)
