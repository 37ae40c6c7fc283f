"""DICOM images, by pydicom."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from .command import BadInput, require
from .format import Format, How, cut_short
from .tensor import Array, Tensor, as_float, rescaled

Rescale = tuple[float, float]  # slope, intercept


def _begins(head: bytes) -> bool:
    """With a preamble and its prefix; or, as from old systems, with the first data element."""
    if head[128:132] == b"DICM":
        return True
    for order in "<>":
        group, element, length = struct.unpack(order + "HHI", head[:8].ljust(8))
        explicit = head[4:6].isalpha() and head[4:6].isupper()  # the two letters of its type
        if group in (2, 8) and element < 0x100 and (explicit or length <= 1024):
            return True
    return False


def _rescale_of(dataset: Any) -> Rescale | None:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None:
        slope = dataset.get("DoseGridScaling")
    if slope is None and intercept is None:
        return None
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _groups(dataset: Any, frames: int) -> list[list[Any]]:
    """Of each frame, the data sets that may say something of it, the nearest first."""
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())
    by_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if len(by_frame) != frames:
        by_frame = [{}] * frames
    return [[groups, *shared] for groups in by_frame]


def _item(groups: list[Any], sequence: str) -> Any:
    """The first item of a sequence in the nearest group that has it, or an empty one."""
    for group in groups:
        for item in group.get(sequence) or ():
            return item
    return {}


def _rescales(dataset: Any, groups: list[list[Any]]) -> list[Rescale]:
    """Of each frame: an enhanced DICOM image has them by frame, or for all frames apart."""
    common = _rescale_of(dataset) or (1.0, 0.0)
    return [
        _rescale_of(_item(each, "PixelValueTransformationSequence")) or common for each in groups
    ]


def _numbers(dataset: Any, name: str, count: int) -> Array | None:
    values = np.atleast_1d(np.array(dataset.get(name) or (), np.float64))
    return values if values.size == count else None


def _geometry(dataset: Any, groups: list[list[Any]], axes: str) -> dict[str, Any]:
    """The spacing of rows and columns, in mm; the affine, as NIfTI has it, where all is known."""

    def find(each: list[Any], sequence: str, name: str, count: int) -> Array | None:
        found = _numbers(_item(each, sequence), name, count)
        return _numbers(dataset, name, count) if found is None else found

    spacing = find(groups[0], "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None:
        spacing = _numbers(dataset, "ImagerPixelSpacing", 2)
    if spacing is None or not (spacing > 0).all():
        return {}
    beside: dict[str, Any] = {"spacing": tuple(spacing)}
    directions = [
        find(each, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for each in groups
    ]
    corners = [find(each, "PlanePositionSequence", "ImagePositionPatient", 3) for each in groups]
    if any(each is None for each in (*directions, *corners)):
        return beside
    axes_of, corner_of = np.array(directions, np.float64), np.array(corners, np.float64)
    along_row, down_column = axes_of[0, :3], axes_of[0, 3:]
    thickness = dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 1
    step = np.cross(along_row, down_column) * float(thickness)
    if len(groups) > 1:
        step = (corner_of[-1] - corner_of[0]) / (len(groups) - 1)
        even = corner_of[0] + step * np.arange(len(groups))[:, None]
        if np.ptp(axes_of, axis=0).any() or np.abs(even - corner_of).max() > 1e-2 or not step.any():
            return beside
    in_plane = [down_column * spacing[0], along_row * spacing[1]]
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([step, *in_plane] if axes[0] == "N" else [*in_plane, step])
    affine[:3, 3] = corner_of[0]
    affine[:2] *= -1  # DICOM's x and y point left and to the back, NIfTI's right and to the front
    return {**beside, "affine": affine}


def _prepare(path: Path, dataset: Any) -> None:
    """Refuses a data set whose pixels pydicom would misread, and says their syntax if none does."""
    from pydicom import uid

    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if "Rows" in dataset:
            raise cut_short(path, "it describes an image, and has no pixels")
        raise cut_short(path, "it holds no pixels", "is no DICOM image, or is cut short")
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise BadInput(f"'{path}': has compressed pixels, and no meta header says how")
        implicit, little = dataset.original_encoding
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
        )
    high, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    if high is not None and stored is not None and high > stored - 1:
        raise BadInput(f"'{path}': HighBit must be BitsStored - 1, {stored - 1}; got {high}")


def _read(path: Path, how: How) -> Tensor:
    pydicom = require("pydicom", "io", f"'{path}'")
    pixels = require("pydicom.pixels", "io", f"'{path}'")
    dataset = pydicom.dcmread(path, force=True)  # `begins` or --force has seen to it
    _prepare(path, dataset)
    array = dataset.pixel_array
    notes = [f"DICOM {dataset.get('Modality') or ''}".rstrip() + f", {array.dtype.name}"]
    if dataset.preamble is None:
        notes.append("without a meta header")
    frames = int(dataset.get("NumberOfFrames") or 1)
    photometric = dataset.PhotometricInterpretation
    channels = array.ndim > 2 and int(dataset.SamplesPerPixel) > 1
    if photometric == "PALETTE COLOR":
        array, channels = pixels.apply_color_lut(array, dataset), True
        notes.append("colours of its palette")
    elif photometric.startswith("YBR"):
        notes.append(f"{photometric} as RGB")
    elif photometric == "MONOCHROME1":
        notes.append("MONOCHROME1: low values are white")
    if dataset.get("ModalityLUTSequence"):
        array = pixels.apply_modality_lut(array, dataset)
        notes.append("through its modality LUT")
    groups = _groups(dataset, frames)
    rescales = _rescales(dataset, groups)
    if not channels and any(rescale != (1, 0) for rescale in rescales):
        slopes, intercepts = np.array(rescales).T
        if frames > 1:
            slopes, intercepts = slopes[:, None, None], intercepts[:, None, None]
        x, converted = rescaled(array, slopes, intercepts, f"'{path}'")
        slope, intercept = rescales[0]
        each = "" if len(set(rescales)) == 1 else " in frame 0, each frame by its own"
        notes.append(f"slope {slope:g}, intercept {intercept:g}{each}")
    else:
        x, converted = as_float(array, f"'{path}'")
        converted = [note.partition(", ")[2] for note in converted]
    axes = ("N" if frames > 1 else "") + "SS" + ("C" if channels else "")
    beside = {"DICOM data set": dataset, **_geometry(dataset, groups, axes)}
    return Tensor(x, axes, [*notes, *converted], beside, photometric == "MONOCHROME1")


DICOM = Format("dicom", (".dcm", ".dicom", ".ima"), _begins, _read)
