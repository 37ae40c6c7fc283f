"""Files in and out: which axis of a file is what, and what became of its numbers."""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .command import BadInput, format_shape, require
from .pending import pending

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

# The dtypes of the engine that NumPy has.
DTYPES = {"float16": "f16", "float32": "f32", "float64": "f64"}


@dataclasses.dataclass
class Tensor:
    """An array as a file has it, and what its axes are."""

    array: FloatArray
    axes: str  # a letter an axis: N examples, C channels, S space
    notes: list[str]  # what was done to the numbers on the way in
    nifti: Any = None  # the image that it comes from, with affine and header


@dataclasses.dataclass
class Result:
    """What `run` computed."""

    y: FloatArray
    mean: FloatArray
    rstd: FloatArray
    x: Tensor


def suffix_of(path: Path) -> str:
    """The end of a name that tells the format: .npy, .nii.gz."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def as_float(array: np.ndarray[Any, Any], what: str) -> tuple[FloatArray, list[str]]:
    """The array in a dtype of the engine, with a note where the numbers were converted."""
    kind = array.dtype.kind
    if array.dtype.name in DTYPES:  # whatever its byte order
        return array.astype(array.dtype.newbyteorder("="), copy=False), []
    if kind in "biu":
        return array.astype(np.float32), [f"{array.dtype.name}, converted to float32"]
    why = "is not a real number's"
    if kind == "O":
        why = "is an array of Python objects, which is never loaded"
    elif array.dtype.names:
        why = "is structured; save one field of it"
    elif kind == "V":
        why = "has no meaning to NumPy; save bfloat16 as float32"
    elif kind == "f":
        why = "is not float16, float32 or float64"
    raise BadInput(f"{what}: dtype {array.dtype} {why}")


# Reading


def _require_complete(path: Path) -> None:
    """A .npy file that ends early: numpy would speak of reshaping."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        try:
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                return
        except Exception as error:  # of its tokenizer, too
            raise BadInput(f"'{path}': has a malformed .npy header") from error
        needed = dtype.itemsize
        for size in shape:
            needed *= size
        held = os.fstat(file.fileno()).st_size - file.tell()
    if held < needed and dtype.kind != "O":
        raise BadInput(
            f"'{path}': holds {held} bytes of data; its shape {format_shape(shape)} needs {needed}"
        )


def read_npy(path: Path) -> tuple[FloatArray, list[str]]:
    """The array of a .npy file."""
    with _reading(path):
        _require_complete(path)
        return as_float(np.load(path, allow_pickle=False), f"'{path}'")


def _read_npy(path: Path, key: str | None) -> Tensor:
    array, notes = read_npy(path)
    return Tensor(array, "", notes)


def _read_npz(path: Path, key: str | None) -> Tensor:
    if not zipfile.is_zipfile(path):
        raise BadInput(f"'{path}': is not a .npz file, or ends early")
    with np.load(path, allow_pickle=False) as archive:
        names = ", ".join(archive.files) or "nothing"
        if key is None and len(archive.files) != 1:
            raise BadInput(f"--key: needed, as '{path}' holds {names}")
        chosen = archive.files[0] if key is None else key
        if chosen not in archive.files:
            raise BadInput(f"--key: '{chosen}' is not in '{path}', which holds {names}")
        array, notes = as_float(archive[chosen], f"'{path}': {chosen}")
    return Tensor(array, "", [f"array {chosen}", *notes])


def _read_nifti(path: Path, key: str | None) -> Tensor:
    nibabel = require("nibabel", "io", f"'{path}'")
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # of which Nifti2Image is one
        raise BadInput(f"'{path}': is a {type(image).__name__}, not a NIfTI volume")
    stored = image.get_data_dtype()
    if stored.kind not in "iuf":
        raise BadInput(f"'{path}': dtype {stored} is not a real number's")
    dtype = np.dtype(np.float64 if stored.kind == "f" and stored.itemsize >= 8 else np.float32)
    array = image.get_fdata(dtype=dtype, caching="unchanged")
    notes = [f"NIfTI, {stored.name}"]
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) != (1, 0):
        notes.append(f"slope {slope:g}, intercept {intercept:g}")
    if dtype.name != stored.name:
        notes.append(f"converted to {dtype.name}")
    axes = {1: "S", 2: "SS", 3: "SSS", 4: "SSSC"}.get(array.ndim, "")
    return Tensor(array, axes, notes, nifti=image)


