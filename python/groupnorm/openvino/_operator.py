"""The operator: a group norm and its activation, evaluated by the engine."""

import contextlib
import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import openvino
from openvino import Type

from .._arrays import Array, as_array, as_float, as_integer
from .._blocks import grouped, normalize
from .._core import ACTIVATIONS, LAYOUTS

DTYPES = (Type.f32, Type.f16, Type.bf16, Type.f64)
_BYTES_PER_THREAD = 4 << 20


class GroupNorm(openvino.Op):
    """Normalizes groups of channels, each example by itself: groupnorm.group_norm as an operator.

    Inputs: x [N, C, ...], or [N, ..., C] by `layout`, of rank 2 or more; scale [C]; bias [C]. Each is
    f32, f16, bf16 or f64. Output: y, in shape and element type of x. It is computed with the threads
    of the stream, and has the bits of groupnorm.group_norm.

    An instance is a node. The class is the extension: ``core.add_extension(GroupNorm)``, before a
    model is read or imported that has the operator.

    Args:
        inputs: x, scale and bias: nodes or outputs of nodes. None: they are set later.
        num_groups: divides C.
        eps: finite and not negative.
        activation: "none", "relu", "silu", "gelu" (the exact one), "gelu_tanh" or "hard_swish".
        layout: "channels_first" or "channels_last", the order of the axes of x and y.

    Raises:
        TypeError: an argument or an input is of the wrong type.
        ValueError: an argument has the wrong value, or an input the wrong shape.
    """

    def __init__(
        self,
        inputs: Sequence[Any] | None = None,
        num_groups: int = 1,
        eps: float = 1e-5,
        activation: str = "none",
        layout: str = "channels_first",
    ) -> None:
        super().__init__(self)
        self._attributes: dict[str, Any] = {
            "num_groups": as_integer("num_groups", num_groups),
            "eps": as_float("eps", eps),
            "activation": activation,
            "layout": layout,
        }
        if inputs is not None:
            self.set_arguments(
                [getattr(each, "output", lambda _, own=each: own)(0) for each in inputs]
            )
            self.constructor_validate_and_infer_types()

    def visit_attributes(self, visitor: Any) -> bool:
        """Shows the attributes to who saves or loads the node."""
        visitor.on_attributes(self._attributes)
        return True

    def clone_with_new_inputs(self, new_inputs: Sequence[Any]) -> "GroupNorm":
        """Returns a node with the same attributes."""
        return GroupNorm(new_inputs, **self._attributes)

    def validate_and_infer_types(self) -> None:
        """Checks attributes and inputs, as far as they are known, and sets type and shape of y."""
        given = self._attributes
        for name, known in (("activation", ACTIVATIONS), ("layout", LAYOUTS)):
            if given[name] not in known:
                names = ", ".join(map(repr, known))
                raise ValueError(f"{name}: must be one of {names}; got {given[name]!r}")
        if not (math.isfinite(given["eps"]) and given["eps"] >= 0):
            raise ValueError(f"eps: must be finite and not negative; got {given['eps']}")
        if self.get_input_size() != 3:
            raise ValueError(f"inputs: must be x, scale and bias; got {self.get_input_size()}")
        for i, name in enumerate(("x", "scale", "bias")):
            dtype = self.get_input_element_type(i)
            if dtype not in DTYPES and dtype != Type.dynamic:
                raise TypeError(
                    f"{name}: must be f32, f16, bf16 or f64; got {dtype.get_type_name()}"
                )
        self._check_shapes()
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def _check_shapes(self) -> None:
        groups = self._attributes["num_groups"]
        x = self.get_input_partial_shape(0)
        channels = None
        if x.rank.is_static:
            if len(x) < 2:
                raise ValueError(f"x: must be of rank 2 or more; got shape {x}")
            axis = 1 if self._attributes["layout"] == "channels_first" else len(x) - 1
            channels = x[axis].get_length() if x[axis].is_static else None
        if groups < 1 or (channels is not None and channels % groups != 0):
            raise ValueError(
                f"num_groups: must be at least 1 and divide the channels of x, {x}; got {groups}"
            )
        for i, name in ((1, "scale"), (2, "bias")):
            shape = self.get_input_partial_shape(i)
            wanted = openvino.PartialShape([-1 if channels is None else channels])
            if not shape.compatible(wanted):
                raise ValueError(f"{name}: must have shape {wanted} for this x, {x}; got {shape}")

    def has_evaluate(self) -> bool:
        """Returns whether `evaluate` works, for OpenVINO's CPU plugin."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Computes outputs[0] of the inputs, tensors. Any number of threads may call it at once."""
        given = self._attributes
        x, out = as_array("x", _array(inputs[0])), outputs[0]
        if list(out.shape) != list(x.shape):
            out.shape = x.shape
        with _unpinned():
            normalize(
                grouped(x.shape, given["num_groups"], given["layout"]),
                x,
                _param(inputs[1], x),
                _param(inputs[2], x),
                given["eps"],
                given["activation"],
                _array(out),
                (False, False),
                threads=_threads(x.nbytes),
            )
        return True


def _array(tensor: Any) -> Array:
    """The elements of a tensor, in its memory."""
    data: Array = tensor.data
    if tensor.element_type == Type.bf16:  # which says float16
        return data.view(bfloat16())
    return data


def _param(tensor: Any, x: Array) -> Array:
    """scale or bias in a dtype that the engine takes beside x. Where it lies is not aligned, maybe:
    so it is in models that come from OpenVINO's cache, and then it is copied on the way.
    """
    return _array(tensor).astype("float64" if x.dtype == numpy.float64 else "float32", copy=False)


@functools.cache
def bfloat16() -> numpy.dtype[Any]:
    """NumPy's bfloat16."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f"bf16: {error}: pip install groupnorm[openvino]") from error
    return numpy.dtype(ml_dtypes.bfloat16)


_CORES = os.sched_getaffinity(os.getpid()) if hasattr(os, "sched_getaffinity") else set()


@contextlib.contextmanager
def _unpinned() -> Iterator[None]:
    """The main thread on the cores that it had when this module was imported.

    OpenVINO pins whichever thread infers to one core, for as long as that takes. The engine's threads
    run where the main thread may: on that core, too.
    """
    own = os.sched_getaffinity(0) if _CORES and threading.get_native_id() == os.getpid() else _CORES
    if len(own) != 1 or own == _CORES:
        yield
        return
    os.sched_setaffinity(0, _CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@functools.cache
def _max_concurrency() -> Callable[[None], int] | None:
    """What tbb::this_task_arena::max_concurrency() calls, in the library that OpenVINO has loaded."""
    noload = 4  # RTLD_NOLOAD
    try:
        library = ctypes.PyDLL("libtbb.so.12", mode=noload)
        function = library._ZN3tbb6detail2r115max_concurrencyEPKNS0_2d115task_arena_baseE
    except (AttributeError, OSError):  # an OpenVINO that has other threads
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
    return function


def _threads(size: int) -> int | None:
    """How many threads normalize so many bytes: at most those of the stream that calls, which are
    INFERENCE_NUM_THREADS over its NUM_STREAMS.

    None where these are not known: then as many as groupnorm.set_num_threads says.
    """
    function = _max_concurrency()
    if function is None:
        return None
    # OpenVINO's own threads still spin on their cores, and one of ours waits for a core as long as
    # it takes to normalize some megabytes.
    return min(function(None), max(1, size // _BYTES_PER_THREAD))
