"""NIfTI-1 and NIfTI-2 in one file, as it is or in gzip, by nibabel."""

import gzip
import math
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from .command import BadInput, format_shape, require
from .format import Format, How, cut_short
from .tensor import Result, Tensor, as_float, rescaled

_MOST_AXES = 7
_MOST_IN_NIFTI1 = 32767  # elements of an axis
_GZIP = b"\x1f\x8b"


def is_gzip(head: bytes) -> bool:
    return head[:2] == _GZIP


def _begins(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def open_plain(path: Path) -> IO[bytes]:
    """The file as it is, or what is in its gzip."""
    with open(path, "rb") as file:
        packed = is_gzip(file.read(2))
    return cast(IO[bytes], gzip.open(path)) if packed else open(path, "rb")


def _load(path: Path, file: IO[bytes]) -> Any:
    nibabel = require("nibabel", "io", f"'{path}'")
    head = file.read(8)
    file.seek(0)
    kind = nibabel.Nifti1Image if head[4:8] not in (b"n+2\0", b"ni2\0") else nibabel.Nifti2Image
    image = kind.from_file_map({"image": nibabel.FileHolder(fileobj=file)})
    if image.header["magic"].item()[:2] == b"ni":
        raise BadInput(
            f"'{path}': is a NIfTI header whose data lie in another file, .img; save it as .nii"
        )
    return image


def _read(path: Path, how: How) -> Tensor:
    with open_plain(path) as file:
        image = _load(path, file)
        try:
            stored = np.asanyarray(image.dataobj.get_unscaled())
        except OSError as error:
            if error.errno is None and "bytes" in str(error):  # "Expected 8 bytes, got 4 bytes"
                needed = image.get_data_dtype().itemsize * math.prod(image.shape)
                shape = format_shape(image.shape)
                why = f"its shape {shape} needs {needed} bytes of data"
                raise cut_short(path, why) from error
            raise
    notes, colours = [f"NIfTI, {image.get_data_dtype().name}"], ""
    names = stored.dtype.names
    if names in (("R", "G", "B"), ("R", "G", "B", "A")):
        stored, colours = np.stack([stored[name] for name in "RGB"], axis=-1), "C"
        notes = [f"NIfTI, uint8 {''.join(names)}", *(["as RGB"] if "A" in names else [])]
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1, 0):
        array, converted = as_float(stored, f"'{path}'")
        converted = [note.partition(", ")[2] for note in converted]
    else:
        array, converted = rescaled(stored, slope, intercept, f"'{path}'")
        notes.append(f"slope {slope:g}, intercept {intercept:g}")
    axes = {1: "S", 2: "SS", 3: "SSS", 4: "SSSC"}.get(array.ndim - len(colours), "") + colours
    if axes.count("C") > 1:
        axes = ""
    return Tensor(array, axes, [*notes, *converted], {"affine and header": image})


def _save(path: Path, result: Result, beside: dict[str, Any]) -> str:
    nibabel = require("nibabel", "io", f"'{path}'")
    y, note = result.y, ""
    if y.dtype == np.float16:
        y, note = y.astype(np.float32), "NIfTI has no float16: float32; "
    source, affine = beside.pop("affine and header", None), beside.pop("affine", None)
    spacing = beside.pop("spacing", None)
    header = None
    kind = nibabel.Nifti1Image if max(y.shape) <= _MOST_IN_NIFTI1 else nibabel.Nifti2Image
    if source is not None:
        affine, header = source.affine, source.header
        kind = type(source) if kind is nibabel.Nifti1Image else kind
        note += "affine and header of x"
    elif affine is not None:
        note += "affine: of the pixels' spacing, orientation and position"
    else:
        affine = np.eye(4)
        note += "affine: the identity"
        if spacing is not None:
            np.fill_diagonal(affine, [*(size or 1 for size in spacing[:3]), *[1] * 3][:3] + [1])
            note = note.replace("the identity", "of the pixels' spacing alone")
    image = kind(y, affine, header)
    if source is None:
        image.header.set_xyzt_units("mm")
    image.header["cal_min"] = image.header["cal_max"] = 0  # the window of the old values
    image.header.set_data_dtype(y.dtype)
    image.to_filename(path)
    return note


def _refuses(x: Tensor) -> str:
    if x.array.ndim <= _MOST_AXES:
        return ""
    return f"NIfTI has at most {_MOST_AXES} axes; got shape {format_shape(x.array.shape)}"


NIFTI = Format("nifti", (".nii", ".nii.gz"), _begins, _read, _save, "nibabel", _refuses)