Rescale = tuple[float, float]  # slope, intercept


def _rescale_of(dataset: Any) -> Rescale | None:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None:
        slope = dataset.get("DoseGridScaling")
    if slope is None and intercept is None:
        return None
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _rescales(dataset: Any, frames: int) -> list[Rescale]:
    """Of each frame: an enhanced DICOM image has them by frame, or for all frames apart."""

    def within(groups: Any) -> Rescale | None:
        for item in groups.get("PixelValueTransformationSequence") or ():
            return _rescale_of(item)
        return None

    common = _rescale_of(dataset)
    for groups in dataset.get("SharedFunctionalGroupsSequence") or ():
        common = within(groups) or common
    by_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if len(by_frame) != frames:
        by_frame = [{}] * frames
    return [within(groups) or common or (1.0, 0.0) for groups in by_frame]


def _read_dicom(path: Path, key: str | None) -> Tensor:
    pydicom = require("pydicom", "io", f"'{path}'")
    pixels = require("pydicom.pixels", "io", f"'{path}'")
    dataset = pydicom.dcmread(path)
    array = dataset.pixel_array
    notes = [f"DICOM {dataset.get('Modality') or ''}".rstrip() + f", {array.dtype.name}"]
    frames = int(dataset.get("NumberOfFrames") or 1)
    channels = array.ndim > 2 and int(dataset.SamplesPerPixel) > 1
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        array, channels = pixels.apply_color_lut(array, dataset), True
        notes.append("colours of its palette")
    if dataset.get("ModalityLUTSequence"):
        array = pixels.apply_modality_lut(array, dataset)
        notes.append("through its modality LUT")
    x = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    rescales = _rescales(dataset, frames)
    if not channels and any(rescale != (1, 0) for rescale in rescales):
        whole = array if frames > 1 else array[np.newaxis]
        for frame, (slope, intercept) in enumerate(rescales):
            x.reshape(whole.shape)[frame] = whole[frame] * slope + intercept
        slope, intercept = rescales[0]
        each = "" if len(set(rescales)) == 1 else " in frame 0, each frame by its own"
        notes.append(f"slope {slope:g}, intercept {intercept:g}{each}")
    if x.dtype != array.dtype:
        notes.append("converted to float32")
    return Tensor(x, ("N" if frames > 1 else "") + "SS" + ("C" if channels else ""), notes)


def _read_image(path: Path, key: str | None) -> Tensor:
    pillow = require("PIL.Image", "io", f"'{path}'")
    notes = []
    with pillow.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        notes.append(f"{image.format} {image.mode}")
        if frames > 1 and image.format != "TIFF":
            notes.append(f"the first of {frames} frames")
            frames = 1
        plain = image.mode in ("1", "L", "RGB", "I", "F") or image.mode.startswith("I;16")
        mode = None if plain else "L" if image.mode in ("LA", "La") else "RGB"
        if mode:
            notes.append(f"as {mode}")
        pages = []
        for frame in range(frames):
            if frames > 1:
                image.seek(frame)
            pages.append(np.asarray(image.convert(mode) if mode else image))
    if any((page.shape, page.dtype) != (pages[0].shape, pages[0].dtype) for page in pages):
        raise BadInput(f"'{path}': its {frames} pages are not of one size and mode")
    array, converted = as_float(np.stack(pages) if frames > 1 else pages[0], f"'{path}'")
    axes = ("N" if frames > 1 else "") + "SS" + ("C" if pages[0].ndim == 3 else "")
    return Tensor(array, axes, [*notes, *converted])


