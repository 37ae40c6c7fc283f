"""torch's own group normalization on the engine: `enable`, for every model of the process.

The CPU kernels of aten::native_group_norm and its backward are ours from then on. nn.GroupNorm,
torch.nn.functional.group_norm and what is made of them, autograd and the dispatcher stay torch's.
docs/pytorch.md says what still goes to torch's kernels.
"""

import ctypes
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import _core
from . import _kernels
from ._private import cpu_keys, schema_of

# Of torch 2.10 to 2.14. The kernels take their arguments by place, so any other is refused.
_SCHEMAS = {
    "native_group_norm": "aten::native_group_norm(Tensor input, Tensor? weight, Tensor? bias,"
    " SymInt N, SymInt C, SymInt HxW, int group, float eps) -> (Tensor, Tensor, Tensor)",
    "native_group_norm_backward": "aten::native_group_norm_backward(Tensor grad_out, Tensor input,"
    " Tensor mean, Tensor rstd, Tensor? weight, SymInt N, SymInt C, SymInt HxW, int group,"
    " bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
}

installed = False  # whether the kernels are ours now: for reading

_lock = threading.RLock()
_wanted = False  # by enable
_blocks: set[object] = set()  # of override, that are under way
# torch's kernels, kept from before the override for what ours refuse; the operators that run them.
_torchs: dict[str, Any] = {}
_library: torch.library.Library | None = None
# Whoever is in a call of ours when it is removed returns through what torch made of it. So that
# stays for a while.
_removed: deque[Any] = deque(maxlen=64)


def _functions() -> list[int]:
    """The addresses of what the kernels call in libtorch; 0 for what is not needed and missing."""
    library = _kernels.libtorch()
    if library is None:
        raise RuntimeError("its library libtorch_cpu.so is not among the files of the package")
    addresses = []
    for name, needed in _core.torch_functions():
        function = getattr(library, name, None)
        if function is None and needed:
            raise RuntimeError(f"its libtorch_cpu has no function {name}")
        addresses.append(ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0)
    return addresses


def _check_schemas() -> None:
    for name, expected in _SCHEMAS.items():
        found = schema_of(name)
        if found != expected:
            raise RuntimeError(f"it has {found} in place of {expected}")


def _leave_to_torch(name: str) -> Callable[..., Any]:
    """The operator that runs torch's own kernel. Its refusals go by words: C has no exceptions."""
    kernel, keys = _torchs[name], cpu_keys()

    def run(*args: Any) -> tuple[Tensor, ...]:
        try:
            results: tuple[Tensor, ...] = kernel.call_boxed(keys, *args)
        except Exception as error:  # noqa: BLE001 - of torch, and raised by the kernel
            _core.torch_refuse(str(error) or type(error).__name__)
            return tuple(torch.empty(0) for _ in range(3))
        return results

    return run


def _prepare() -> None:
    """Finds what the kernels need of this torch; RuntimeError says what it has not."""
    global _library
    if _library is not None:
        return
    try:
        addresses = _functions()
        _check_schemas()
        for name in _SCHEMAS:
            _torchs[name] = torch.library.get_kernel(f"aten::{name}", "CPU")
    except (AttributeError, RuntimeError) as error:
        raise RuntimeError(
            "groupnorm.torch.enable: needs torch 2.10 or later, with the C functions and schemas"
            f" of 2.10 to 2.14; got torch {torch.__version__}: {error}"
        ) from error
    library = torch.library.Library("groupnorm", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(schema.replace("aten::", "torch_"))
        library.impl(f"torch_{name}", _leave_to_torch(name), "CPU")
    _draw_warning()
    _core.torch_link(addresses, _kernels.THREADS)
    _library = library


def _draw_warning() -> None:
    """Lets torch give its one warning about an override now.

    From C++ it would come by a way that Python's filters do not see.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        throwaway = torch.library.Library("aten", "IMPL")
        throwaway.impl("native_group_norm", _leave_to_torch("native_group_norm"), "CPU")
        del throwaway


def _apply() -> None:
    global installed
    on = _wanted or bool(_blocks)
    if on == installed:
        return
    if not on:
        _removed.append([torch.library.get_kernel(f"aten::{name}", "CPU") for name in _SCHEMAS])
    _core.torch_override(on)
    installed = on


def enable() -> None:
    """Puts the engine beneath torch's group normalization on CPUs, in the whole process.

    From now on torch.nn.GroupNorm, torch.nn.functional.group_norm and all that is made of them run
    the engine's kernels, forward and backward, in any model, without a change to it. Gradients use
    statistics in float64, whatever the dtype. What the kernels don't take goes to torch's own, and
    so does what torch refuses: its words are the same.

    Does nothing where it is so already. Off when groupnorm.torch is imported.

    Raises:
        RuntimeError: this torch has not what the kernels need (torch 2.10 or later, on Linux). The
            message says what is missing; nothing has changed.
    """
    global _wanted
    with _lock:
        _prepare()
        _wanted = True
        _apply()


def disable() -> None:
    """Gives torch its own kernels back, in the whole process; also within `override`.

    Graphs that exist stay valid: backward of a forward call on ours runs torch's kernel.
    """
    global _wanted
    with _lock:
        _wanted = False
        _blocks.clear()
        _apply()


def enabled(verbose: bool = False) -> bool:
    """Whether torch's group normalization runs the engine now.

    Args:
        verbose: also print what runs where, and how many calls went to which kernels so far.
    """
    if verbose:
        print(_description())
    return installed


@contextmanager
def override() -> Iterator[None]:
    """`enable` for the time of a with statement.

    In the whole process too: other threads run the engine meanwhile. The last of several such
    blocks to end gives torch its kernels back, unless `enable` was called.

    Raises:
        RuntimeError: as `enable`.
    """
    block = object()
    with _lock:
        _prepare()
        _blocks.add(block)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _blocks.discard(block)
            _apply()


def _description() -> str:
    forward, backward, left = _core.torch_calls()
    return f"""\
groupnorm.torch: {"enabled" if installed else "not enabled"}, torch {torch.__version__}
{forward} forward and {backward} backward calls of aten::native_group_norm on CPU tensors ran groupnorm
{left} calls were left to torch's kernels: empty tensors, eps below 0, other dtypes or mixes of them,
  memory that is not aligned
not seen here, and torch's: other devices; graphs of torch.compile, which takes the operator apart;
  second derivatives (create_graph=True); forward-mode derivatives"""
