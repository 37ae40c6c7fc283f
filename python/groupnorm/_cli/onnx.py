"""``onnx``: an ONNX model with operators of this package in place of its norms."""

import argparse
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import groupnorm.onnx

from .command import OK, BadInput, require
from .pending import pending


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "onnx",
        help="replace the norms of an ONNX model by operators of this package",
        description="Replace the group normalizations of an ONNX model, and the activations that follow "
        "them, by operators of domain ai.groupnorm, and report which were replaced and why others were "
        "not. ONNX Runtime runs the result with the library that --library names, or without it.",
    )
    parser.add_argument("input", nargs="?", metavar="IN.onnx", help="the model")
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="the new model")
    parser.add_argument(
        "--no-fallback",
        action="store_true",
        help="omit the functions that let the result run without the library",
    )
    parser.add_argument(
        "--library", action="store_true", help="print the path of the library and exit"
    )
    parser.set_defaults(command=_onnx)


def _onnx(options: argparse.Namespace) -> int:
    if options.library:
        try:
            print(groupnorm.onnx.library_path())
        except FileNotFoundError as error:
            raise BadInput(str(error)) from None
        return OK
    if options.input is None or options.output is None:
        raise BadInput("IN.onnx and -o OUT.onnx are required")
    onnx = require("onnx", "onnx", "onnx")
    try:
        model, report = groupnorm.onnx.convert(options.input, not options.no_fallback)
    except OSError as error:
        raise BadInput(f"{options.input}: {error.strerror or error}") from None
    except Exception as error:  # of protobuf, under a name of its own in each implementation
        if type(error).__name__ != "DecodeError":
            raise
        raise BadInput(f"{options.input}: is not an ONNX model") from None
    with pending(pathlib.Path(options.output)) as temporary:
        temporary.write_bytes(model.SerializeToString())
        _copy_weights(_files_of(onnx, model), options.input, options.output)
    print(report)
    return OK


def _files_of(onnx: Any, model: Any) -> list[str]:
    """The files that hold weights of a model, relative to it."""
    tensors: Iterable[Any] = onnx.external_data_helper._get_all_tensors(model)
    return sorted(
        {
            entry.value
            for tensor in tensors
            if tensor.data_location == onnx.TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _copy_weights(names: Iterable[str], source: str, target: str) -> None:
    """Puts the files that a model refers to beside the new one; those of others stay."""
    here, there = pathlib.Path(source).parent.resolve(), pathlib.Path(target).parent.resolve()
    if here == there:
        return
    for name in names:
        if not (here / name).resolve().is_relative_to(here):
            raise BadInput(f"{source}: refers to {name}, outside its folder")
        if (there / name).exists():
            raise BadInput(f"{there / name}: exists, and the new model needs a file of that name")
    for name in names:
        try:
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            with (
                (here / name).open("rb") as old,
                pending(there / name) as temporary,
                temporary.open("wb") as new,
            ):
                shutil.copyfileobj(old, new)
        except OSError as error:
            raise BadInput(f"{error.filename or here / name}: {error.strerror or error}") from None