_READERS: dict[str, Callable[[Path, str | None], Tensor]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".dcm": _read_dicom,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), _read_image),
}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # every library has exceptions of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadInput(f"'{path}': cannot be read: {reason or type(error).__name__}") from error


def require_file(path: Path) -> None:
    """Refuses what is not a file, before a library does so in words of its own."""
    if path.is_dir():
        raise BadInput(f"'{path}': is a directory")
    if not path.exists():
        raise BadInput(f"'{path}': No such file or directory")
    if not path.is_file():
        raise BadInput(f"'{path}': is not a regular file")


def read(path: Path, key: str | None, layout: str | None, axes: str | None) -> Tensor:
    """Reads a file by its suffix; `layout` and `axes` as on the command line, None: not given."""
    suffix = suffix_of(path)
    reader = _READERS.get(suffix)
    if reader is None:
        known = " ".join(_READERS)
        raise BadInput(f"'{path}': the name must end in one of {known}; got '{suffix}'")
    if key is not None and suffix != ".npz":
        raise BadInput(f"--key: means nothing to {suffix}; only .npz holds arrays by name")
    if layout is not None and (axes is not None or suffix not in (".npy", ".npz")):
        other = "--axes" if axes is not None else suffix
        raise BadInput(f"--layout: means nothing beside {other}, which says what each axis is")
    require_file(path)
    with _reading(path):
        tensor = reader(path, key)
    rank, shape = tensor.array.ndim, format_shape(tensor.array.shape)
    if axes is not None:
        if len(axes) != rank:
            raise BadInput(
                f"--axes: must have a letter for each axis of '{path}', shape {shape}; got '{axes}'"
            )
        tensor.axes = axes
    elif not tensor.axes:
        if rank < 2:
            raise BadInput(f"'{path}': has shape {shape}; at least two axes, N and C, are needed")
        if tensor.nifti is not None:
            raise BadInput(f"'{path}': has shape {shape}; say what its axes are by --axes")
        space = "S" * (rank - 2)
        tensor.axes = f"N{space}C" if layout == "channels_last" else f"NC{space}"
    return tensor


# The engine's view


@dataclasses.dataclass
class View:
    """A tensor's array as [n, c, s], or [n, s, c], contiguous; a copy only where it must be."""

    array: FloatArray
    layout: str
    n: int
    c: int
    s: int
    _shape: tuple[int, ...]
    _order: tuple[int, ...]

    def restore(self, array: FloatArray) -> FloatArray:
        """An array of the view's shape in the axes of the file."""
        return array.reshape(self._shape).transpose(np.argsort(self._order))


def view(tensor: Tensor) -> View:
    array, axes = tensor.array, tensor.axes
    by_letter = {letter: [i for i, axis in enumerate(axes) if axis == letter] for letter in "NCS"}
    n_axes, c_axes, s_axes = by_letter["N"], by_letter["C"], by_letter["S"]
    orders = [
        (layout, axes_in_order)
        for space in (s_axes, s_axes[::-1])
        for layout, axes_in_order in (
            ("channels_first", (*n_axes, *c_axes, *space)),
            ("channels_last", (*n_axes, *space, *c_axes)),
        )
    ]
    # Whatever lies in memory as it must; else channels first, which takes a copy.
    in_memory = (each for each in orders if array.transpose(each[1]).flags.c_contiguous)
    layout, order = next(in_memory, orders[0])
    turned = array.transpose(order)
    size = {
        letter: int(np.prod([array.shape[i] for i in places], dtype=np.int64))
        for letter, places in by_letter.items()
    }
    n, c, s = size["N"], size["C"], size["S"]
    contiguous = np.require(turned, requirements=["C", "A", "W"])
    shape = (n, c, s) if layout == "channels_first" else (n, s, c)
    return View(contiguous.reshape(shape), layout, n, c, s, turned.shape, order)


# Writing


def _write_npy(path: Path, array: FloatArray) -> None:
    # Not numpy.save: a disk that is full would only be told by ndarray.tofile, in part.
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


def _save_npy(path: Path, result: Result) -> str:
    _write_npy(path, result.y)
    return ""


