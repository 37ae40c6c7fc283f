"""Files that are not what they should be: one line that says why, exit status 2, nothing left behind."""

import os
import resource
import signal
import struct
import subprocess
import time
import warnings

import numpy
import pytest

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
DATA = struct.pack("<6f", 1, 2, 3, 4, 5, 6)


def npy(header=HEADER, data=DATA, magic=b"\x93NUMPY", version=(1, 0), length=None):
    text = header.encode() + b"\n"
    length = len(text) if length is None else length
    return (
        magic
        + bytes(version)
        + struct.pack("<H" if version[0] == 1 else "<I", length)
        + text
        + data
    )


def shaped(shape, data=DATA, descr="'<f4'", fortran="False"):
    return npy(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}", data)


def refused(cli, content, *arguments):
    (cli.directory / "x.npy").write_bytes(content)
    message = cli.refused("run", "x.npy", "--norm", "layer", "-o", "y.npy", *arguments)
    assert cli.files() == ["x.npy"]
    assert "'x.npy'" in message
    return message


def test_the_file_that_the_others_spoil_is_good(cli):
    (cli.directory / "x.npy").write_bytes(npy())
    cli.ok("run", "x.npy", "--norm", "layer", "-o", "y.npy")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not a .npy file"),
        (b"PK\x03\x04" + npy(), "not a .npy file"),
        (npy(magic=b"\x92NUMPY"), "not a .npy file"),
        (npy(version=(4, 0)), "version 4.0"),
        (npy(version=(0, 0)), "version 0.0"),
        (npy(version=(1, 1)), "version 1.1"),
        (npy(length=65535), "65535 bytes"),
        (npy(version=(2, 0), length=0xFFFFFFFF), "4294967295 bytes"),
        (npy(version=(3, 0), length=0x7FFFFFFF), "2147483647 bytes"),
        (npy(header="{'descr': '<f4'" + " " * 11000), "at most 10000"),
        (npy(length=9000), "ends within its .npy header"),
    ],
)
def test_preamble(cli, content, reason):
    assert reason in refused(cli, content)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "}",
        "{}",
        "[]",
        "{'descr'",
        "{'descr': }",
        "{'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'shape': (2, 3)}",
        "{'fortran_order': False, 'shape': (2, 3)}",
        HEADER + "x",
        HEADER[1:],
        HEADER[:-1],
        HEADER + HEADER,
        HEADER.replace("'shape'", "'shapes'"),
        HEADER.replace("}", "'shape': (2, 3)}"),
        HEADER.replace("}", "'more': 1}"),
        HEADER.replace("False", "false"),
        HEADER.replace("False", "0"),
        HEADER.replace("False", "Fals"),
        HEADER.replace("'<f4'", "<f4"),
        HEADER.replace("'<f4'", "<f4'"),
        HEADER.replace("'<f4'", "None"),
        HEADER.replace("(2, 3)", "[2, 3]"),
        HEADER.replace("(2, 3)", "(2, 3"),
        HEADER.replace("(2, 3)", "(2 3)"),
        HEADER.replace("(2, 3)", "(2,, 3)"),
        HEADER.replace("(2, 3)", "(, 3)"),
        HEADER.replace("(2, 3)", "(6)"),
        HEADER.replace("(2, 3)", "(2.0, 3)"),
        HEADER.replace("(2, 3)", "(0x2, 3)"),
        HEADER.replace("(2, 3)", "(+2, 3)"),
        HEADER.replace("(2, 3)", "(two, 3)"),
        HEADER.replace("(2, 3)", "(2l, 3)"),
        HEADER.replace("(2, 3)", "(2LL, 3)"),
        HEADER.replace("(2, 3)", "(L, 3)"),
        HEADER.replace("'descr'", "uu'descr'"),
        HEADER.replace(",", ""),
        HEADER.replace(":", ""),
        HEADER.replace("'", "`"),
        "\0" * 64,
        "{'\0': 1}",
        "'" * 100,
        "{" * 9000,
        "(" * 9000,
        "\N{GREEK SMALL LETTER GAMMA}" * 20,
    ],
)
def test_malformed_headers(cli, header):
    assert "malformed .npy header" in refused(cli, npy(header))


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2, 3,)}',
        "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
        " \t{ 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , 3 , ) , } \n \n",
        HEADER.replace("(2, 3)", "(2L, 3L)"),  # of Python 2, as are these
        HEADER.replace("(2, 3)", "(2L,3 L,)"),
        HEADER.replace("'descr'", "u'descr'").replace("'<f4'", "U'<f4'"),
        HEADER.replace("<f4", "=f4"),
        HEADER.replace("<f4", "|f4"),
        HEADER.replace("<f4", "f4"),
        HEADER.replace("<f4", "f"),
        HEADER.replace("<f4", "float32"),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_other_ways_to_write_the_same_header(cli, header, version):
    (cli.directory / "x.npy").write_bytes(npy(header, version=version))
    if version != (3, 0) or "L" not in header:  # NumPy reads none of Python 2's in version 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Python 2
            assert cli.load("x.npy").shape == (2, 3)
    cli.ok("run", "x.npy", "--norm", "layer", "-o", "y.npy")


