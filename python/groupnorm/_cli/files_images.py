"""PNG and JPEG, by Pillow; TIFF and 16-bit colours, of which Pillow keeps 8 bits, by others."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .command import BadInput, format_shape, require
from .format import DAMAGED, Format, How, cut_short
from .tensor import Array, FloatArray, Result, Tensor, as_float

# Pixels of an image that are read without --large: a small file can ask for any amount of memory.
_MOST_PIXELS = 2 * 89478485  # where Pillow draws the line

_ORIENTATION, _XMP, _EXIF = 274, 700, 34665  # tags of EXIF and TIFF
_MM_PER_INCH = 25.4

# By the orientation of EXIF, for what a viewer shows: transpose, then flip rows, flip columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _upright(array: Array, orientation: int) -> tuple[Array, list[str]]:
    """[height, width, ...] as a viewer shows it."""
    transpose, rows, columns = _TURNS.get(orientation, _TURNS[1])
    array = array.swapaxes(0, 1) if transpose else array
    array = array[:: -1 if rows else 1, :: -1 if columns else 1]
    turned = transpose or rows or columns
    return array, [f"turned by its orientation, {orientation}"] if turned else []


def _require_size(path: Path, width: int, height: int, how: How) -> None:
    if width * height > _MOST_PIXELS and not how.large:
        raise BadInput(
            f"'{path}': has {width} x {height} = {width * height} pixels; more than {_MOST_PIXELS} "
            "are read with --large alone, as a small file can ask for any amount of memory"
        )


# PNG and JPEG


def _png_chunks(path: Path) -> dict[bytes, bytes]:
    """The chunks before the pixels, from IHDR; refuses a file that ends before IEND."""
    chunks: dict[bytes, bytes] = {}
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        end, name, pixels = 8, b"", False
        while name != b"IEND":
            file.seek(end)
            head = file.read(8)
            length = int.from_bytes(head[:4], "big")
            end += 8 + length + 4  # with the check sum
            if len(head) < 8 or end > size:
                raise cut_short(path, f"its {size} bytes do not reach to the end of chunk IEND")
            name = head[4:]
            pixels = pixels or name == b"IDAT"
            if not pixels:
                chunks[name] = file.read(length)
    return chunks


_PNG_COLOURS = {2: "RGB", 4: "LA", 6: "RGBA"}  # of which Pillow keeps 8 bits
_WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB", "P": "RGB", "PA": "RGB"}


def _decode(path: Path, image: Any, chunks: dict[bytes, bytes]) -> tuple[Array, list[str]]:
    """The pixels without alpha, and what was done to them."""
    depth, colours = chunks[b"IHDR"][8:10] if chunks else (8, 0)
    deep = depth == 16 and colours in _PNG_COLOURS
    mode = _PNG_COLOURS[colours] if deep else image.mode
    kept = _WITHOUT_ALPHA.get(mode, mode)
    notes = [f"{image.format} {'16-bit ' if deep else ''}{mode}"]
    if image.info.pop("transparency", None) is not None:
        notes.append("transparency left out")
    if kept != mode:
        notes.append(f"as {kept}")
    if depth in (2, 4) and mode == "L":
        notes.append(f"{depth} bits scaled to 8")
    if not deep:
        return np.asarray(image.convert(kept) if kept != mode else image), notes
    pixels = require("imagecodecs", "io", f"'{path}'").png_decode(path.read_bytes())
    return pixels[..., 0] if kept == "L" else pixels[..., :3], notes


def _beside(image: Any, chunks: dict[bytes, bytes], orientation: int) -> dict[str, Any]:
    """The metadata of a PNG or JPEG, by name."""
    info, beside = image.info, {}
    if info.get("icc_profile"):
        beside["ICC profile"] = info["icc_profile"]
    if "exif" in info or "Raw profile type exif" in info:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        beside["EXIF"] = exif.tobytes() if orientation != 1 else info.get("exif", exif.tobytes())
    if any(name in info for name in ("xmp", "XML:com.adobe.xmp")):
        beside["XMP"] = None
    dpi = info.get("dpi")
    if dpi and all(each > 0 for each in dpi):
        across, down = dpi if orientation < 5 else dpi[::-1]
        beside["spacing"] = (_MM_PER_INCH / float(down), _MM_PER_INCH / float(across))
    skipped = ("XML:com.adobe.xmp", "Raw profile type exif")
    text = {k: v for k, v in getattr(image, "text", {}).items() if k not in skipped}
    if isinstance(info.get("comment"), bytes):
        text["Comment"] = info["comment"].decode("utf-8", "replace")
    if text:
        beside["text"] = text
    colours = {name: chunks[name] for name in (b"gAMA", b"cHRM", b"sRGB") if name in chunks}
    if colours:
        beside["gamma and primaries"] = colours
    return beside


def _read_image(path: Path, how: How) -> Tensor:
    pillow: Any = require("PIL.Image", "io", f"'{path}'")
    limit, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None  # ours is of another name
    try:
        with open(path, "rb") as file:
            is_png = PNG.begins(file.read(8))
        chunks = _png_chunks(path) if is_png else {}
        try:
            opened = pillow.open(path)
        except pillow.UnidentifiedImageError as error:
            why = f"Pillow finds no image in its {path.stat().st_size} bytes"
            raise cut_short(path, why, DAMAGED) from error
        with opened as image:
            _require_size(path, image.width, image.height, how)
            orientation = image.getexif().get(_ORIENTATION, 1)
            image.load()
            pixels, notes = _decode(path, image, chunks)
            frames = getattr(image, "n_frames", 1)
            beside = _beside(image, chunks, orientation)
    finally:
        pillow.MAX_IMAGE_PIXELS = limit
    if frames > 1:
        notes.insert(1, f"the first of {frames} frames")
    pixels, turned = _upright(pixels, orientation)
    array, converted = as_float(pixels, f"'{path}'")
    return Tensor(array, "SS" + "C" * (pixels.ndim - 2), [*notes, *turned, *converted], beside)


# TIFF


@contextlib.contextmanager
def _whole(path: Path, tifffile: Any) -> Iterator[None]:
    """Refuses a file of which tifffile misses something, which it may log only, and go on."""
    complaints: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    logger = logging.getLogger("tifffile")
    handler, propagate = Handler(logging.ERROR), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    except BadInput:
        raise
    except tifffile.TiffFileError as error:
        complaints.append(str(error))
    except Exception:
        if not complaints:
            raise
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if complaints:
        why = f"its {path.stat().st_size} bytes lack what they refer to: {complaints[0]}"
        raise cut_short(path, why, DAMAGED)


def _require_alike(path: Path, pages: list[Any], how: How) -> None:
    """Refuses pages that are not one array, are too large, or lie beyond the end of the file."""
    size = path.stat().st_size
    for page in pages:
        _require_size(path, page.imagewidth, page.imagelength, how)
        kinds = {(each.shape, each.dtype, each.photometric) for each in (page, pages[0])}
        if len(kinds) > 1:
            raise BadInput(f"'{path}': its {len(pages)} pages are not of one size and mode")
        ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
        if max(ends, default=0) > size:
            raise cut_short(path, f"its {size} bytes do not hold all pixels")
    if pages[0].photometric.name == "CIELAB":  # whose signed numbers tifffile takes for unsigned
        raise BadInput(f"'{path}': its colours are CIELAB; save it as RGB")


def _orientation_of(page: Any) -> int:
    return 1 if "Z" in page.axes else int(page.tags.valueof(_ORIENTATION, 1))


def _decode_page(page: Any, array: Array) -> tuple[Array, list[str]]:
    """The pixels of a page as [depth?, height, width, channels?], without alpha, upright."""
    colours = page.photometric.name
    notes = [f"TIFF {colours}"]
    if colours == "YCBCR" and "JPEG" in page.compression.name:
        notes.append("as RGB")
    elif colours == "MINISWHITE":
        notes.append("low values are white")
    array = array.transpose(sorted(range(array.ndim), key=lambda i: "ZYXS".index(page.axes[i])))
    if colours == "PALETTE":
        array = np.moveaxis(page.colormap[:, array], 0, -1)
        notes.append("colours of its palette")
    alpha = [i - len(page.extrasamples) for i, kind in enumerate(page.extrasamples) if kind > 0]
    if alpha and "S" in page.axes:
        array = np.delete(array, [i + array.shape[-1] for i in alpha], axis=-1)
        array = array[..., 0] if array.shape[-1] == 1 else array
        notes.append("alpha left out")
    array, turned = _upright(array, _orientation_of(page))
    return array, [*notes, *turned]


def _tiff_beside(page: Any) -> dict[str, Any]:
    beside: dict[str, Any] = {}
    if page.iccprofile:
        beside["ICC profile"] = page.iccprofile
    if page.resolutionunit > 1 and all(each > 0 for each in page.resolution):
        across, down = page.get_resolution("MILLIMETER")
        beside["spacing"] = (1 / down, 1 / across)
        if _orientation_of(page) >= 5:
            beside["spacing"] = (1 / across, 1 / down)
    if page.description:
        beside["text"] = {"Description": page.description}
    names = {_EXIF: "EXIF", _XMP: "XMP", 34735: "GeoTIFF tags"}
    # EXIF is a table of the file's own here, which no format takes as it is.
    beside.update({name: None for tag, name in names.items() if tag in page.tags})
    return beside


def _read_tiff(path: Path, how: How) -> Tensor:
    tifffile = require("tifffile", "io", f"'{path}'")
    require("imagecodecs", "io", f"'{path}'")  # most compressions
    with _whole(path, tifffile), tifffile.TiffFile(path) as file:
        every = list(file.pages)
        pages = [page for page in every if not (page.is_reduced or page.is_mask)] or every
        _require_alike(path, pages, how)
        first = pages[0]
        if len(every) == 1 and file.series[0].is_truncated:  # one page tells of many
            arrays = file.series[0].asarray().reshape(-1, *first.shape)
            decoded = [_decode_page(first, array) for array in arrays]
        else:
            decoded = [_decode_page(page, page.asarray()) for page in pages]
        beside = _tiff_beside(first)
    notes = decoded[0][1]
    if len(pages) < len(every):
        notes.append(f"without {len(every) - len(pages)} thumbnails or masks")
    if any(array.shape != decoded[0][0].shape for array, _ in decoded):
        raise BadInput(f"'{path}': its {len(pages)} pages are not of one size and mode")
    several = len(decoded) > 1
    pixels = np.stack([array for array, _ in decoded]) if several else decoded[0][0]
    array, converted = as_float(pixels, f"'{path}'")
    space = "SSS" if "Z" in first.axes else "SS"
    axes = "N" * several + space + "C" * (pixels.ndim - several - len(space))
    low_is_white = first.photometric.name == "MINISWHITE"
    return Tensor(array, axes, [*notes, *converted], beside, low_is_white)


# Writing


def _image_of(y: FloatArray, axes: str) -> FloatArray | None:
    """y as [height, width] or [height, width, 3], where that is what it is."""
    space = [i for i, axis in enumerate(axes) if axis == "S"]
    thin = [i for i in space if y.shape[i] == 1][: max(0, len(space) - 2)]
    kept = [i for i, size in enumerate(y.shape) if size != 1 or (i in space and i not in thin)]
    kept_axes = "".join(axes[i] for i in kept)
    y = y.reshape([y.shape[i] for i in kept])
    if kept_axes == "SS":
        return y
    if sorted(kept_axes) != ["C", "S", "S"] or y.shape[kept_axes.index("C")] != 3:
        return None
    return np.moveaxis(y, kept_axes.index("C"), -1)


def _png_refuses(x: Tensor) -> str:
    blank: FloatArray = np.broadcast_to(np.float32(0), x.array.shape)
    if x.array.size and _image_of(blank, x.axes) is not None:
        return ""
    return (
        f"a .png holds one image of 1 or 3 channels; got shape {format_shape(x.array.shape)}, "
        f"axes {x.axes}"
    )


def _save_png(path: Path, result: Result, beside: dict[str, Any]) -> str:
    pillow = require("PIL.Image", "io", f"'{path}'")
    info = require("PIL.PngImagePlugin", "io", f"'{path}'").PngInfo()
    y = _image_of(result.y, result.x.axes)
    assert y is not None  # `refuses` has seen to it
    finite = y[np.isfinite(y)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    unit = (y.astype(np.float64) - low) / (high - low if high > low else 1.0)
    pixels = np.rint(255 * np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0)).astype(np.uint8)
    note = f"for viewing: {low:.5g} to {high:.5g} scaled to 8 bits"
    if finite.size < y.size:
        note += f", {y.size - finite.size} NaN and infinities as the nearest of them, NaN as low"
    if result.x.low_is_white:
        pixels, note = 255 - pixels, note + ", low is white"
    options: dict[str, Any] = {}
    colour_space = {2: b"GRAY", 3: b"RGB "}[y.ndim]
    if beside.get("ICC profile", b"")[16:20] == colour_space:
        options["icc_profile"] = beside.pop("ICC profile")
    if beside.get("EXIF"):
        options["exif"] = beside.pop("EXIF")
    along = zip(beside.get("spacing", ()), result.x.axes, strict=False)
    spacing = [size for size, axis in along if size and axis == "S"]
    if len(spacing) == 2:
        del beside["spacing"]
        options["dpi"] = (_MM_PER_INCH / spacing[1], _MM_PER_INCH / spacing[0])
    for key, value in beside.pop("text", {}).items():
        info.add_text(key, value)
    for name, data in beside.pop("gamma and primaries", {}).items():
        info.add(name, data)
    pillow.fromarray(pixels).save(path, pnginfo=info, **options)
    return note


PNG = Format(
    "png",
    (".png",),
    lambda head: head[:8] == b"\x89PNG\r\n\x1a\n",
    _read_image,
    _save_png,
    "PIL.Image",
    _png_refuses,
)
JPEG = Format("jpeg", (".jpg", ".jpeg"), lambda head: head[:3] == b"\xff\xd8\xff", _read_image)
TIFF = Format(
    "tiff",
    (".tif", ".tiff"),
    lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    _read_tiff,
)