def _save_npz(path: Path, result: Result) -> str:
    with open(path, "wb") as file:
        np.savez(file, y=np.ascontiguousarray(result.y), mean=result.mean, rstd=result.rstd)
    return "y, mean and rstd"


def _save_nifti(path: Path, result: Result) -> str:
    nibabel = require("nibabel", "io", f"'{path}'")
    y, note = result.y, ""
    if y.dtype == np.float16:
        y, note = y.astype(np.float32), "NIfTI has no float16: float32; "
    source = result.x.nifti
    if source is None:
        image = nibabel.Nifti1Image(y, np.eye(4))
        note += "affine: the identity"
    else:
        image = type(source)(y, source.affine, source.header)
        image.header["cal_min"] = image.header["cal_max"] = 0  # the window of the old values
        note += f"affine and header of {source.get_filename()}"
    image.header.set_data_dtype(y.dtype)
    image.to_filename(path)
    return note


def _image_of(result: Result) -> FloatArray | None:
    """y as [height, width] or [height, width, 3], where that is what it is."""
    shape = result.y.shape
    space = [i for i, axis in enumerate(result.x.axes) if axis == "S"]
    thin = [i for i in space if shape[i] == 1][: max(0, len(space) - 2)]
    kept = [i for i, size in enumerate(shape) if size != 1 or (i in space and i not in thin)]
    axes = "".join(result.x.axes[i] for i in kept)
    y = result.y.reshape([shape[i] for i in kept])
    if axes == "SS":
        return y
    if sorted(axes) != ["C", "S", "S"] or y.shape[axes.index("C")] != 3:
        return None
    return np.moveaxis(y, axes.index("C"), -1)


def _save_png(path: Path, result: Result) -> str:
    pillow = require("PIL.Image", "io", f"'{path}'")
    y = _image_of(result)
    assert y is not None  # require_writable has seen to it
    finite = y[np.isfinite(y)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    unit = (y.astype(np.float64) - low) / (high - low if high > low else 1.0)
    pixels = np.rint(255 * np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0)).astype(np.uint8)
    pillow.fromarray(pixels).save(path)
    return f"for viewing: {low:.5g} to {high:.5g} scaled to 8 bits"


_WRITERS: dict[str, tuple[Callable[[Path, Result], str], str]] = {
    ".npy": (_save_npy, ""),
    ".npz": (_save_npz, ""),
    ".nii": (_save_nifti, "nibabel"),
    ".nii.gz": (_save_nifti, "nibabel"),
    ".png": (_save_png, "PIL.Image"),
}


def require_known_output(path: Path) -> None:
    """Refuses a name whose format is not written, and a format whose package is missing."""
    suffix = suffix_of(path)
    if suffix in _WRITERS:
        package = _WRITERS[suffix][1]
        if package:
            require(package, "io", f"'{path}'")
        return
    if suffix == ".dcm":
        raise BadInput(
            f"'{path}': DICOM is not written: a derived image needs identifiers and a record of its "
            "making that only the system that holds the original can give; write .nii.gz or .npy"
        )
    raise BadInput(f"'{path}': the name must end in one of {' '.join(_WRITERS)}; got '{suffix}'")


def require_writable(path: Path, x: Tensor) -> None:
    """Refuses a tensor that the format has no place for."""
    if suffix_of(path) != ".png":
        return
    blank: FloatArray = np.broadcast_to(np.float32(0), x.array.shape)
    if x.array.size == 0 or _image_of(Result(blank, blank, blank, x)) is None:
        raise BadInput(
            f"'{path}': a .png holds one image of 1 or 3 channels; got shape "
            f"{format_shape(x.array.shape)}, axes {x.axes}"
        )


def write(path: Path, result: Result) -> str:
    """Writes y by the suffix of `path`, and returns what there is to say about it."""
    save, _ = _WRITERS[suffix_of(path)]
    with pending(path) as temporary:
        return save(temporary, result)


def write_npy(path: Path, array: FloatArray) -> None:
    with pending(path) as temporary:
        _write_npy(temporary, array)
