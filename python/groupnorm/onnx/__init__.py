"""The engine in ONNX Runtime: operators in a library, and models that use them.

    import groupnorm.onnx, onnxruntime
    model, report = groupnorm.onnx.convert("model.onnx")
    options = onnxruntime.SessionOptions()
    groupnorm.onnx.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

Domain ``ai.groupnorm``, version 1: GroupNorm, GroupNormRelu, GroupNormSilu, GroupNormGelu,
GroupNormGeluTanh and GroupNormHardSwish take X [N, C, ...], scale [C] and bias [C], and the
attributes num_groups and epsilon (1e-5). ONNX Runtime 1.18 or later.
"""

import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _core
from ._report import Left, Report

if TYPE_CHECKING:
    import onnx

__all__ = ["Left", "Report", "convert", "library_path", "register", "translation_table"]


def library_path() -> str:
    """Returns where the library lies that ONNX Runtime loads, for any language to register.

    Raises:
        FileNotFoundError: groupnorm was built without it (GROUPNORM_ORT=OFF).
    """
    folder = pathlib.Path(_core.__file__).parent
    for path in sorted(folder.glob("*groupnorm_ort.*")):
        return str(path)
    raise FileNotFoundError(
        f"{folder}: has no libgroupnorm_ort; this groupnorm was built with GROUPNORM_ORT=OFF"
    )


def register(session_options: Any, override: bool = False) -> None:
    """Makes the operators known to the sessions made with ``session_options``.

    Once for each: ONNX Runtime refuses a second time.

    Args:
        session_options: an ``onnxruntime.SessionOptions``.
        override: also compute GroupNormalization (from opset 21 on) and InstanceNormalization of
            models as they are, in place of ONNX Runtime's own. Experimental.
    """
    if override:
        session_options.add_session_config_entry("groupnorm.override", "1")
    session_options.register_custom_ops_library(library_path())


def convert(
    model: "onnx.ModelProto | str | os.PathLike[str]", fallback: bool = True
) -> tuple["onnx.ModelProto", Report]:
    """Puts operators of this package in place of the group normalizations of a model.

    It finds GroupNormalization of opset 21 and what torch's exporters write before it
    (InstanceNormalization between two Reshapes, with Mul and Add behind), in the graph, in its
    subgraphs and in functions; and takes in a relu, silu, gelu or hard_swish behind it that alone
    uses its result. Weights stay where they are. Norms in float16 and bfloat16 are computed in
    float32, as ONNX Runtime does on most CPUs.

    Args:
        model: a ModelProto, which is left as it is, or a file. Of a file, weights in files beside
            it are not read; the result refers to them by the same names.
        fallback: give each operator a body of standard operators, a function in the model, which
            ONNX Runtime takes where the library is not registered.

    Returns:
        The new model, and what was converted and what not, and why.

    Raises:
        ImportError: the package onnx is missing.
        TypeError: model is neither a ModelProto nor a path.
    """
    try:
        from ._convert import convert as run
    except ImportError as error:
        raise ImportError(f"{error}: pip install groupnorm[onnx]") from error
    return run(model, fallback)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ``custom_translation_table`` with which torch.onnx.export writes our operators.

        torch.onnx.export(model, (x,), custom_translation_table=translation_table())

    It holds group_norm of torch, and of groupnorm.torch with its activation. For files that run
    without the library too, export without it and `convert`.
    """
    from ._torch import translation_table as table

    return table()
