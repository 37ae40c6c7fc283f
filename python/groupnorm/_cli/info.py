"""``info``: what this machine and this environment run."""

import argparse
import importlib.metadata
import json
import os
from typing import Any

import groupnorm

from .._core import caches, format_bytes
from .command import OK

_PACKAGES = (
    *("numpy", "torch", "ml_dtypes"),
    *("imagecodecs", "nibabel", "pillow", "pydicom", "tifffile"),
    *("matplotlib", "rich"),
    *("onnx", "onnxruntime"),
)


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="version, instruction sets, threads, caches, packages",
        description="Print the version, the instruction sets (targets) that this machine supports and "
        "the one in use, the number of threads, the cache sizes, and the versions of optional packages.",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one object: version targets target (null: GROUPNORM_TARGET is not available) threads "
        "caches (bytes) packages (null: not installed)",
    )
    parser.set_defaults(command=_info)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _info(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {
        **groupnorm.info(),
        "caches": caches(),
        "packages": {package: _version(package) for package in _PACKAGES},
    }
    if options.json:
        print(json.dumps(found))
        return OK
    asked = os.environ.get("GROUPNORM_TARGET", "")
    none = f"none: GROUPNORM_TARGET={asked} is not available here"
    names = {"l1d": "L1d", "l2": "L2", "l3": "L3"}
    sizes = ", ".join(f"{names[key]} {format_bytes(size)}" for key, size in found["caches"].items())
    packages = ", ".join(f"{name} {version or '-'}" for name, version in found["packages"].items())
    print(f"version  {found['version']}")
    print(f"targets  {', '.join(found['targets'])}")
    print(f"target   {found['target'] or none}")
    print(f"threads  {found['threads']}")
    print(f"caches   {sizes}")
    print(f"packages {packages}")
    return OK
