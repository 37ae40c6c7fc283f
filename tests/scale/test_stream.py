"""groupnorm.stream and ``run --memory``: slab by slab is as good as whole, in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import groupnorm
import groupnorm.stream

SHAPE = (2, 12, 9, 10, 11)


def _x(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).normal(300, 2, SHAPE).astype(dtype)


def _npy(path: Path, x: np.ndarray) -> np.ndarray:
    np.save(path, x)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def _beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("memory", ["1 GB", "100 KB", 4 * 4 * 9 * 110, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_slabs_of_any_size(tmp_path: Path, memory: Any, dtype: Any) -> None:
    if memory == 16:
        memory = 4 * np.dtype(dtype).itemsize * 11  # a line
    x = _x(dtype)
    weight, bias = np.linspace(1, 2, 12).astype(dtype), np.linspace(-1, 1, 12).astype(dtype)
    source, steps = _npy(tmp_path / "x.npy", x), []
    moments = groupnorm.stream.group_norm(
        *(source, tmp_path / "y.npy", 3, weight, bias),
        activation="silu",
        memory=memory,
        progress=lambda done, total: steps.append((done, total)),
    )
    y = np.load(tmp_path / "y.npy")
    expected = groupnorm.group_norm(x, 3, weight, bias, activation="silu")
    tolerance = {np.float32: 4e-6, np.float64: 1e-11, np.float16: 1e-2}[dtype]
    assert y.dtype == dtype
    assert_allclose(y, expected, rtol=0, atol=tolerance)
    assert moments.shape == (2, 3) and moments.count[0, 0] == 4 * 9 * 110
    assert steps[-1] == (2 * x.nbytes, 2 * x.nbytes) and steps == sorted(steps)
    assert _beside(tmp_path) == ["x.npy", "y.npy"]


def _as_ncs(array: np.ndarray, axes: str) -> np.ndarray:
    order = [axes.index(letter) for letter in "NC" if letter in axes]
    order += [i for i, letter in enumerate(axes) if letter == "S"]
    seen = array.transpose(order)
    for i, letter in enumerate("NC"):
        if letter not in axes:
            seen = np.expand_dims(seen, i)
    return np.ascontiguousarray(seen)


@pytest.mark.parametrize("axes", ["NSCS", "SSSC", "CSSS", "SSSS", "SNSC", "NCSS"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_in_any_order_and_fortran_arrays(axes: str, order: Any) -> None:
    sizes = {"N": 2, "C": 6, "S": 7}
    x = np.random.default_rng(0).normal(5, 1, [sizes[letter] for letter in axes])
    source = np.asarray(x, dtype=np.float32, order=order)
    groups = 3 if "C" in axes else 1
    y = np.empty_like(source)
    groupnorm.stream.group_norm(source, y, groups, axes=axes, memory="2 KB")
    expected = groupnorm.group_norm(_as_ncs(source, axes), groups)
    assert_allclose(_as_ncs(y, axes), expected, rtol=0, atol=4e-6)


def test_family_of_norms() -> None:
    x = _x()
    y = np.empty_like(x)

    def run(groups: int | None, **options: Any) -> np.ndarray:
        groupnorm.stream.normalize_array(x, y, groups, memory="64 KB", **options)
        return y

    assert_allclose(run(None), groupnorm.instance_norm(x), rtol=0, atol=4e-6)
    batch = groupnorm.batch_norm(x, None, None, training=True)
    assert_allclose(run(None, across_batch=True), batch, rtol=0, atol=4e-6)
    rms = groupnorm.rms_norm(x, x.shape[1:])
    assert_allclose(run(1, center=False), rms, rtol=0, atol=4e-6)


def test_from_and_to_zarr_and_hdf5(tmp_path: Path) -> None:
    zarr, h5py = pytest.importorskip("zarr"), pytest.importorskip("h5py")
    x = _x()
    expected = groupnorm.group_norm(x, 3)
    store = zarr.create_array(
        str(tmp_path / "x.zarr"), shape=SHAPE, chunks=(1, 5, 4, 10, 11), dtype="f4"
    )
    store[...] = x
    groupnorm.stream.group_norm(store, tmp_path / "y.zarr", 3, memory="200 KB")
    y = zarr.open_array(str(tmp_path / "y.zarr"), mode="r")
    assert y.chunks == store.chunks
    assert_allclose(y[...], expected, rtol=0, atol=4e-6)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        source = file.create_dataset("x", data=x, chunks=(1, 12, 3, 10, 11))
        target = file.create_dataset("y", SHAPE, "f4")
        groupnorm.stream.group_norm(source, target, 3, memory="300 KB")
        assert_allclose(target[...], expected, rtol=0, atol=4e-6)
        groupnorm.stream.group_norm(source, tmp_path / "z.zarr", 3, memory="300 KB")
    z = zarr.open_array(str(tmp_path / "z.zarr"), mode="r")
    assert_allclose(z[...], expected, rtol=0, atol=4e-6)
    assert _beside(tmp_path) == ["x.h5", "x.zarr", "y.zarr", "z.zarr"]


def test_integers_become_floats() -> None:
    x = np.arange(2 * 4 * 30, dtype=np.int16).reshape(2, 4, 30)
    y = np.empty(x.shape, np.float32)
    groupnorm.stream.group_norm(x, y, 2, memory="1 KB")
    assert_allclose(y, groupnorm.group_norm(x.astype(np.float32), 2), rtol=0, atol=4e-6)


class _Interrupts:
    """A source whose reading is interrupted once it has given so many slabs."""

    def __init__(self, x: Any, after: int, error: BaseException) -> None:
        self.x, self.after, self.error = x, after, error
        self.filename, self.offset = x.filename, x.offset
        self.shape, self.dtype, self.reads = x.shape, x.dtype, 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        if self.reads > self.after:
            raise self.error
        return self.x[key]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_a_call_goes_on_where_it_was_interrupted(tmp_path: Path, suffix: str) -> None:
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    x = _x()
    mapped = _npy(tmp_path / "x.npy", x)
    options: dict[str, Any] = {"num_groups": 3, "memory": "40 KB"}
    target = tmp_path / f"y{suffix}"
    whole = _Interrupts(mapped, 10**9, KeyboardInterrupt())
    groupnorm.stream.group_norm(whole, target, **options)
    slabs = whole.reads // 2
    assert slabs > 8
    first = _read(target)
    _delete(target)
    broken = _Interrupts(mapped, slabs + slabs // 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        groupnorm.stream.group_norm(broken, target, **options)
    assert not target.exists() and len(_beside(tmp_path)) == 3  # x, the part, how far it is
    rest = _Interrupts(mapped, 10**9, KeyboardInterrupt())
    groupnorm.stream.group_norm(rest, target, **options)
    assert rest.reads <= slabs - slabs // 2 + 3
    np.testing.assert_array_equal(_read(target), first)
    assert _beside(tmp_path) == ["x.npy", target.name]
    # Another call does not go on from there.
    _delete(target)
    with pytest.raises(KeyboardInterrupt):
        broken = _Interrupts(mapped, slabs + slabs // 2, KeyboardInterrupt())
        groupnorm.stream.group_norm(broken, target, **options)
    options["num_groups"] = 4
    other = _Interrupts(mapped, 10**9, KeyboardInterrupt())
    groupnorm.stream.group_norm(other, target, **options)
    assert other.reads == 2 * slabs
    assert_allclose(_read(target), groupnorm.group_norm(x, 4), rtol=0, atol=4e-6)


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path)
    import zarr

    return zarr.open_array(str(path), mode="r")[...]


def _delete(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_errors_leave_what_was_there(tmp_path: Path) -> None:
    x = _x()
    mapped = _npy(tmp_path / "x.npy", x)
    target = tmp_path / "y.npy"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match=r"source: .*cannot be read.*no such place"):
        broken = _Interrupts(mapped, 3, OSError(5, "no such place"))
        groupnorm.stream.group_norm(broken, target, 3, memory="40 KB")
    assert target.read_bytes() == b"old" and _beside(tmp_path) == ["x.npy", "y.npy"]

    def refused(call: Any, *words: str) -> None:
        with pytest.raises((TypeError, ValueError, OSError)) as error:
            call()
        for word in words:
            assert word in str(error.value), str(error.value)
        assert target.read_bytes() == b"old" and _beside(tmp_path) == ["x.npy", "y.npy"]

    norm = groupnorm.stream.group_norm
    refused(lambda: norm(mapped, target, 3, memory=10), "memory", "32 bytes", "got 10")
    refused(lambda: norm(mapped, target, 3, memory="much"), "memory", "much")
    refused(lambda: norm(mapped, target, 5), "num_groups", "12", "5")
    refused(lambda: norm(mapped, target, 3, np.ones(3, "f4")), "weight", "(3,)")
    refused(lambda: norm(mapped, target, 3, axes="NC"), "axes", "NC")
    refused(lambda: norm(mapped, target, 3, layout="NHWC"), "layout", "NHWC")
    refused(lambda: norm(mapped, tmp_path / "y.tif", 3), "target", "y.tif")
    refused(lambda: norm(mapped, tmp_path / "no" / "y.npy", 3), "target", "no")
    refused(lambda: norm(mapped, np.empty(3), 3), "target", "(3,)")
    refused(lambda: norm(mapped, np.empty(SHAPE), 3), "target", "float64")
    refused(lambda: norm(x, x, 3), "target", "overlap")
    refused(lambda: norm(x.astype(complex), target, 3), "source", "complex")

    class Ends:
        shape, dtype = (4, 6, 8), np.dtype("f4")

        def __getitem__(self, key: Any) -> Any:
            return np.zeros((4, 6, 8), "f4")[key][:2]

    refused(lambda: norm(Ends(), target, 3), "source", "ends early")


def _command(*args: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "groupnorm", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    x = _x()
    np.save(tmp_path / "x.npy", x)
    done = _command(
        *("run", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--groups", 3, "--memory", "100K"),
        *("--stats", tmp_path / "stats.npy"),
    )
    assert done.returncode == 0, done.stderr
    y, mean, rstd = groupnorm.group_norm(x, 3, return_statistics=True)
    assert_allclose(np.load(tmp_path / "y.npy"), y, rtol=0, atol=4e-6)
    assert_allclose(np.load(tmp_path / "stats.npy"), np.stack([mean, rstd]), rtol=1e-6)
    volume = np.random.default_rng(0).normal(100, 5, (20, 21, 22)).astype(np.float32)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "v.nii.gz")
    done = _command(
        "run", tmp_path / "v.nii.gz", "-o", tmp_path / "v.npy", "--memory", "20K", "--norm", "layer"
    )
    assert done.returncode == 0, done.stderr
    expected = groupnorm.group_norm(volume[None, None], 1)[0, 0]
    assert_allclose(np.load(tmp_path / "v.npy"), expected, rtol=0, atol=4e-6)
    for args, words in (
        (("x.npy", "-o", "y.nii", "--memory", "1G"), "y.nii"),
        (("x.npy", "-o", "x.npy", "--memory", "1G"), "two files"),
        (("x.npy", "-o", "z.npy", "--memory", "10"), "memory: must be"),
        (("x.npy", "-o", "z.npy", "--memory", "1G", "--norm", "ghost_batch"), "ghost_batch"),
        (("no.npy", "-o", "z.npy", "--memory", "1G"), "no.npy"),
    ):
        files = [tmp_path / a if "." in a else a for a in args]
        done = _command("run", *files)
        assert done.returncode == 2 and words in done.stderr, done
        assert not (tmp_path / "z.npy").exists()


# VmHWM, as ru_maxrss of a child begins with the peak of its parent.
MEASURE = """
import re, sys
import numpy as np, groupnorm, groupnorm.stream
def peak():
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) * 1024
np.load(sys.argv[1], mmap_mode="r"); groupnorm.group_norm(np.ones((1, 4, 4), "f4"), 2)
before = peak()
source = np.load(sys.argv[1], mmap_mode="r")
groupnorm.stream.group_norm(source, sys.argv[2], 4, memory=int(sys.argv[3]))
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    shape = (1, 16, 512, 4096)  # 134 MB
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype="f4", shape=shape)
    x[...] = np.arange(4096, dtype=np.float32)
    x.flush()
    budget = 24 << 20
    taken = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
        + [str(budget)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GROUPNORM_NUM_THREADS": "2"},
    )
    assert int(taken.stdout) <= budget, f"{int(taken.stdout) >> 20} MB of {budget >> 20} MB"
