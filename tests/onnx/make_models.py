"""Writes models/: what torch's two exporters make of one norm and an activation, by torch 2.13.

    python tests/onnx/make_models.py

NAME.onnx is exporter-opset-activation, with the marks `plain` (no scale, no bias), `dynamic` (N, H
and W are symbols), `raw` (not optimized) and `half` (float16). x is [2, 8, 6, 6], in 4 groups.
"""

import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "hard_swish": nn.Hardswish,
}
MODELS = [
    *("script-17-none", "script-17-none-plain", "script-17-silu-dynamic", "script-17-silu-half"),
    *("script-17-gelu", "script-17-gelu_tanh", "script-20-gelu", "script-18-hard_swish"),
    *("script-18-relu-dynamic", "script-18-silu-plain-dynamic"),
    *("dynamo-18-none", "dynamo-18-none-plain", "dynamo-18-silu-dynamic", "dynamo-18-gelu"),
    *("dynamo-18-gelu_tanh", "dynamo-20-relu-raw", "dynamo-20-silu-plain-dynamic-raw"),
    *("dynamo-20-gelu_tanh", "dynamo-20-silu-half", "dynamo-20-hard_swish"),
    *("dynamo-21-none", "dynamo-21-none-plain", "dynamo-21-silu-dynamic", "dynamo-22-relu"),
    *("dynamo-23-gelu", "dynamo-24-silu", "dynamo-24-gelu_tanh"),
]


def make(name: str) -> onnx.ModelProto:
    exporter, opset, activation, *marks = name.split("-")
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, affine="plain" not in marks)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(norm, ACTIVATIONS[activation]()).eval()
    x = torch.randn(2, 8, 6, 6)
    if "half" in marks:
        model, x = model.half(), x.half()
    names: dict[str, Any] = {
        "input_names": ["x"],
        "output_names": ["y"],
        "opset_version": int(opset),
    }
    if exporter == "script":
        sizes = {"x": {0: "n", 2: "h", 3: "w"}} if "dynamic" in marks else None
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            torch.onnx.export(model, (x,), file.name, dynamo=False, dynamic_axes=sizes, **names)
            return onnx.load(file.name)
    dims = {i: torch.export.Dim(size) for i, size in ((0, "n"), (2, "h"), (3, "w"))}
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        dynamic_shapes=(dims,) if "dynamic" in marks else None,
        optimize="raw" not in marks,
        verbose=False,
        **names,
    )
    assert program is not None
    return program.model_proto


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    folder = pathlib.Path(__file__).parent / "models"
    for name in MODELS:
        model = make(name)
        for node in model.graph.node:  # where in the program it comes from
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        del model.graph.metadata_props[:]
        onnx.save(model, folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
