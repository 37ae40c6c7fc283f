"""What `run` reads is what the file means, of every format, dtype and depth; else it is refused."""

import gzip
import io
import shutil
import struct
import zlib

import numpy
import pytest
import test_cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groupnorm._cli import files
from groupnorm._cli.command import BadInput
from groupnorm._cli.format import How

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
pillow = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

cli = test_cli.cli

# hypothesis prints the seed and all other arguments of a failure, and how to run it again.
fuzz = settings(
    max_examples=120,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**32 - 1)

INTEGERS = [f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)]
FLOATS = ["float16", "float32", "float64", "longdouble"]
ORIENTED = range(1, 9)


def draw(seed, dtype, shape):
    """Values of a dtype: a few of them, a narrow range somewhere, its extremes, or any of its bits."""
    rng = numpy.random.default_rng(seed)
    dtype = numpy.dtype(dtype)
    kind = rng.integers(4)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        spread = [1.0, 1e-3, 1e4, 1.0][kind]
        return (rng.standard_normal(shape) * spread + [0, 1000, 0, 3][kind]).astype(dtype)
    low, high = int(numpy.iinfo(dtype).min), int(numpy.iinfo(dtype).max)
    if kind < 2:  # somewhere below a power of two, where digits are lost first
        top = min(high, 2 ** int(rng.choice([2, 8, 16, 24, 25, 31, 53, 54, 63, 64])))
        low, high = max(low, top - [3, 599][kind]), top
    elif kind == 2:
        return rng.choice(numpy.array([low, low + 1, 0, high - 1, high], dtype), shape)
    return rng.integers(low, high, shape, dtype, endpoint=True)


def read(path, **how):
    return files.read(path, How(**how))


def require_same(array, wanted):
    """Every value, by Python's exact comparison of numbers."""
    assert array.dtype.name in ("float16", "float32", "float64") and array.shape == wanted.shape
    mine, theirs = array.ravel(), wanted.ravel()
    for i in range(mine.size):
        a, b = mine[i].item(), theirs[i].item()
        assert a == b or (numpy.isnan(a) and numpy.isnan(b)), (
            f"[{i}]: read {a!r}, the file holds {b!r}"
        )


def require_same_or_refused(path, wanted, **how):
    """The same values; or a sentence about integers, where float64 does not hold them."""
    try:
        tensor = read(path, **how)
    except BadInput as error:
        assert wanted.dtype.kind in "iu", error
        most = max(abs(int(wanted.max())), abs(int(wanted.min())))
        assert most > 2**53 and f"'{path}'" in str(error) and str(most) in str(error), error
        return None
    require_same(tensor.array, wanted)
    return tensor


# NumPy


@fuzz
@given(
    seed=seeds,
    dtype=st.sampled_from([*INTEGERS, *FLOATS[:3], "bool"]),
    order=st.sampled_from("CF"),
    swapped=st.booleans(),
    packed=st.booleans(),
)
def test_numpy(tmp_path, seed, dtype, order, swapped, packed):
    array = draw(seed, dtype, (2, 3, 5))
    stored = numpy.asarray(
        array.astype(array.dtype.newbyteorder()) if swapped else array, order=order
    )
    path = tmp_path / ("x.npz" if packed else "x.npy")
    (numpy.savez_compressed if packed else numpy.save)(path, stored)
    if packed and numpy.abs(array.astype(object)).max() > 2**53:
        with pytest.raises(BadInput, match="float64 tells integers apart up to 2\\^53"):
            read(path)
    else:
        require_same_or_refused(path, array)


@pytest.mark.parametrize(
    "most, dtype", [(2**24, "float32"), (2**24 + 1, "float64"), (2**53, "float64")]
)
@pytest.mark.parametrize("stored", ["int32", "uint32", "int64", "uint64"])
def test_the_dtype_that_holds_integers(cli, stored, most, dtype):
    if most > numpy.iinfo(stored).max:
        pytest.skip("not of this dtype")
    array = numpy.array([[most, most - 1, 0]], stored)
    cli.save("x.npy", array)
    out = cli.ok("run", "x.npy", "--norm", "layer", "-o", "y.npy")
    assert f"read     {stored}, converted to {dtype}" in out and cli.load("y.npy").dtype == dtype
    if most == 2**53 and stored.endswith("64"):
        cli.save("x.npy", array + numpy.array(1, stored))
        message = cli.refused("run", "x.npy", "-o", "z.npy")
        assert "integer of magnitude 9007199254740993" in message and "up to 2^53" in message
        cli.save("x.npy", -array.astype("int64") - 1)
        assert "9007199254740993" in cli.refused("run", "x.npy", "-o", "z.npy")


