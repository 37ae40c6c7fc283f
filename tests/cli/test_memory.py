"""Where little memory is allowed: what fits runs, what does not is refused in one line."""

import contextlib
import os
import pathlib
import resource

import numpy
import pytest

MB = 1 << 20


def sparse_npy(path, shape):
    """A file of zeros that takes no room on the disk."""
    header = numpy.lib.format.header_data_from_array_1_0(numpy.zeros(1, "f4"))
    with open(path, "wb") as file:
        numpy.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        file.truncate(file.tell() + 4 * int(numpy.prod(shape)))


def in_address_space(limit):
    """As `ulimit -v`."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))}


@pytest.fixture
def little(cli):
    """Options of a process with an address space of 256 MB."""
    options = in_address_space(256 * MB)
    if cli("groups", "32", **options).returncode != 0:
        pytest.skip("the command does not start in 256 MB: with sanitizers, it takes terabytes")
    return options


@contextlib.contextmanager
def memory_group(limit):
    """Options of a process in a control group of its own, of either version."""
    root = pathlib.Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    group = (root / "memory" if v1 else root) / f"groupnorm-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            for name in ["memory.limit_in_bytes"] if v1 else ["memory.max", "memory.swap.max"]:
                (group / name).write_text(str(limit))
            processes = os.open(group / "cgroup.procs", os.O_WRONLY)
        except OSError as error:
            pytest.skip(f"no control group can be limited here: {error}")
        try:
            yield {"preexec_fn": lambda: os.write(processes, b"0") and None}
        finally:
            os.close(processes)
    finally:
        group.rmdir()


@pytest.mark.parametrize("arguments", [["--hot"], [], ["--backward", "--json"]])
def test_bench_in_a_small_address_space(cli, little, arguments):
    bench = ["bench", "--shape", "1x32x8x8", "--groups", "8", "--seconds", "0.01"]
    result = cli(*bench, *arguments, **little)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_run_in_a_small_address_space(cli, little):
    sparse_npy(cli.directory / "x.npy", (2, 8, 1 << 25))
    message = cli.refused("run", "x.npy", "--groups", "8", "-o", "y.npy", **little)
    assert "'x.npy': needs 2.0 GB of memory, this process may have " in message
    assert cli.files() == ["x.npy"]


def test_bench_in_a_small_control_group(cli):
    with memory_group(200 * MB) as options:
        result = cli(
            "bench", "--shape", "1x32x8x8", "--groups", "8", "--seconds", "0.01", **options
        )
        assert result.returncode == 0, result
        message = cli.refused("bench", "--shape", "16x64x256x256", "--groups", "8", **options)
        assert "--shape 16x64x256x256: needs " in message


def test_run_in_a_small_control_group(cli):
    sparse_npy(cli.directory / "x.npy", (2, 8, 1 << 25))
    with memory_group(200 * MB) as options:
        message = cli.refused("run", "x.npy", "--groups", "8", "-o", "y.npy", **options)
        assert "'x.npy': needs 2.0 GB of memory, this process may have " in message
        for megabytes in range(180, 201, 2):  # nearly as much as there is: done or refused
            sparse_npy(cli.directory / "x.npy", (1, 8, megabytes * MB // 32))
            result = cli("run", "x.npy", "--groups", "8", "-o", "y.npy", **options)
            assert result.returncode in (0, 2), (megabytes, result)
            assert (megabytes > 180) or result.returncode == 0, result
