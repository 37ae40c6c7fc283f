"""The engine beneath ExecuTorch's group and layer normalization: `load`, for every model.

    import groupnorm.executorch
    groupnorm.executorch.load()
    method = executorch.runtime.Runtime.get().load_program("model.pte").load_method("forward")

Kernels must be compiled against the headers of the runtime that they run in, so `load` compiles
one file when it meets a version of executorch for the first time, and keeps the library.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Iterator

from . import _core

__all__ = ["load"]

# Whose headers and registry this release was tested with.
_RUNTIME = "1.5"
_CMAKE = (3, 28)  # whose targets the package of executorch has from there on

_FOLDER = pathlib.Path(_core.__file__).parent  # with what CMake has installed
_SOURCES = _FOLDER / "integrations" / "executorch"
_LIBRARY = "libgroupnorm_executorch.so"

_lock = threading.Lock()
_loaded: pathlib.Path | None = None


def load(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Makes methods that are loaded from now on compute group and layer norms by the engine.

    In the whole process, whatever loads them: executorch.runtime, the pybindings, C++. The .pte
    files stay as they were exported. Methods that are loaded already keep the kernels that they
    have. A second call does nothing.

    The first call for a version of executorch and of groupnorm compiles the kernels, which takes
    some seconds, a C++20 compiler, and CMake 3.28 or later (``pip install cmake``) with ninja or
    make. Later calls, also in other processes, take the library that it has kept.

    Args:
        cache_dir: where libraries are kept; by default GROUPNORM_CACHE_DIR, else ``groupnorm`` in
            XDG_CACHE_HOME or ``~/.cache``.

    Returns:
        The library that was loaded.

    Raises:
        ImportError: the package executorch is not installed.
        RuntimeError: its version is not one that this groupnorm was tested with; a compiler, CMake
            or what it builds with is missing; the build fails. The message says what to do.
        OSError: the cache cannot be written.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            version, runtime = _find_runtime()
            path = _cache(cache_dir) / _key(version, runtime) / _LIBRARY
            _register(_opened(path) or _built(runtime, path))
            _loaded = path
        return _loaded


def _find_runtime() -> tuple[str, pathlib.Path]:
    """Version and folder of the package executorch."""
    spec = importlib.util.find_spec("executorch")
    try:
        version = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "groupnorm.executorch.load: the package executorch is not installed:"
            f" pip install 'executorch=={_RUNTIME}.*'"
        )
    if not re.match(rf"{re.escape(_RUNTIME)}(\D|$)", version):
        raise RuntimeError(
            f"groupnorm.executorch.load: this groupnorm is for executorch {_RUNTIME}, and"
            f" {version} is installed: pip install 'executorch=={_RUNTIME}.*', or a groupnorm for"
            f" {version}"
        )
    return version, pathlib.Path(spec.submodule_search_locations[0]).resolve()


def _cache(given: str | os.PathLike[str] | None) -> pathlib.Path:
    if given is None:
        given = os.environ.get("GROUPNORM_CACHE_DIR")
    if given is not None:
        return pathlib.Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (
        pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    ) / "groupnorm"


def _key(version: str, runtime: pathlib.Path) -> str:
    """Names what a library is compiled of, and for."""
    digest = hashlib.sha256()
    digest.update(f"{runtime}\0{platform.machine()}\0".encode())
    for path in sorted([*_SOURCES.iterdir(), *(_FOLDER / "include").rglob("*.h")]):
        digest.update(path.read_bytes())
    return f"executorch-{version}-groupnorm-{_core.version()}-{digest.hexdigest()[:16]}"


def _opened(path: pathlib.Path) -> ctypes.PyDLL | None:
    """The library; None where there is none, or one that this machine cannot load."""
    try:
        return ctypes.PyDLL(str(path))
    except OSError:
        return None


def _register(library: ctypes.PyDLL) -> None:
    # A PyDLL holds the GIL: no other thread of Python registers or loads meanwhile, and a copy of
    # this module that has another lock waits.
    register = library.groupnorm_register_executorch_kernels
    register.argtypes, register.restype = [ctypes.c_void_p], None
    register(_core.executorch_engine())


def _built(runtime: pathlib.Path, path: pathlib.Path) -> ctypes.PyDLL:
    """Compiles the library to `path`, where another process may do the same at the same time."""
    cmake, (generator, make), compiler = _find_cmake(), _find_generator(), _find_compiler()
    options = [
        *("-G", generator, f"-DCMAKE_MAKE_PROGRAM={make}", f"-DCMAKE_CXX_COMPILER={compiler}"),
        *("-DGROUPNORM_EXECUTORCH_PLUGIN=ON", f"-Dexecutorch_DIR={runtime / 'share/cmake'}"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        _run([cmake, "-S", str(_SOURCES), "-B", folder, *options], path)
        _run([cmake, "--build", folder], path)
        os.replace(pathlib.Path(folder) / _LIBRARY, path)
    return ctypes.PyDLL(str(path))


def _run(command: list[str], path: pathlib.Path) -> None:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        log = path.with_name("build.log")
        log.write_text(done.stdout)
        last = "\n".join(done.stdout.rstrip().splitlines()[-12:])
        raise RuntimeError(
            f"groupnorm.executorch.load: '{shlex.join(command)}' failed; all of its output is in"
            f" {log}, and ends with\n{last}"
        )


# --- What it builds with


def _programs(name: str) -> Iterator[str]:
    """In PATH, where this Python has its scripts (its environment need not be active), or in the
    package of PyPI of that name."""
    folders = [None, sysconfig.get_path("scripts")]
    package = importlib.util.find_spec(name)
    for each in (package.submodule_search_locations if package else None) or ():
        folders.append(str(pathlib.Path(each, "data", "bin")))
    yield from filter(None, (shutil.which(name, path=folder) for folder in folders))


def _find_cmake() -> str:
    found = "there is none"
    for cmake in _programs("cmake"):
        said = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)\.(\d+)", said.stdout)
        if version and (int(version[1]), int(version[2])) >= _CMAKE:
            return cmake
        found = f"{cmake} is {version[0] if version else 'of an unknown version'}"
    raise RuntimeError(
        f"groupnorm.executorch.load: needs CMake {_CMAKE[0]}.{_CMAKE[1]} or later ({found}):"
        " pip install cmake"
    )


def _find_compiler() -> str:
    given = shlex.split(os.environ.get("CXX", ""))
    for name in given[:1] or ("c++", "g++", "clang++"):
        if compiler := shutil.which(name):
            return ";".join([compiler, *given[1:]])  # a list of CMake: CXX may be "ccache g++"
    what = f"CXX names '{given[0]}', which is not there" if given else "there is none"
    raise RuntimeError(
        f"groupnorm.executorch.load: needs a C++20 compiler ({what}): install g++ or clang, on"
        " Debian and Ubuntu by apt-get install g++, or name one in CXX"
    )


def _find_generator() -> tuple[str, str]:
    for name, generator in (("ninja", "Ninja"), ("make", "Unix Makefiles")):
        if program := next(_programs(name), None):
            return generator, program
    raise RuntimeError(
        "groupnorm.executorch.load: needs ninja or make (there is none): pip install ninja"
    )