def test_integers_near_2_to_the_24(cli):
    """The normalized values, too: of 599 that float32 would make 300 of."""
    array = 2**24 + numpy.arange(599, dtype="int64").reshape(1, 1, 599)
    wanted = (array - array.mean()) / numpy.sqrt(array.var() + 1e-5)
    nibabel.Nifti1Image(array.astype("int32"), numpy.eye(4)).to_filename(cli.directory / "x.nii")
    cli.save("x.npy", array)
    numpy.savez(cli.directory / "x.npz", array.astype("uint32"))
    for name in ("x.npy", "x.npz", "x.nii"):
        cli.ok("run", name, "-o", "y.npy")
        numpy.testing.assert_allclose(cli.load("y.npy"), wanted, rtol=0, atol=1e-9)


def test_more_digits_than_float64(tmp_path):
    path = tmp_path / "x.npy"
    array = numpy.arange(6, dtype="longdouble").reshape(2, 3)
    numpy.save(path, array)
    require_same(read(path).array, array)
    if numpy.finfo("longdouble").eps < numpy.finfo("float64").eps:
        numpy.save(path, array / 3)
        with pytest.raises(BadInput, match="holds values that float64 does not"):
            read(path)


def test_gamma_beyond_float32(cli):
    cli.save("x.npy", numpy.zeros((1, 2, 3), "float32"))
    cli.save("g.npy", numpy.array([1.0, 1e300]))
    message = cli.refused("run", "x.npy", "--norm", "layer", "--gamma", "g.npy", "-o", "y.npy")
    assert "--gamma: 'g.npy': must be within float32" in message and "1e+300" in message


