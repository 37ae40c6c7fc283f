"""Files in and out: which format a file is of, and that what is written is whole."""

from collections.abc import Sequence
from pathlib import Path

from .command import BadInput, format_shape, require
from .files_dicom import DICOM
from .files_images import JPEG, PNG, TIFF
from .files_nifti import NIFTI, is_gzip, open_plain
from .files_numpy import NPY, NPZ, read_npy
from .format import HEAD, Format, How, reading
from .pending import pending
from .tensor import FloatArray, Result, Tensor

# A new format is a line here. DICOM is the last: without a preamble it begins with no magic number.
FORMATS = {each.name: each for each in (NPY, NPZ, NIFTI, PNG, JPEG, TIFF, DICOM)}


def suffix_of(path: Path) -> str:
    """The end of a name that tells the format: .npy, .nii.gz."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _by_name(path: Path) -> Format | None:
    suffix = suffix_of(path)
    return next((each for each in FORMATS.values() if suffix in each.suffixes), None)


# Reading


def require_file(path: Path) -> None:
    """Refuses what is not a file, before a library does so in words of its own."""
    if path.is_dir():
        raise BadInput(f"'{path}': is a directory")
    if not path.exists():
        raise BadInput(f"'{path}': No such file or directory")
    if not path.is_file():
        raise BadInput(f"'{path}': is not a regular file")


def format_of(path: Path, how: How) -> Format:
    """The format of a file by its first bytes, whatever its name; --format and --force go before."""
    require_file(path)
    with reading(path):
        with open(path, "rb") as file:
            packed = is_gzip(file.read(2))
        with open_plain(path) as file:
            head = file.read(HEAD)
    if not head:
        raise BadInput(f"'{path}': cannot be read: is empty")
    chosen = FORMATS[how.format] if how.format else None
    named = chosen or _by_name(path)
    candidates = [*([named] if named else []), *FORMATS.values()]
    found = next((each for each in candidates if each.begins(head)), None)
    if found and packed and found is not NIFTI:
        raise BadInput(f"'{path}': is {found.name} in gzip; unpack it before")
    if how.force:
        return named or found or DICOM  # of all formats, it alone can lack a magic number
    if found is None:
        size, begin = path.stat().st_size, head[:8].hex(" ")
        is_none = f"is not {named.name}" if named else f"is none of {', '.join(FORMATS)}"
        raise BadInput(
            f"'{path}': cannot be read: has no magic number in its {size} bytes, which begin with "
            f"{begin}: {is_none}, or is cut short; --force reads it as {(named or DICOM).name} all "
            "the same"
        )
    if chosen and found is not chosen:
        raise BadInput(
            f"--format: '{path}' is {found.name} by its first bytes; got {chosen.name}, as which "
            "--force reads it all the same"
        )
    return found


def _of_each_axis(spacing: Sequence[float], axes: str) -> list[float]:
    """The spacing of the last axes S, of which --axes may make others, by the axes of the array."""
    places = [i for i, axis in enumerate(axes) if axis == "S"][-len(spacing) :]
    return [spacing[places.index(i)] if i in places else 0.0 for i in range(len(axes))]


def read(path: Path, how: How) -> Tensor:
    """Reads a file of any of `FORMATS`."""
    form = format_of(path, how)
    if how.key is not None and form is not NPZ:
        raise BadInput(
            f"--key: means nothing to {form.suffixes[0]}; only .npz holds arrays by name"
        )
    if how.layout is not None and (how.axes is not None or form not in (NPY, NPZ)):
        other = "--axes" if how.axes is not None else form.suffixes[0]
        raise BadInput(f"--layout: means nothing beside {other}, which says what each axis is")
    with reading(path):
        tensor = form.read(path, how)
    if "spacing" in tensor.beside:
        tensor.beside["spacing"] = _of_each_axis(tensor.beside["spacing"], tensor.axes)
    if form is not _by_name(path):
        tensor.notes.insert(0, f"{form.name} by its content")
    rank, shape = tensor.array.ndim, format_shape(tensor.array.shape)
    if how.axes is not None:
        if len(how.axes) != rank:
            raise BadInput(
                f"--axes: must have a letter for each axis of '{path}', shape {shape}; got "
                f"'{how.axes}'"
            )
        tensor.axes = how.axes
    elif not tensor.axes:
        if rank < 2:
            raise BadInput(f"'{path}': has shape {shape}; at least two axes, N and C, are needed")
        if form not in (NPY, NPZ):
            raise BadInput(f"'{path}': has shape {shape}; say what its axes are by --axes")
        space = "S" * (rank - 2)
        tensor.axes = f"N{space}C" if how.layout == "channels_last" else f"NC{space}"
    return tensor


def read_param(path: Path) -> FloatArray:
    """The array of a .npy file of gamma or beta."""
    form = format_of(path, How())
    if form is not NPY:
        raise BadInput(f"'{path}': must be npy; is {form.name}")
    return read_npy(path)[0]


# Writing


def _writer_of(path: Path) -> Format | None:
    form = _by_name(path)
    return form if form and form.save else None


def require_known_output(path: Path) -> None:
    """Refuses a name whose format is not written, and a format whose package is missing."""
    form = _writer_of(path)
    if form:
        if form.package:
            require(form.package, "io", f"'{path}'")
        return
    if _by_name(path) is DICOM:
        raise BadInput(
            f"'{path}': DICOM is not written: a derived image needs identifiers and a record of its "
            "making that only the system that holds the original can give; write .nii.gz or .npy"
        )
    known = " ".join(suffix for each in FORMATS.values() if each.save for suffix in each.suffixes)
    raise BadInput(f"'{path}': the name must end in one of {known}; got '{suffix_of(path)}'")


def require_writable(path: Path, x: Tensor) -> None:
    """Refuses a tensor that the format has no place for."""
    form = _writer_of(path)
    why = form.refuses(x) if form else ""
    if why:
        raise BadInput(f"'{path}': {why}")


def write(path: Path, result: Result) -> str:
    """Writes y by the suffix of `path`, and returns what there is to say about it."""
    form = _writer_of(path)
    assert form and form.save  # require_known_output has seen to it
    beside = dict(result.x.beside)
    with pending(path) as temporary:
        note = form.save(temporary, result, beside)
    dropped = f"without x's {', '.join(beside)}" if beside else ""
    return "; ".join(filter(None, (note, dropped)))