@pytest.mark.parametrize(
    "array, reason",
    [
        (numpy.zeros((2, 3), ">f4"), "big-endian"),
        (numpy.zeros((2, 3), ">f2"), "big-endian"),
        (numpy.zeros((2, 3), [("a", "<f4"), ("b", "<f8")]), "structured"),
        (numpy.zeros((2, 3), "O"), "Python objects"),
        (numpy.zeros((2, 3), "i4"), "not float16, float32 or float64"),
        (numpy.zeros((2, 3), "u1"), "not float16, float32 or float64"),
        (numpy.zeros((2, 3), "?"), "not float16, float32 or float64"),
        (numpy.zeros((2, 3), "c8"), "not float16, float32 or float64"),
        (numpy.zeros((2, 3), "S4"), "not float16, float32 or float64"),
        (numpy.zeros((2, 3), "V2"), "not float16, float32 or float64"),
        (numpy.asfortranarray(numpy.ones((2, 3), "f4")), "numpy.ascontiguousarray"),
        (numpy.float32(1), "at least two axes"),
        (numpy.ones(3, "f4"), "at least two axes"),
    ],
)
def test_arrays_that_it_does_not_take(cli, array, reason):
    cli.save("x.npy", array)
    assert reason in refused(cli, (cli.directory / "x.npy").read_bytes())


def test_terminal_control_characters_are_not_repeated(cli):
    assert "\x1b" not in refused(cli, shaped("(2, 3)", descr="'\x1b[31mf4'"))


@pytest.mark.parametrize(
    "shape, reason",
    [
        ("(-2, 3)", "negative size"),
        ("(2, -3)", "negative size"),
        ("(9223372036854775808, 3)", "beyond 2^63"),
        ("(99999999999999999999999999, 3)", "beyond 2^63"),
        ("(9223372036854775807, 9223372036854775807)", "more than 2^63 bytes"),
        ("(4294967296, 4294967296)", "more than 2^63 bytes"),  # 2^64 is 0 in 64 bits
        ("(4611686018427387905, 4)", "more than 2^63 bytes"),  # 4 more than 2^64
        ("(0, 4294967296, 4294967296)", "more than 2^63 bytes"),
        ("(2305843009213693951, 1)", "needs 9223372036854775804"),  # just below
        ("(1000000000, 1000000000)", "holds 24 bytes"),
        ("(2, 4)", "holds 24 bytes of data; its shape [2, 4] needs 32"),
        ("(" + "1, " * 3000 + ")", "ends within"),
    ],
)
def test_shapes(cli, shape, reason):
    content = shaped(shape)
    if reason == "ends within":  # or thousands of axes would be good
        content = content[:5000]
    assert reason in refused(cli, content)


def test_cut_short_at_every_byte(cli):
    """Also with a header as numpy pads it."""
    cli.save("x.npy", numpy.arange(6, dtype="f4").reshape(2, 3))
    whole = (cli.directory / "x.npy").read_bytes()
    (cli.directory / "x.npy").unlink()
    for size in range(len(whole)):
        refused(cli, whole[:size])


def test_every_byte_of_the_header_spoiled(cli):
    """Whatever else it is then: no crash, and a refusal leaves nothing."""
    whole = npy()
    for at in range(len(whole) - len(DATA)):
        for value in (0x00, 0x27, 0x2D, 0x39, 0xFF):
            (cli.directory / "x.npy").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            result = cli("run", "x.npy", "--norm", "layer", "-o", "y.npy")
            assert result.returncode in (0, 2), (at, value, result)
            if result.returncode == 2:
                assert cli.files() == ["x.npy"]
            else:
                (cli.directory / "y.npy").unlink()