# PNG


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(samples, depth, colours, *chunks):
    """A PNG file of samples [height, width, channels], by its specification."""
    height, width, _ = samples.shape
    rows = samples.reshape(height, -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = numpy.unpackbits(rows.astype("uint8")[..., None], axis=-1)[..., 8 - depth :]
        lines = [numpy.packbits(row).tobytes() for row in bits.reshape(height, -1)]
    packed = zlib.compress(b"".join(b"\0" + line for line in lines))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
        + b"".join(chunks)
        + b"".join(chunk(b"IDAT", packed[i : i + 50]) for i in range(0, len(packed), 50))
        + chunk(b"IEND", b"")
    )


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = [
    *((GREY, depth) for depth in (1, 2, 4, 8, 16)),
    *((PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((colours, depth) for colours in (RGB, GREY_ALPHA, RGBA) for depth in (8, 16)),
]


@fuzz
@given(
    seed=seeds,
    colours_and_depth=st.sampled_from(DEPTHS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    extra=st.sampled_from([b"", b"gAMA", b"tRNS", b"sBIT"]),
)
def test_png(tmp_path, seed, colours_and_depth, size, extra):
    colours, depth = colours_and_depth
    rng = numpy.random.default_rng(seed)
    narrow = depth == 16 and seed % 2
    low, high = (20000, 20599) if narrow else (0, 2**depth - 1)
    samples = rng.integers(low, high, (*size, CHANNELS[colours]), "uint16", endpoint=True)
    chunks, shape = [], (*size, 3)
    if extra == b"gAMA":
        chunks.append(chunk(b"gAMA", struct.pack(">I", 45455)))
    elif extra == b"sBIT" and colours != PALETTE:
        chunks.append(chunk(b"sBIT", bytes([max(1, depth - 3)]) * CHANNELS[colours]))
    wanted = samples[..., :3]
    if colours == PALETTE:
        palette = rng.integers(0, 255, (2**depth, 3), "uint8", endpoint=True)
        chunks.append(chunk(b"PLTE", palette.tobytes()))
        wanted = palette[samples[..., 0]]
    elif colours in (GREY, GREY_ALPHA):
        wanted, shape = samples[..., 0], size
        if depth in (2, 4):
            wanted = wanted * (255 // (2**depth - 1))  # as a viewer shows it
    if extra == b"tRNS" and colours in (GREY, RGB):
        chunks.append(chunk(b"tRNS", samples[0, 0].astype(">u2").tobytes()))
    elif extra == b"tRNS" and colours == PALETTE:
        chunks.append(chunk(b"tRNS", b"\x80"))
    path = tmp_path / "x.png"
    path.write_bytes(png(samples, depth, colours, *chunks))
    tensor = read(path)
    require_same(tensor.array, wanted.reshape(shape))
    assert tensor.axes == "SSC"[: len(shape)]
    notes = ", ".join(tensor.notes)
    assert ("as RGB" in notes or "as L" in notes) == (colours in (PALETTE, GREY_ALPHA, RGBA))
    assert ("bits scaled to 8" in notes) == (colours == GREY and depth in (2, 4))


# TIFF


@fuzz
@given(
    seed=seeds,
    dtype=st.sampled_from([*INTEGERS, *FLOATS[:3], "bool"]),
    channels=st.sampled_from([1, 3, 4]),
    pages=st.sampled_from([1, 3]),
    order=st.sampled_from("<>"),
    planar=st.booleans(),
    packing=st.sampled_from([None, "zlib", "lzw", "packbits"]),
    tiled=st.booleans(),
    big=st.booleans(),
)
def test_tiff(tmp_path, seed, dtype, channels, pages, order, planar, packing, tiled, big):
    channels = 1 if dtype == "bool" else channels
    array = draw(seed, dtype, (pages, 5, 7, *([channels] if channels > 1 else [])))
    options = {"byteorder": order, "compression": packing, "bigtiff": big, "metadata": None}
    if channels > 1:
        planar = planar and channels == 3
        options |= {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    if tiled and dtype != "bool":
        options["tile"] = (16, 16)
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(
        path, bigtiff=options.pop("bigtiff"), byteorder=options.pop("byteorder")
    ) as file:
        for page in array:
            file.write(numpy.moveaxis(page, -1, 0) if planar and channels > 1 else page, **options)
    wanted = array[..., :3] if channels == 4 else array
    tensor = require_same_or_refused(path, wanted[0] if pages == 1 else wanted)
    if tensor:
        assert tensor.axes == "N" * (pages > 1) + "SS" + "C" * (channels > 1)
        assert ("alpha left out" in tensor.notes) == (channels == 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "I;16B"])
@pytest.mark.parametrize("packing", [None, "tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_tiff_of_pillow(tmp_path, mode, packing):
    if packing == "group4" and mode != "1":
        pytest.skip("of bits only")
    rng = numpy.random.default_rng(0)
    if mode in ("I", "F", "I;16", "I;16B"):
        dtype = {"I": "int32", "F": "float32", "I;16": "<u2", "I;16B": ">u2"}[mode]
        image = pillow.fromarray((rng.random((6, 7)) * 50000 + 10000).astype(dtype))
    else:
        pixels = pillow.fromarray(rng.integers(0, 255, (6, 7, 3), "uint8"))
        image = pixels.quantize(9) if mode == "P" else pixels.convert(mode)
    image.save(tmp_path / "x.tif", compression=packing)
    if mode == "P":
        got = read(tmp_path / "x.tif").array  # the table of colours has 16 bits
        numpy.testing.assert_array_equal(got // 256, numpy.asarray(image.convert("RGB")))
        return
    wanted = numpy.asarray(image)
    require_same(read(tmp_path / "x.tif").array, wanted[..., :3] if mode == "RGBA" else wanted)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_tiff_of_packed_bits(tmp_path, bits):
    array = numpy.arange(2**bits - 35, 2**bits, dtype="uint16").reshape(5, 7)
    try:
        tifffile.imwrite(tmp_path / "x.tif", array, bitspersample=bits)
    except (ValueError, NotImplementedError):
        pytest.skip("tifffile does not write these")
    require_same(read(tmp_path / "x.tif").array, array)


def test_tiff_with_white_as_low(cli):
    array = numpy.arange(30, dtype="uint8").reshape(5, 6)
    tifffile.imwrite(cli.directory / "x.tif", array, photometric="miniswhite")
    out = cli.ok("run", "x.tif", "-o", "y.png")
    assert "low values are white" in out and "low is white" in out.splitlines()[-4]
    shown = numpy.asarray(pillow.open(cli.directory / "y.png"))
    assert shown[0, 0] == 255 and shown[-1, -1] == 0


def test_tiff_thumbnails_and_one_page_of_many(tmp_path):
    array = numpy.arange(60, dtype="uint16").reshape(2, 5, 6)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(array[0], metadata=None)
        file.write(array[0, ::2, ::2], subfiletype=1, metadata=None)
    tensor = read(tmp_path / "x.tif")
    require_same(tensor.array, array[0])
    assert "without 1 thumbnails or masks" in tensor.notes
    tifffile.imwrite(tmp_path / "t.tif", array, photometric="minisblack", truncate=True)
    require_same(read(tmp_path / "t.tif").array, array)


def test_each_page_of_tiff_has_its_palette_and_its_side_up(cli):
    pixels = numpy.random.default_rng(0).integers(0, 255, (2, 6, 6, 3), "uint8")
    pages = [pillow.fromarray(page).quantize(5) for page in pixels]
    pages[0].save(cli.directory / "x.tif", save_all=True, append_images=pages[1:])
    wanted = numpy.stack([numpy.asarray(page.convert("RGB")) for page in pages])
    numpy.testing.assert_array_equal(read(cli.directory / "x.tif").array // 256, wanted)
    with tifffile.TiffWriter(cli.directory / "x.tif") as file:
        for page, side in zip(pixels, (1, 6), strict=True):
            file.write(page, photometric="rgb", metadata=None, extratags=[(274, 3, 1, side, True)])
    wanted = numpy.stack([pixels[0], numpy.rot90(pixels[1], -1)])
    require_same(read(cli.directory / "x.tif").array, wanted)
    with tifffile.TiffWriter(cli.directory / "x.tif") as file:
        for page, kind in zip(pixels[..., 0], ("minisblack", "miniswhite"), strict=True):
            file.write(page, photometric=kind, metadata=None)
    assert "are not of one size and mode" in cli.refused("run", "x.tif", "-o", "y.npy")
    pillow.new("LAB", (5, 6)).save(cli.directory / "x.tif")
    assert "'x.tif': its colours are CIELAB" in cli.refused("run", "x.tif", "-o", "y.npy")


# NIfTI

NIFTI_1 = [*INTEGERS, "float32", "float64"]


@fuzz
@given(
    seed=seeds,
    dtype=st.sampled_from(NIFTI_1),
    second=st.booleans(),
    packed=st.booleans(),
    swapped=st.booleans(),
    rescale=st.sampled_from([None, (0.5, -1024.0), (0.001, 7.0), (1.0, 16777217.0), (-2.0, 0.0)]),
)
def test_nifti(tmp_path, seed, dtype, second, packed, swapped, rescale):
    array = draw(seed, dtype, (3, 4, 5))
    kind, header = (
        (nibabel.Nifti2Image, nibabel.Nifti2Header)
        if second
        else (nibabel.Nifti1Image, nibabel.Nifti1Header)
    )
    image = kind(array, numpy.eye(4), header(endianness=">" if swapped else "<"), dtype=dtype)
    content = bytearray(image.to_bytes())
    if rescale:
        at, form = (176, "dd") if second else (112, "ff")
        struct.pack_into((">" if swapped else "<") + form, content, at, *rescale)
        rescale = struct.unpack_from((">" if swapped else "<") + form, content, at)
    path = tmp_path / "x.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    if rescale is None:
        require_same_or_refused(path, array)
    elif array.dtype.kind in "iu" and numpy.abs(array.astype(object)).max() > 2**53:
        with pytest.raises(BadInput, match="float64 tells integers apart up to 2\\^53"):
            read(path)
    else:
        slope, intercept = rescale
        require_same(read(path).array, array.astype("float64") * slope + intercept)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_nifti_colours(tmp_path, names):
    pixels = numpy.random.default_rng(0).integers(0, 255, (3, 4, 5, len(names)), "uint8")
    volume = numpy.zeros((3, 4, 5), [(name, "u1") for name in names])
    for i, name in enumerate(names):
        volume[name] = pixels[..., i]
    nibabel.Nifti1Image(volume, numpy.eye(4)).to_filename(tmp_path / "x.nii.gz")
    tensor = read(tmp_path / "x.nii.gz")
    require_same(tensor.array, pixels[..., :3])
    assert tensor.axes == "SSSC" and ("as RGB" in tensor.notes) == (names == "RGBA")


# DICOM


def dicom(pixels, stored=None, preamble=True, syntax="ExplicitVRLittleEndian", **elements):
    """A file of pixels [frames?, height, width]."""
    dataset = pydicom.Dataset()
    uid = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = uid, "1.2.3", "OT"
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored = bits, stored or bits
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.add_new("PixelData", "OW" if bits > 8 else "OB", pixels.tobytes())
    file = io.BytesIO()
    implicit = syntax == "ImplicitVRLittleEndian"
    if preamble:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        dataset.save_as(file, enforce_file_format=True)
    else:
        dataset.save_as(file, implicit_vr=implicit, little_endian=True)
    return file.getvalue()


@fuzz
@given(
    seed=seeds,
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32"]),
    unused=st.integers(0, 7),
    dirty=st.booleans(),
    frames=st.sampled_from([None, 2]),
    rescale=st.sampled_from([None, ("1", "-1024"), ("0.1", "3"), ("2", "16777217")]),
    preamble=st.booleans(),
    syntax=st.sampled_from(["ExplicitVRLittleEndian", "ImplicitVRLittleEndian"]),
    interpretation=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_dicom(
    tmp_path, seed, dtype, unused, dirty, frames, rescale, preamble, syntax, interpretation
):
    bits = 8 * numpy.dtype(dtype).itemsize
    stored = bits - unused
    values = draw(seed, dtype, (*([frames] if frames else []), 4, 6)) >> unused
    written = values.astype("int64")
    if unused and values.dtype.kind == "u" and dirty:  # as overlays were once kept
        written = written | 1 << (bits - 1)
    if unused and values.dtype.kind == "i" and dirty:  # the sign is in the bits stored alone
        written = written & ((1 << stored) - 1)
    elements = {"PhotometricInterpretation": interpretation}
    wanted = values
    if rescale:
        elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
        slope, intercept = (float(each) for each in rescale)
        wanted = values.astype("float64") * slope + intercept
    path = tmp_path / "IM000001"
    path.write_bytes(dicom(written.astype(dtype), stored, preamble, syntax, **elements))
    tensor = read(path)
    require_same(tensor.array, wanted)
    assert tensor.axes == ("NSS" if frames else "SS")
    assert tensor.low_is_white == (interpretation == "MONOCHROME1")
    notes = ", ".join(tensor.notes)
    assert ("low values are white" in notes) == tensor.low_is_white
    assert ("without a meta header" in notes) != preamble
    assert "dicom by its content" in notes


@pytest.mark.parametrize(
    "dtype, name", [("float32", "FloatPixelData"), ("float64", "DoubleFloatPixelData")]
)
def test_dicom_of_floats(tmp_path, dtype, name):
    pixels = draw(0, dtype, (4, 5))
    dataset = pydicom.dcmread(io.BytesIO(dicom(numpy.zeros((4, 5), "uint32"))))
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit
    dataset.BitsAllocated = 8 * pixels.itemsize
    setattr(dataset, name, pixels.tobytes())
    dataset.save_as(tmp_path / "x.dcm")
    require_same(read(tmp_path / "x.dcm").array, pixels)


def test_dicom_with_bits_on_high(tmp_path):
    pixels = numpy.arange(20, dtype="uint16").reshape(4, 5) << 4
    (tmp_path / "x.dcm").write_bytes(dicom(pixels, 12, HighBit=15))
    with pytest.raises(BadInput, match="HighBit must be BitsStored - 1, 11; got 15"):
        read(tmp_path / "x.dcm")


# Pictures: which side is up, and what is kept beside the numbers


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["jpg", "png", "png of 16 bits", "tif"])
def test_orientation(cli, orientation, kind):
    """As Pillow turns it, which is by code of its own."""
    from PIL import ImageOps

    pixels = numpy.random.default_rng(0).integers(0, 255, (8, 16, 3), "uint8")
    exif = pillow.Exif()
    exif[274], exif[315] = orientation, "the artist"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"  # in a table of its own
    path = cli.directory / f"x.{kind[:3]}"
    pillow.fromarray(pixels).save(path, exif=exif, dpi=(72, 144))
    wanted = numpy.asarray(ImageOps.exif_transpose(pillow.open(path)))
    if kind == "png of 16 bits":
        content = path.read_bytes()
        at = content.index(b"eXIf") - 4
        size = struct.unpack(">I", content[at : at + 4])[0]
        path.write_bytes(png(pixels.astype("uint16") * 200, 16, RGB, content[at : at + 12 + size]))
        wanted = wanted.astype("uint16") * 200
    tensor = read(path)
    require_same(tensor.array, wanted)
    assert (f"turned by its orientation, {orientation}" in tensor.notes) == (orientation > 1)
    cli.ok("run", path.name, "-o", "y.png", "--norm", "instance")
    shown = pillow.open(cli.directory / "y.png")
    assert numpy.asarray(shown).shape == wanted.shape
    assert shown.getexif().get(274, 1) == 1
    if kind in ("jpg", "png"):
        assert shown.getexif()[315] == "the artist"
        assert shown.getexif().get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
        dpi = (72, 144) if orientation < 5 else (144, 72)
        assert shown.info["dpi"] == pytest.approx(dpi, rel=1e-3)


def profile(space):
    """The header of an ICC profile; nothing looks further."""
    return bytes(12) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(92)


def test_what_a_picture_has_beside_its_numbers(cli):
    pixels = numpy.random.default_rng(0).integers(0, 255, (8, 9, 3), "uint8")
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "who drew it")
    text.add(b"gAMA", struct.pack(">I", 45455))
    image = pillow.fromarray(pixels)
    image.save(cli.directory / "x.png", pnginfo=text, icc_profile=profile(b"RGB "), dpi=(300, 300))
    out = cli.ok("run", "x.png", "-o", "y.png", "--norm", "instance")
    assert "without" not in out
    y = pillow.open(cli.directory / "y.png")
    assert y.text == {"Author": "who drew it"} and y.info["gamma"] == 0.45455
    assert y.info["icc_profile"] == profile(b"RGB ")
    assert y.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
    out = cli.ok("run", "x.png", "-o", "y.npy", "--norm", "instance")
    assert "y.npy, without x's ICC profile, spacing, text, gamma and primaries\n" in out
    image.convert("CMYK").save(cli.directory / "x.jpg", icc_profile=profile(b"CMYK"))
    assert "c 4, s 72" in cli.ok("run", "x.jpg", "-o", "y.npy", "--norm", "instance")
    image.convert("L").save(cli.directory / "x.png", icc_profile=profile(b"RGB "))
    assert "without x's ICC profile" in cli.ok("run", "x.png", "-o", "y.png")


def test_what_a_dicom_image_has_beside_its_numbers(cli):
    pixels = numpy.arange(30, dtype="uint16").reshape(5, 6)
    place = {
        "PixelSpacing": [0.5, 0.25],
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
        "ImagePositionPatient": [10, 20, 30],
        "SliceThickness": 3,
    }
    (cli.directory / "x.dcm").write_bytes(dicom(pixels, **place))
    out = cli.ok("run", "x.dcm", "-o", "y.nii.gz")
    assert "affine: of the pixels' spacing, orientation and position" in out
    assert "without x's DICOM data set\n" in out
    affine = nibabel.load(cli.directory / "y.nii.gz").affine
    # Row 2, column 3: 2 rows of 0.5 mm down to the feet, 3 columns of 0.25 mm to the back.
    lps = numpy.array([10, 20 + 3 * 0.25, 30 - 2 * 0.5])
    numpy.testing.assert_allclose(affine @ [2, 3, 0, 1], [-lps[0], -lps[1], lps[2], 1])
    cli.ok("run", "x.dcm", "-o", "y.png")
    dpi = pillow.open(cli.directory / "y.png").info["dpi"]
    assert dpi == pytest.approx((25.4 / 0.25, 25.4 / 0.5), rel=1e-3)
    (cli.directory / "x.dcm").write_bytes(dicom(pixels, PixelSpacing=[0.5, 0.25]))
    cli.ok("run", "x.dcm", "-o", "y.nii")
    zooms = nibabel.load(cli.directory / "y.nii").header.get_zooms()
    numpy.testing.assert_allclose(zooms, [0.5, 0.25])


@pytest.mark.parametrize("axes", ["SSC", "CSS", "SSS", "NSS"])
def test_spacing_beside_other_axes(cli, axes):
    """--axes says what an axis counts as; its spacing stays its own."""
    pixels = numpy.random.default_rng(0).integers(0, 255, (3, 4, 3), "uint8")
    pillow.fromarray(pixels).save(cli.directory / "x.png", dpi=(254, 508))
    cli.ok("run", "x.png", "-o", "y.nii", "--axes", axes, "--norm", "layer")
    zooms = nibabel.load(cli.directory / "y.nii").header.get_zooms()
    numpy.testing.assert_allclose(zooms, [0.05, 0.1, 1], rtol=1e-3)


def test_dicom_frames_have_places(cli):
    pixels = numpy.arange(60, dtype="uint16").reshape(2, 5, 6)
    dataset = pydicom.dcmread(io.BytesIO(dicom(pixels)))
    measures, plane, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [2, 1], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for z in (5, 9):
        position, frame = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [1, 2, z]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(cli.directory / "x.dcm")
    cli.ok("run", "x.dcm", "-o", "y.nii")
    affine = nibabel.load(cli.directory / "y.nii").affine
    numpy.testing.assert_allclose(affine @ [1, 3, 4, 1], [-(1 + 4), -(2 + 3 * 2), 9, 1])


def test_nifti_of_long_axes_and_of_many(cli):
    cli.save("x.npy", numpy.zeros((1, 1, 40000), "float32"))
    cli.ok("run", "x.npy", "-o", "y.nii")
    assert isinstance(nibabel.load(cli.directory / "y.nii"), nibabel.Nifti2Image)
    cli.save("x.npy", numpy.zeros((1, 1, 1, 1, 1, 1, 1, 2), "float32"))
    message = cli.refused("run", "x.npy", "-o", "z.nii")
    assert "'z.nii': NIfTI has at most 7 axes; got shape [1, 1, 1, 1, 1, 1, 1, 2]" in message


# Names, cuts and sizes


def contents():
    """A small file of each format, by its usual name."""
    array = draw(3, "uint16", (9, 31))
    volume, picture = io.BytesIO(), pillow.fromarray(draw(0, "uint8", (9, 31, 3)))

    def saved(save):
        file = io.BytesIO()
        save(file)
        return file.getvalue()

    volume = nibabel.Nifti1Image(array[None], numpy.eye(4)).to_bytes()
    return {
        "x.npy": saved(lambda file: numpy.save(file, array)),
        "x.npz": saved(lambda file: numpy.savez(file, array)),
        "x.nii": volume,
        "x.nii.gz": gzip.compress(volume),
        "x.dcm": dicom(array),
        "x.png": saved(lambda file: picture.save(file, "PNG")),
        "16.png": png(array[..., None].repeat(3, -1), 16, RGB),
        "x.jpg": saved(lambda file: picture.save(file, "JPEG")),
        "x.tif": saved(lambda file: tifffile.imwrite(file, array)),
        "pages.tif": saved(
            lambda file: tifffile.imwrite(file, array.reshape(3, 3, 31), photometric="minisblack")
        ),
        "lzw.tif": saved(lambda file: tifffile.imwrite(file, array, compression="lzw")),
        "deflate.tif": saved(lambda file: tifffile.imwrite(file, array, compression="zlib")),
        "pillow.tif": saved(lambda file: picture.save(file, "TIFF")),
    }


@pytest.mark.parametrize("name", contents())
def test_a_file_cut_short(cli, name):
    """Wherever it is cut before its last number: said so, exit status 2, no file."""
    content = contents()[name]
    path = cli.directory / name
    path.write_bytes(content)
    whole = read(path).array
    read_whole = []
    for size in numpy.unique(numpy.linspace(1, len(content) - 1, 60).astype(int)):
        path.write_bytes(content[:size])
        status, out, err = cli("run", name, "-o", "y.npy", "--norm", "layer")
        if status == 0:  # what is missing is no number
            read_whole.append(size)
            numpy.testing.assert_array_equal(read(path).array, whole)
            continue
        assert (status, out) == (2, "") and err.count("\n") == 1, (size, err)
        assert f"'{name}': cannot be read: " in err and "cut short" in err, (size, err)
        assert cli.files() == [name]
    assert not read_whole or name.endswith((".gz", ".tif")), read_whole


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize(
    "other", ["x", "IM000001", "x.dat", "1.2.840.10008.5", "x.png", "x.nii.gz", "x.IMA"]
)
def test_the_content_tells_the_format(tmp_path, name, other):
    usual, path = tmp_path / name, tmp_path / f"other.{other}"
    usual.write_bytes(contents()[name])
    path.write_bytes(contents()[name])
    numpy.testing.assert_array_equal(read(path).array, read(usual).array)


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"])
def test_old_dicom_files_are_known(tmp_path, name):
    """They have no pixels; that is what they are refused for."""
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file(name), tmp_path / "IM1")
    with pytest.raises(BadInput, match="holds no pixels|no pixels"):
        read(tmp_path / "IM1")


def test_format_and_force(cli):
    content = contents()["x.dcm"]
    (cli.directory / "odd").write_bytes(b"\0" * 128 + b"dicm" + content[132:])
    message = cli.refused("run", "odd", "-o", "y.npy")
    assert "is none of npy, npz" in message and "--force reads it as dicom all" in message
    assert "is not dicom" in cli.refused("run", "odd", "-o", "y.npy", "--format", "dicom")
    cli.refused("run", "odd", "-o", "y.npy", "--force")  # pydicom finds no elements
    (cli.directory / "x.png").write_bytes(contents()["x.png"])
    message = cli.refused("run", "x.png", "-o", "y.npy", "--format", "tiff")
    assert "--format: 'x.png' is png by its first bytes; got tiff" in message
    for forced in ("dicom", "tiff", "nifti"):
        message = cli.refused("run", "x.png", "-o", "y.npy", "--format", forced, "--force")
        assert "'x.png': " in message
    pixels = draw(0, "uint16", (4, 5))
    implicit = dicom(pixels, preamble=False, syntax="ImplicitVRLittleEndian")
    at = implicit.index(struct.pack("<HH", 0x28, 2))
    (cli.directory / "odd").write_bytes(implicit[at:])  # begins with group 28
    cli.refused("run", "odd", "-o", "y.npy")
    cli.ok("run", "odd", "-o", "y.npy", "--force")
    require_same(read(cli.directory / "odd", format="dicom", force=True).array, pixels)
    (cli.directory / "IM1").write_bytes(content)
    cli.ok("run", "IM1", "-o", "y.npy", "--force")


def test_gzip_of_what_is_not_nifti(cli):
    (cli.directory / "x.npy.gz").write_bytes(gzip.compress(contents()["x.npy"]))
    assert "is npy in gzip; unpack it" in cli.refused("run", "x.npy.gz", "-o", "y.npy")


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_large_images(cli, monkeypatch, suffix):
    monkeypatch.setattr("groupnorm._cli.files_images._MOST_PIXELS", 299)
    pillow.fromarray(draw(0, "uint8", (15, 20))).save(cli.directory / f"x.{suffix}")
    message = cli.refused("run", f"x.{suffix}", "-o", "y.npy")
    assert (
        f"'x.{suffix}': has 20 x 15 = 300 pixels; more than 299" in message and "--large" in message
    )
    cli.ok("run", f"x.{suffix}", "-o", "y.npy", "--large")


def test_a_tiff_of_182_megapixels(cli):
    pillow.new("1", (13000, 14000)).save(cli.directory / "x.tif", compression="group4")
    assert "182000000 pixels" in cli.refused("run", "x.tif", "-o", "y.npy")
