"""ExecuTorch's group and layer normalization on the engine: results, what load() needs, and refuses."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
from kinds import CHANNELS, EARLY, GROUPS, NEGATIVE, PATH, PLAIN, SHAPES, VOLUME, Kind, kinds, net
from torch import Tensor

import groupnorm
import groupnorm.executorch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import norms

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = kinds()
EMPTY = [kind for kind in KINDS if 0 in SHAPES[kind.shape]]
FULL = [kind for kind in KINDS if kind not in (*EMPTY, VOLUME)]
ANY = [kind for kind in KINDS if kind.shape == "any"]  # which take sizes up to these
SIZES = [(1, CHANNELS, 1, 1), (4, CHANNELS, 128, 1), (2, CHANNELS, 31, 17), (4, CHANNELS, 128, 128)]
THREADS = (1, 2, 3)


@dataclass
class Call:
    """A call of a method, and what it returned: y, mean and rstd; or the words of its error."""

    method: str
    x: Tensor
    threads: int = 1
    before: Any = None
    after: Any = None


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where one library is compiled, for all tests that can do with it."""
    return tmp_path_factory.mktemp("cache")


def python(
    arguments: Sequence[str | pathlib.Path], cache: pathlib.Path, path: str = "", **environment: str
) -> str:
    """What a program prints; `path` comes before what this Python finds."""
    paths = os.pathsep.join(p for p in (path, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "GROUPNORM_CACHE_DIR": str(cache), "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- Results


def run(calls: Sequence[Call], folder: pathlib.Path, cache: pathlib.Path, load: bool) -> list[Any]:
    task, out = folder / "task.pt", folder / "out.pt"
    what = [(call.method, [call.x], call.threads) for call in calls]
    torch.save({"calls": what, "load": load, "out": str(out)}, task)
    python([HERE / "run_methods.py", task], cache)
    results: list[Any] = torch.load(out)
    return results


@pytest.fixture(scope="session")
def calls(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> list[Call]:
    """All of them, before load() in one process and after it in another: each starts for seconds."""
    made = [Call(kind.name, kind.x(mean)) for kind in (*EMPTY, *FULL) for mean in (0, 1000)]
    made += [Call(kind.name, kind.x(1e5)) for kind in FULL if kind.dtype in ("f32", "f64")]
    made += [
        Call(kind.name, kind.x(3, shape=shape), threads)
        for kind in ANY
        for shape in SIZES
        for threads in THREADS
    ]
    made += [Call(EARLY, PLAIN.x(1e5)), Call(NEGATIVE, PLAIN.x())]
    # Not centred, as images often are not.
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 20
    made += [Call("net", image)]
    for load in (False, True):
        results = run(made, tmp_path_factory.mktemp("calls"), cache, load)
        for call, result in zip(made, results, strict=True):
            setattr(call, "after" if load else "before", result)
    return made


def calls_of(calls: Sequence[Call], *methods: str) -> list[Call]:
    return [call for call in calls if call.method in methods]


def as_numpy(tensor: Tensor) -> numpy.ndarray:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        array: numpy.ndarray = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array
    return tensor.numpy()


def exact(kind: Kind, x: Tensor) -> norms.Exact:
    weight, bias = (None if p is None else as_numpy(p) for p in (kind.weight(), kind.bias()))
    if kind.axes:
        return norms.exact("layer", as_numpy(x), weight, bias, axes=kind.axes, eps=1e-5)
    return norms.exact("group", as_numpy(x), weight, bias, groups=GROUPS, eps=1e-5)


def assert_exact(kind: Kind, x: Tensor, outputs: Any) -> None:
    """y within the engine's bound; mean and rstd rounded once, to the dtype of x."""
    assert not isinstance(outputs, str), outputs
    y, mean, rstd = outputs
    wanted = exact(kind, x)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    large = 1 + abs(wanted.mean) * wanted.rstd
    norms.assert_near(as_numpy(y), wanted, large_mean=float(large.max()))
    # One rounding to the dtype, and what the sums are off by: those in f32 by less than that again.
    sums = 16 * norms.EPS64 * large if x.dtype == torch.float64 else norms.EPS32 / 2
    bound = torch.finfo(x.dtype).eps / 2 + sums
    for got, true, unit in (
        (mean, wanted.mean, abs(wanted.mean) + 1 / wanted.rstd),
        (rstd, wanted.rstd, wanted.rstd),
    ):
        assert (got.dtype, got.shape) == (x.dtype, (*true.shape, *[1] * kind.axes))
        error = abs(as_numpy(got).astype("float64").reshape(true.shape) - true)
        assert (error <= bound * unit).all()


@pytest.mark.parametrize("kind", FULL, ids=lambda kind: kind.name)
def test_computes_the_exact_result_at_any_mean(calls, kind):
    mine = calls_of(calls, kind.name)
    assert len(mine) >= 2
    for call in mine:
        assert_exact(kind, call.x, call.after)


@pytest.mark.parametrize("kind", EMPTY, ids=lambda kind: kind.name)
def test_has_a_mean_of_0_and_no_rstd_where_there_is_nothing(calls, kind):
    for call in calls_of(calls, kind.name):
        y, mean, rstd = call.after
        assert y.shape == call.x.shape
        assert (mean == 0).all() and rstd.isnan().all()
        for ours, portable in zip(call.after, call.before, strict=True):
            assert ours.dtype == portable.dtype and ours.shape == portable.shape
            assert torch.allclose(ours, portable, equal_nan=True)


def test_the_kernel_before_refuses_what_ours_takes_and_has_no_digit_at_a_large_mean(calls):
    """So that the tests above have something to find."""
    for kind in FULL:
        for call in calls_of(calls, kind.name):
            # Where there is but one position, both layouts are one.
            refused = kind.parameters == "wide" or (kind.last and kind.shape != "one")
            assert isinstance(call.before, str) == refused, kind.name
    assert not (abs(calls_of(calls, PLAIN.name)[2].before[0]) < 10).all()


def test_methods_that_are_loaded_already_keep_their_kernels(calls):
    [early], plain = calls_of(calls, EARLY), calls_of(calls, PLAIN.name)[2]
    assert torch.allclose(early.after[0], plain.before[0], equal_nan=True)
    assert not torch.allclose(plain.after[0], plain.before[0], equal_nan=True)


def test_an_eps_below_0_stays_the_portable_kernels(calls):
    [call] = calls_of(calls, NEGATIVE)
    for ours, portable in zip(call.after, call.before, strict=True):
        assert torch.equal(ours, portable) and ours.isfinite().all()


def test_has_the_bits_of_the_numpy_call_on_any_number_of_threads(calls):
    assert {kind.last for kind in ANY} == {False, True}
    for kind in ANY:
        weight, bias = (p.numpy() for p in (kind.weight(), kind.bias()))
        for call in calls_of(calls, kind.name)[3:]:
            x = call.x.movedim(1, -1) if kind.last else call.x
            layout = "channels_last" if kind.last else "channels_first"
            y = groupnorm.group_norm(x.numpy(), GROUPS, weight, bias, 1e-5, layout=layout)
            y = numpy.moveaxis(y, -1, 1) if kind.last else y
            assert (call.after[0].numpy() == y).all(), (kind.name, call.x.shape, call.threads)


def test_a_model_of_xnnpack_is_no_further_from_the_exact_result_than_before(calls):
    [call] = calls_of(calls, "net")
    with torch.no_grad():
        wanted = net().double()(call.x.double())
    before, after = (float((y.double() - wanted).abs().max()) for [y] in (call.before, call.after))
    assert 0 < after <= before < 1e-5


# --- load()

LOAD = "import groupnorm.executorch; path = groupnorm.executorch.load(); print(path)"


def library(cache: pathlib.Path, **environment: str) -> pathlib.Path:
    """The one in a cache, which is made where it is not there."""
    return pathlib.Path(python(["-c", LOAD], cache, **environment))


def test_keeps_what_it_has_compiled_and_compiles_it_again_where_it_cannot_be_loaded(
    cache, tmp_path
):
    path = library(cache)
    assert path.parent.parent == cache
    assert groupnorm.__version__ in path.parent.name
    made = path.stat().st_mtime_ns
    assert library(cache, CXX="/nowhere") == path
    assert path.stat().st_mtime_ns == made
    broken = tmp_path / path.relative_to(cache)
    broken.parent.mkdir()
    broken.write_text("no library")
    assert library(tmp_path) == broken
    assert broken.stat().st_size > 1000 and list(broken.parent.iterdir()) == [broken]


def test_two_processes_at_once_have_a_library_each_can_load(tmp_path):
    command = [sys.executable, "-c", LOAD]
    environment = {**os.environ, "GROUPNORM_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = [pathlib.Path(process.communicate()[0].strip()) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1] and list(paths[0].parent.iterdir()) == [paths[0]]


def test_does_nothing_a_second_time_by_whatever_path_and_thread(cache, tmp_path):
    """Another module object, and another copy of the library, know nothing of the first."""
    path = library(cache)
    shutil.copytree(path.parent, tmp_path / path.parent.name)
    code = f"""
import importlib, sys, threading
import groupnorm.executorch
first = groupnorm.executorch
del sys.modules["groupnorm.executorch"]
second = importlib.import_module("groupnorm.executorch")
assert first is not second
calls = [first.load, second.load, first.load, lambda: second.load({str(tmp_path)!r})] * 4
threads = [threading.Thread(target=call) for call in calls]
for thread in threads: thread.start()
for thread in threads: thread.join()
third = importlib.reload(second)
print(third.load({str(tmp_path)!r}))
"""
    assert python(["-c", code], cache) == str(tmp_path / path.relative_to(cache))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """groupnorm.executorch, where nothing but what a test adds is found."""
    assert groupnorm.executorch._loaded is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cmake" else find(name)
    )
    return groupnorm.executorch


def script(folder: pathlib.Path, name: str, text: str = "exit 1") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_says_what_is_missing(module, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"needs CMake 3\.28 .*\(there is none\): pip install cmake"
    ):
        module.load(tmp_path)
    script(tmp_path, "cmake", "echo cmake version 3.25.1")
    with pytest.raises(RuntimeError, match=r"cmake is 3\.25\): pip install cmake"):
        module.load(tmp_path)
    script(tmp_path, "cmake", "echo cmake version 4.1.0; echo no more; exit 3")
    with pytest.raises(RuntimeError, match="needs ninja or make"):
        module.load(tmp_path)
    script(tmp_path, "make")
    with pytest.raises(RuntimeError, match=r"needs a C\+\+20 compiler \(there is none\): install"):
        module.load(tmp_path)
    monkeypatch.setenv("CXX", "absent-c++ -O2")
    with pytest.raises(RuntimeError, match="CXX names 'absent-c\\+\\+', which is not there"):
        module.load(tmp_path)
    script(tmp_path, "absent-c++")
    with pytest.raises(RuntimeError, match=r"failed; all of its output is in .*build\.log") as told:
        module.load(tmp_path)
    assert str(told.value).endswith("no more")
    assert module._loaded is None


def test_says_that_the_package_is_missing(module, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'executorch==1\.5\.\*'"):
        module.load(tmp_path)


@pytest.mark.parametrize("version", ["0.7.0", "1.4.9", "1.50.0", "2.0.0"])
def test_refuses_a_version_that_it_was_not_tested_with(tmp_path, cache, version):
    (tmp_path / "executorch").mkdir()
    (tmp_path / "executorch/__init__.py").touch()
    info = tmp_path / f"executorch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: executorch\nVersion: {version}\n")
    code = "import groupnorm.executorch as g\ntry: g.load()\nexcept RuntimeError as e: print(e)"
    said = python(["-c", code], cache, path=str(tmp_path))
    assert f"is for executorch 1.5, and {version} is installed: pip install" in said


def test_says_where_the_cache_cannot_be(module, monkeypatch, tmp_path):
    for name in ("cmake", "make", "c++"):
        script(tmp_path, name, "echo cmake version 4.1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        module.load(tmp_path / "file")


def test_keeps_libraries_where_the_system_keeps_such_files(monkeypatch, tmp_path):
    cache = groupnorm.executorch._cache
    for name in ("GROUPNORM_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache(None) == tmp_path / ".cache/groupnorm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/user")
    assert cache(None) == pathlib.Path("/var/cache/user/groupnorm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as its specification has it
    assert cache(None) == tmp_path / ".cache/groupnorm"
    monkeypatch.setenv("GROUPNORM_CACHE_DIR", str(tmp_path / "mine"))
    assert cache(None) == tmp_path / "mine"
    assert cache("~/given") == tmp_path / "given"


def test_the_example_runs_a_model_from_cpp(tmp_path):
    """Against an installed groupnorm, as scripts/release unpacks one."""
    prefix = pathlib.Path(os.environ.get("GROUPNORM_PREFIX", ROOT / "build/unpacked/usr"))
    if not prefix.is_dir():
        pytest.skip(f"no groupnorm is installed in {prefix}")
    _, runtime = groupnorm.executorch._find_runtime()
    cmake, (generator, _) = (
        groupnorm.executorch._find_cmake(),
        groupnorm.executorch._find_generator(),
    )
    for command in (
        [
            *(cmake, "-S", ROOT / "integrations/executorch", "-B", tmp_path, "-G", generator),
            f"-DCMAKE_PREFIX_PATH={prefix};{runtime}",
        ],
        [cmake, "--build", tmp_path],
        [tmp_path / "example", PATH],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("ok\n")