def test_files_that_cannot_be_read(cli):
    assert "No such file" in cli.refused("run", "none.npy", "--norm", "layer", "-o", "y.npy")
    assert "is a directory" in cli.refused("run", ".", "--norm", "layer", "-o", "y.npy")
    assert "not a regular file" in cli.refused("run", "/dev/zero", "--norm", "layer", "-o", "y.npy")
    os.mkfifo(cli.directory / "fifo")
    assert "not a regular file" in cli.refused("run", "fifo", "--norm", "layer", "-o", "y.npy")
    assert cli.files() == ["fifo"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(cli):
    cli.save("x.npy", numpy.ones((2, 3), "f4"))
    (cli.directory / "x.npy").chmod(0)
    assert "Permission denied" in cli.refused("run", "x.npy", "--norm", "layer", "-o", "y.npy")


@pytest.mark.parametrize("flag", ["--gamma", "--beta"])
@pytest.mark.parametrize(
    "param, reason",
    [
        (numpy.ones(3, "f4"), "[3]; must be [4], one a channel, or [2, 4]"),
        (numpy.ones((4, 1), "f4"), "must be [4]"),
        (numpy.float32(1), "must be [4]"),
        (numpy.ones(4, "f8"), "gamma and beta must be of the data's dtype"),
        (numpy.ones(4, "f2"), "gamma and beta must be of the data's dtype"),
        (numpy.ones(4, "i4"), "not float16, float32 or float64"),
    ],
)
def test_parameters_that_do_not_fit(cli, flag, param, reason):
    cli.save("x.npy", numpy.ones((2, 4, 3), "f4"))
    cli.save("p.npy", param)
    assert reason in cli.refused("run", "x.npy", "--groups", 2, flag, "p.npy", "-o", "y.npy")
    assert cli.files() == ["p.npy", "x.npy"]


def test_gamma_and_beta_that_do_not_go_together(cli):
    cli.save("x.npy", numpy.ones((2, 4, 3), "f2"))
    cli.save("a.npy", numpy.ones(4, "f2"))
    for other in (numpy.ones(4, "f4"), numpy.ones((2, 4), "f2")):
        cli.save("b.npy", other)
        message = cli.refused(
            "run",
            "x.npy",
            "--groups",
            2,
            "--gamma",
            "a.npy",
            "--beta",
            "b.npy",
            "-o",
            "y.npy",
        )
        assert "same dtype and shape" in message


@pytest.fixture
def good(cli):
    cli.save("x.npy", numpy.random.default_rng(0).standard_normal((64, 64, 64)).astype("f4"))
    return cli


@pytest.mark.parametrize(
    "output, reason",
    [
        ("none/y.npy", "No such file or directory"),
        (".", "is a directory"),
        ("/dev/full", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("/proc/y.npy", "cannot be written"),
    ],
)
@pytest.mark.parametrize("flag", ["-o", "--stats"])
def test_outputs_that_cannot_be_written(good, flag, output, reason):
    other = ["--stats", "s.npy"] if flag == "-o" else ["-o", "y.npy"]
    assert reason in good.refused("run", "x.npy", "--norm", "layer", flag, output, *other)
    assert good.files() == ["x.npy"]


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_no_room_for_the_output(good):
    (good.directory / "y.npy").write_text("what was there")
    message = good.refused(
        "run", "x.npy", "--norm", "layer", "-o", "y.npy", preexec_fn=limit_file_size
    )
    assert "'y.npy': cannot be written: File too large" in message
    assert good.files() == ["x.npy", "y.npy"]
    assert (good.directory / "y.npy").read_text() == "what was there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_disk_full(good):
    disk = good.directory / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        message = good.refused("run", "x.npy", "--norm", "layer", "-o", "disk/y.npy")
        assert "No space left on device" in message
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_killed_half_way_leaves_no_file_under_the_name(cli):
    """At every moment the name has either nothing or the whole array."""
    x = numpy.random.default_rng(0).standard_normal((32, 64, 64, 64)).astype("f4")
    cli.save("x.npy", x)
    seen_none = False
    for delay in numpy.linspace(0, 0.3, 16):
        process = subprocess.Popen(
            [cli.executable, "run", "x.npy", "--norm", "layer", "-o", "y.npy"],
            cwd=cli.directory,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (cli.directory / "y.npy").exists():
            assert cli.load("y.npy").shape == x.shape
            (cli.directory / "y.npy").unlink()
        else:
            seen_none = True
    assert seen_none
