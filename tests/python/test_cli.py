"""``python -m groupnorm``: files in and out, refusals, bench and info."""

import dataclasses
import gzip
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time

import norms
import numpy
import numpy_norms
import pytest

import groupnorm
from groupnorm._cli import bench, contest, files, main, oracle, report, tensor

LAYOUTS = norms.LAYOUTS
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Cli:
    """Runs the command line in this process, in a directory of its own."""

    def __init__(self, directory, capsys):
        self.directory, self.capsys = directory, capsys

    def __call__(self, *arguments):
        self.capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # --help
            status = exit.code
        captured = self.capsys.readouterr()
        return status, captured.out, captured.err

    def ok(self, *arguments, stderr=""):
        status, out, err = self(*arguments)
        assert status == 0, (arguments, err)
        assert err == stderr or stderr is None
        return out

    def refused(self, *arguments):
        """Exit status 2, nothing on stdout, one line on stderr: that line. No file is new."""
        before = self.files()
        status, out, err = self(*arguments)
        assert (status, out) == (2, ""), (arguments, status, out, err)
        assert err.startswith("groupnorm: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert self.files() == before
        return err

    def save(self, name, array):
        numpy.save(self.directory / name, array)
        return name

    def load(self, name):
        return numpy.load(self.directory / name)

    def files(self):
        return sorted(path.name for path in self.directory.iterdir())

    def normalize(self, x, *arguments):
        self.save("x.npy", x)
        self.ok("run", "x.npy", "-o", "y.npy", *arguments)
        return self.load("y.npy")


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GROUPNORM_TARGET", "GROUPNORM_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield Cli(tmp_path, capsys)
    groupnorm.set_num_threads(0)


@pytest.fixture
def without(monkeypatch):
    """Hides a package from import."""

    def hide(package):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)  # import then raises

    return hide


def data(shape, dtype="float32", seed=0):
    return (3 + numpy.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def near(y, expected):
    """Within a few roundings of float32, or of y's own dtype."""
    tolerance = {"float16": 4e-3, "float32": 4e-6, "float64": 1e-13}[y.dtype.name]
    assert y.shape == expected.shape
    numpy.testing.assert_allclose(y.astype(numpy.float64), expected, rtol=tolerance, atol=tolerance)


def expected_of(array, axes, norm="group", **options):
    """y in float64 of an array whose axes are letters, by way of [n, c, s]."""
    letters = {letter: [i for i, a in enumerate(axes) if a == letter] for letter in "NCS"}
    order = letters["N"] + letters["C"] + letters["S"]
    turned = array.astype(numpy.float64).transpose(order)
    n = array.shape[letters["N"][0]] if letters["N"] else 1
    c = array.shape[letters["C"][0]] if letters["C"] else 1
    y = numpy_norms.normalize(turned.reshape(n, c, -1), norm, **options)[0]
    return y.reshape(turned.shape).transpose(numpy.argsort(order))


# run: what is computed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "norm, groups",
    [
        *(("group", 3), ("layer", None), ("instance", None), ("batch", None), ("rms", None)),
        *(("ghost_batch", 2), ("batch_group", 3), ("group_rms", 3)),
    ],
)
def test_norms(cli, norm, groups, dtype, layout):
    x = data((4, 6, 5, 6), dtype)
    chosen = ["--groups", groups] if groups else []
    y = cli.normalize(x, "--norm", norm, "--layout", layout, *chosen)
    assert y.dtype == dtype
    near(y, numpy_norms.normalize(x, norm, groups, layout=layout)[0])


@pytest.mark.parametrize("shape", [(8, 6), (2, 6, 7), (1, 6, 3, 4, 5)])
def test_ranks(cli, shape):
    x = data(shape)
    near(cli.normalize(x, "-g", 2), numpy_norms.normalize(x, groups=2)[0])


@pytest.mark.parametrize("activation", norms.ACTIVATIONS)
def test_options(cli, activation):
    x = data((2, 4, 33))
    options = ["--activation", activation, "--eps", 0.5, "--correction", 1, "--threads", 2]
    y = cli.normalize(x, "--groups", 2, *options)
    expected, _, _ = numpy_norms.normalize(
        x, groups=2, eps=0.5, correction=1, activation=activation
    )
    near(y, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_gamma_and_beta(cli, shape, dtype):
    x, gamma, beta = data((2, 6, 9)), data(shape, dtype, 1), data(shape, dtype, 2)
    cli.save("g.npy", gamma)
    cli.save("b.npy", beta)
    y = cli.normalize(x, "--groups", 2, "--gamma", "g.npy", "--beta", "b.npy")
    gamma, beta = (numpy.asarray(param, numpy.float32) for param in (gamma, beta))
    near(y, numpy_norms.normalize(x, groups=2, gamma=gamma, beta=beta)[0])
    rounded = "gamma rounded from float64 to float32" in cli.ok(
        "run", "x.npy", "-o", "y.npy", "--gamma", "g.npy"
    )
    assert rounded == (dtype == "float64")


def test_gamma_alone_beside_float64(cli):
    x, gamma = data((2, 6, 9), "float64"), data(6, "float64", 1)
    cli.save("g.npy", gamma)
    y = cli.normalize(x, "--norm", "layer", "--gamma", "g.npy")
    near(y, numpy_norms.normalize(x, "layer", gamma=gamma)[0])


def test_groups_are_suggested(cli):
    x = data((2, 64, 5))
    near(cli.normalize(x), numpy_norms.normalize(x, groups=32)[0])
    out = cli.ok("run", "x.npy", "-o", "y.npy")
    assert "norm     group, 32 groups (" in out and ": 64 blocks of m = 10 elements\n" in out


@pytest.mark.parametrize("axes", ["NCS", "NSC", "CNS", "SNC", "CSN", "SCN", "SSS", "SCS", "NSS"])
@pytest.mark.parametrize("order", "CF")
def test_axes(cli, axes, order):
    """Any axes, any order in memory; a file has one array, and y has its axes."""
    x = numpy.asarray(data((2, 4, 6)), order=order)
    y = cli.normalize(x, "--norm", "layer", "--axes", axes)
    near(y, expected_of(x, axes, "layer"))


def test_what_lies_in_memory_as_it_must_is_not_copied():
    for axes, order, layout in [
        ("NCSS", "C", "channels_first"),
        ("NSSC", "C", "channels_last"),
        ("SSSC", "F", "channels_first"),  # a NIfTI volume
        ("CSSS", "F", "channels_last"),
    ]:
        array = numpy.zeros((2, 3, 4, 5), "float32", order=order)
        seen = tensor.view(tensor.Tensor(array, axes, []))
        assert numpy.shares_memory(seen.array, array), axes
        assert seen.layout == layout
        assert seen.restore(seen.array).shape == array.shape


def test_what_it_prints(cli):
    cli.save("x.npy", data((2, 6, 50)))
    lines = cli.ok(
        "run", "x.npy", "-o", "y.npy", "-g", 2, "--stats", "s.npy", "--threads", 1
    ).splitlines()
    assert lines[0] == ("x        f32 [2, 6, 50], axes NCS, seen as n 2, c 6, s 50, channels_first")
    assert lines[1] == "norm     group, 2 groups: 4 blocks of m = 150 elements"
    assert lines[2] == f"target   {groupnorm.info()['target']}, 1 threads"
    assert lines[3].startswith("time     ") and lines[3].endswith(" GB/s")
    assert lines[4] == "wrote    y.npy"
    x, y = (cli.load(name).reshape(2, 2, 3, 50) for name in ("x.npy", "y.npy"))
    for block, line in enumerate(lines[7:]):
        index, mean, deviation, _, to = line.split()
        assert int(index) == block
        part = (block // 2, block % 2)
        assert float(mean) == pytest.approx(x[part].mean(dtype="float64"), rel=1e-4)
        assert float(deviation) == pytest.approx(x[part].std(dtype="float64"), rel=1e-4)
        assert float(to) == pytest.approx(y[part].std(dtype="float64"), abs=1e-6)
    assert len(lines) == 7 + 4
    _, mean, rstd = numpy_norms.normalize(x.reshape(2, 6, 50), groups=2)
    numpy.testing.assert_allclose(cli.load("s.npy"), [mean, rstd], rtol=1e-6)


def test_it_prints_the_blocks_of_channels_last(cli):
    x = data((2, 5, 4)) + 10 * numpy.arange(4, dtype="float32")
    cli.save("x.npy", x)
    options = ["--layout", "channels_last", "--norm", "instance"]
    lines = cli.ok("run", "x.npy", "-o", "y.npy", *options).splitlines()
    means = [float(line.split()[1]) for line in lines[-8:]]
    assert means == pytest.approx(x.mean(1, dtype="float64").reshape(-1), rel=1e-4)


def test_many_blocks_and_none(cli):
    cli.save("x.npy", data((4, 6, 5)))
    out = cli.ok("run", "x.npy", "-o", "y.npy", "--norm", "instance")
    assert out.endswith("  ... and 16 blocks more\n")
    cli.save("x.npy", numpy.zeros((0, 6, 5), "float32"))
    out = cli.ok("run", "x.npy", "-o", "y.npy", "--norm", "instance", "--stats", "s.npy")
    assert "0 blocks" in out
    assert cli.load("y.npy").shape == (0, 6, 5)
    assert cli.load("s.npy").shape == (2, 0, 0)


def test_not_finite_and_constant(cli):
    x = numpy.full((1, 3, 4), 7, "float32")
    x[0, 1, 2] = numpy.nan
    y = cli.normalize(x, "--norm", "instance")
    assert (y[0, [0, 2]] == 0).all() and numpy.isnan(y[0, 1]).all()


# run: formats


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "bool"])
def test_integers_become_float32(cli, dtype):
    x = (numpy.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    cli.save("x.npy", x)
    out = cli.ok("run", "x.npy", "-o", "y.npy", "--norm", "layer")
    assert out.startswith(f"read     {dtype}, converted to float32\n")
    assert cli.load("y.npy").dtype == numpy.float32
    near(cli.load("y.npy"), numpy_norms.normalize(x, "layer")[0])


def test_big_endian_and_fortran_order(cli):
    x = numpy.asfortranarray(data((2, 6, 5))).astype(">f4")
    y = cli.normalize(x, "--groups", 3)
    assert y.dtype.isnative
    near(y, numpy_norms.normalize(x, groups=3)[0])


def test_npz(cli):
    x = data((2, 6, 5))
    numpy.savez(cli.directory / "x.npz", a=x, b=x[:, :4])
    cli.ok("run", "x.npz", "--key", "b", "-g", 2, "-o", "y.npz")
    with cli.load("y.npz") as y:
        assert sorted(y.files) == ["mean", "rstd", "y"]
        expected, mean, rstd = numpy_norms.normalize(x[:, :4], groups=2)
        near(y["y"], expected)
        numpy.testing.assert_allclose(y["mean"], mean, rtol=1e-6)
        numpy.testing.assert_allclose(y["rstd"], rstd, rtol=1e-6)
    for key in ([], ["--key", "c"]):
        assert "which holds a, b" in cli.refused("run", "x.npz", *key, "-o", "y.npy") or not key
    assert "--key: needed, as 'x.npz' holds a, b" in cli.refused("run", "x.npz", "-o", "y.npy")
    numpy.savez_compressed(cli.directory / "one.npz", x)
    cli.ok("run", "one.npz", "-g", 2, "-o", "y.npy")
    near(cli.load("y.npy"), numpy_norms.normalize(x, groups=2)[0])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("stored", ["int16", "uint8", "float32", "float64"])
def test_nifti(cli, stored, suffix):
    nibabel = pytest.importorskip("nibabel")
    volume = (100 * data((5, 6, 7, 4))).astype(stored)
    affine = numpy.array([[0, 2, 0, -9], [-3, 0, 0, 5], [0, 0, 1.5, 1], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(volume, affine)
    image.header["descrip"] = b"of a test"
    image.header["cal_max"] = 400
    image.to_filename(cli.directory / f"x{suffix}")
    out = cli.ok("run", f"x{suffix}", "-g", 2, "-o", f"y{suffix}")
    result = "float64" if stored == "float64" else "float32"
    assert f"NIfTI, {stored}" in out and ("converted" in out) == (stored != result)
    assert "n 1, c 4, s 210, channels_first" in out
    y = nibabel.load(cli.directory / f"y{suffix}")
    assert y.get_data_dtype() == result
    assert (y.affine == affine).all()
    assert y.header["descrip"] == b"of a test" and y.header["cal_max"] == 0
    near(y.get_fdata(dtype=result), expected_of(volume, "SSSC", groups=2))


def test_nifti_is_scaled_and_has_a_channel(cli):
    nibabel = pytest.importorskip("nibabel")
    volume = numpy.arange(60, dtype="int16").reshape(3, 4, 5)
    image = nibabel.Nifti1Image(volume, numpy.eye(4))
    image.header.set_slope_inter(0.001, 7)
    image.to_filename(cli.directory / "x.nii")
    seen = nibabel.load(cli.directory / "x.nii").get_fdata()
    out = cli.ok("run", "x.nii", "-o", "y.npy", "--eps", 1e-3)
    assert "slope 0.001, intercept 7, converted to float64" in out and "n 1, c 1, s 60" in out
    near(cli.load("y.npy"), expected_of(seen, "SSS", "layer", eps=1e-3))
    cli.ok("run", "x.nii", "-o", "y.npy", "--axes", "CSS", "--norm", "instance")
    near(cli.load("y.npy"), expected_of(seen, "CSS", "instance"))


def test_nifti_of_an_array(cli):
    nibabel = pytest.importorskip("nibabel")
    x = data((1, 4, 3, 2), "float16")
    cli.save("x.npy", x)
    out = cli.ok("run", "x.npy", "-g", 2, "-o", "y.nii.gz")
    assert "NIfTI has no float16: float32; affine: the identity" in out
    y = nibabel.load(cli.directory / "y.nii.gz")
    assert (y.affine == numpy.eye(4)).all()
    numpy.testing.assert_allclose(y.get_fdata(), numpy_norms.normalize(x, groups=2)[0], atol=4e-3)


def test_nifti_refusals(cli):
    nibabel = pytest.importorskip("nibabel")
    five = nibabel.Nifti1Image(numpy.zeros((2, 2, 2, 1, 3), "float32"), numpy.eye(4))
    five.to_filename(cli.directory / "five.nii")
    assert "--axes" in cli.refused("run", "five.nii", "-o", "y.npy")
    cli.ok("run", "five.nii", "-o", "y.npy", "--axes", "SSSSC")
    cli.ok("run", "five.nii", "-o", "y.npy", "--axes", "SSSNC")
    pair = numpy.zeros((2, 2, 2), "complex64")
    nibabel.Nifti1Image(pair, numpy.eye(4)).to_filename(cli.directory / "complex.nii")
    assert "not a real number" in cli.refused("run", "complex.nii", "-o", "y.npy")
    whole = (cli.directory / "five.nii").read_bytes()
    (cli.directory / "part.nii").write_bytes(whole[:-8])
    (cli.directory / "noise.nii.gz").write_bytes(b"noise" * 100)
    for name in ("part.nii", "noise.nii.gz"):
        assert f"'{name}': cannot be read: " in cli.refused("run", name, "-o", "y.npy")


def dicom_of(pixels, **elements):
    """A data set of unsigned pixels [frames?, height, width, colours?]."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Modality = "OT"
    frames = elements.pop("frames", None)
    if frames:
        dataset.NumberOfFrames = frames
    dataset.Rows, dataset.Columns = pixels.shape[1 if frames else 0 :][:2]
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


def rescale(slope, intercept):
    from pydicom import Dataset, Sequence

    item, group = Dataset(), Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "US"
    group.PixelValueTransformationSequence = Sequence([item])
    return group


def test_dicom_is_rescaled(cli):
    pixels = numpy.arange(30, dtype="uint16").reshape(5, 6)
    dicom_of(pixels, RescaleSlope=0.5, RescaleIntercept=-1024).save_as(
        cli.directory / "x.dcm", enforce_file_format=True
    )
    out = cli.ok("run", "x.dcm", "-o", "y.npy", "--stats", "s.npy")
    assert "read     DICOM OT, uint16, slope 0.5, intercept -1024, converted to float32\n" in out
    assert "[5, 6], axes SS, seen as n 1, c 1, s 30" in out
    near(cli.load("y.npy"), expected_of(pixels * 0.5 - 1024, "SS", "layer"))
    assert cli.load("s.npy")[0, 0, 0] == (pixels * 0.5 - 1024).mean()


def test_dicom_frames_are_examples(cli):
    from_frames = [(1, 0), (2, -5), (0.25, 100)]
    pixels = numpy.arange(60, dtype="uint8").reshape(3, 4, 5)
    dataset = dicom_of(pixels, frames=3)
    dataset.PerFrameFunctionalGroupsSequence = [rescale(*each) for each in from_frames]
    dataset.save_as(cli.directory / "x.dcm", enforce_file_format=True)
    out = cli.ok("run", "x.dcm", "-o", "y.npy", "--stats", "s.npy")
    assert "each frame by its own" in out and "axes NSS, seen as n 3, c 1, s 20" in out
    scaled = [p * float(slope) + intercept for p, (slope, intercept) in zip(pixels, from_frames)]
    assert (cli.load("s.npy")[0, :, 0] == [each.mean() for each in scaled]).all()
    near(cli.load("y.npy"), expected_of(numpy.stack(scaled), "NSS", "layer"))
    shared = dicom_of(pixels, frames=3)
    shared.SharedFunctionalGroupsSequence = [rescale(3, 1)]
    shared.save_as(cli.directory / "x.dcm", enforce_file_format=True)
    cli.ok("run", "x.dcm", "-o", "y.npy", "--axes", "CSS", "-g", 1, "--stats", "s.npy")
    assert cli.load("s.npy")[0, 0, 0] == (pixels * 3.0 + 1).mean()


def test_dicom_colours_are_channels(cli):
    pixels = numpy.arange(4 * 5 * 3, dtype="uint8").reshape(4, 5, 3)
    dicom_of(
        pixels, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    ).save_as(cli.directory / "x.dcm", enforce_file_format=True)
    out = cli.ok("run", "x.dcm", "-o", "y.npy", "--norm", "instance")
    assert "axes SSC, seen as n 1, c 3, s 20, channels_last" in out
    near(cli.load("y.npy"), expected_of(pixels, "SSC", "instance"))


def test_real_dicom(cli):
    pytest.importorskip("pydicom")
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    from pydicom.pixels import apply_rescale

    path = get_testdata_file("CT_small.dcm")
    dataset = dcmread(path)
    hounsfield = apply_rescale(dataset.pixel_array, dataset)
    cli.ok("run", path, "-o", "y.npy")
    near(cli.load("y.npy"), expected_of(hounsfield, "SS", "layer"))
    truncated = get_testdata_file("MR_truncated.dcm")
    assert "less than expected" in cli.refused("run", truncated, "-o", "y.npy")


def test_dicom_refusals(cli):
    pytest.importorskip("pydicom")
    (cli.directory / "noise.dcm").write_bytes(b"noise" * 100)
    assert "cannot be read" in cli.refused("run", "noise.dcm", "-o", "y.npy")
    cli.save("x.npy", data((1, 1, 4, 4)))
    message = cli.refused("run", "x.npy", "-o", "y.dcm")
    assert "'y.dcm': DICOM is not written: " in message and ".nii.gz" in message


IMAGES = [
    ("png", "L", "uint8", (4, 5), "SS"),
    ("png", "RGB", "uint8", (4, 5, 3), "SSC"),
    ("png", "I;16", "uint16", (4, 5), "SS"),
    ("png", "1", "bool", (4, 5), "SS"),
    ("tif", "F", "float32", (4, 5), "SS"),
    ("tiff", "L", "uint8", (4, 5), "SS"),
]


@pytest.mark.parametrize("suffix, mode, dtype, shape, axes", IMAGES)
def test_images(cli, suffix, mode, dtype, shape, axes):
    pillow = pytest.importorskip("PIL.Image")
    pixels = (37 * numpy.arange(numpy.prod(shape)) % 251).reshape(shape).astype(dtype)
    if dtype == "bool":
        pixels = pixels ^ (numpy.arange(5) > 2)
    pillow.fromarray(pixels).save(cli.directory / f"x.{suffix}")
    out = cli.ok("run", f"x.{suffix}", "-o", "y.npy", "--norm", "layer")
    assert f"{mode}" in out.splitlines()[0]
    assert ("converted to float32" in out) == (dtype != "float32")
    assert f"axes {axes}, seen as n 1, c {3 if 'C' in axes else 1}, s 20" in out
    near(cli.load("y.npy"), expected_of(pixels, axes, "layer"))


def test_jpeg(cli):
    pillow = pytest.importorskip("PIL.Image")
    pixels = numpy.arange(16 * 16 * 3, dtype="uint8").reshape(16, 16, 3)
    pillow.fromarray(pixels).save(cli.directory / "x.jpg")
    decoded = numpy.asarray(pillow.open(cli.directory / "x.jpg"))
    cli.ok("run", "x.jpg", "-o", "y.npy", "--norm", "instance")
    near(cli.load("y.npy"), expected_of(decoded, "SSC", "instance"))


def test_alpha_and_palettes(cli):
    pillow = pytest.importorskip("PIL.Image")
    pixels = numpy.arange(4 * 5 * 4, dtype="uint8").reshape(4, 5, 4)
    image = pillow.fromarray(pixels)
    image.save(cli.directory / "x.png")
    out = cli.ok("run", "x.png", "-o", "y.npy", "--norm", "layer")
    assert "RGBA, as RGB" in out
    near(cli.load("y.npy"), expected_of(pixels[..., :3], "SSC", "layer"))
    image.convert("LA").save(cli.directory / "x.png")
    assert "LA, as L" in cli.ok("run", "x.png", "-o", "y.npy")
    near(cli.load("y.npy"), expected_of(numpy.asarray(image.convert("L")), "SS", "layer"))
    palette = image.convert("RGB").quantize(8)
    palette.save(cli.directory / "x.png")
    assert "P, as RGB" in cli.ok("run", "x.png", "-o", "y.npy", "--norm", "layer")
    near(cli.load("y.npy"), expected_of(numpy.asarray(palette.convert("RGB")), "SSC", "layer"))


def test_pages_are_examples(cli):
    pillow = pytest.importorskip("PIL.Image")
    pages = numpy.random.default_rng(0).integers(0, 255, (3, 4, 5), "uint8")
    images = [pillow.fromarray(page) for page in pages]
    images[0].save(cli.directory / "x.tif", save_all=True, append_images=images[1:])
    assert "axes NSS, seen as n 3, c 1, s 20" in cli.ok("run", "x.tif", "-o", "y.npy")
    near(cli.load("y.npy"), expected_of(pages, "NSS", "layer"))
    larger = images[1].resize((7, 7))
    images[0].save(cli.directory / "x.tif", save_all=True, append_images=[larger])
    assert "its 2 pages are not of one size" in cli.refused("run", "x.tif", "-o", "y.npy")


def test_a_png_is_for_viewing(cli):
    pillow = pytest.importorskip("PIL.Image")
    pixels = numpy.linspace(50, 60, 20).reshape(4, 5)
    pillow.fromarray(pixels.astype("uint8")).save(cli.directory / "x.png")
    out = cli.ok("run", "x.png", "-o", "y.png")
    assert "wrote    y.png, for viewing: -1.53" in out and "scaled to 8 bits" in out
    y = numpy.asarray(pillow.open(cli.directory / "y.png"))
    assert y.dtype == numpy.uint8 and y.shape == (4, 5)
    low, high = pixels.astype("uint8").min(), pixels.astype("uint8").max()
    wanted = 255 * (pixels.astype("uint8").astype(float) - low) / (high - low)
    assert abs(y - wanted).max() <= 0.5001


def test_what_a_png_can_hold(cli):
    pillow = pytest.importorskip("PIL.Image")
    size = {(1, 3, 4, 5): (4, 5, 3), (1, 1, 4, 5): (4, 5)}
    for shape, pixels in size.items():
        cli.save("x.npy", data(shape))
        cli.ok("run", "x.npy", "-o", "y.png", "--norm", "instance")
        assert numpy.asarray(pillow.open(cli.directory / "y.png")).shape == pixels
    cli.save("x.npy", data((4, 1, 5)))  # one slice of a volume
    cli.ok("run", "x.npy", "-o", "y.png", "--axes", "SSS")
    assert numpy.asarray(pillow.open(cli.directory / "y.png")).shape == (4, 5)
    for shape in [(2, 1, 4, 5), (1, 2, 4, 5), (1, 1, 4, 5, 6), (1, 4, 5), (0, 1, 4, 5)]:
        cli.save("x.npy", data(shape))
        message = cli.refused("run", "x.npy", "-o", "z.png", "--norm", "layer")
        assert f"one image of 1 or 3 channels; got shape {list(shape)}" in message
    x = data((1, 3, 4, 5))
    x[0, 0] = 7
    x[0, 1, 2, 3] = numpy.nan  # all of its channel, then
    cli.save("x.npy", x)
    cli.ok("run", "x.npy", "-o", "y.png", "--norm", "instance")
    pixels = numpy.asarray(pillow.open(cli.directory / "y.png"))
    assert (pixels[..., 1] == 0).all() and (numpy.ptp(pixels, (0, 1)) == [0, 0, 255]).all()


# run: refusals


@pytest.fixture
def good(cli):
    cli.save("x.npy", data((2, 6, 4)))
    cli.save("c.npy", data(6))
    return cli


def test_the_files_that_others_spoil_are_good(good):
    good.ok("run", "x.npy", "-o", "y.npy", "--gamma", "c.npy")


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
CONTENT = struct.pack("<6f", *range(6))


def npy(header=HEADER, content=CONTENT, magic=b"\x93NUMPY\x01\x00"):
    return magic + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
        (npy(magic=b"\x92NUMPY\x01\x00"), "magic"),
        (npy(magic=b"\x93NUMPY\x09\x00"), "version"),
        (npy(header="{'descr': '<f4'"), "malformed .npy header"),
        (npy(header="[1, 2]"), "malformed .npy header"),
        (npy()[:20], "is cut short: it ends within its header"),
        (npy(content=b"\0" * 20), "holds 20 bytes of data; its shape [2, 3] needs 24"),
        (npy(HEADER.replace("2, 3", "99999999, 99999999")), "holds 24 bytes"),
        (npy(HEADER.replace("<f4", "|O")), "object"),
        (npy(HEADER.replace("<f4", "<c8"), b"\0" * 48), "dtype complex64"),
        (npy(HEADER.replace("<f4", "<U1")), "dtype <U1"),
        (npy(HEADER.replace("<f4", "<V4")), "save bfloat16 as float32"),
        (npy(HEADER.replace("<f4", "<M8[s]"), b"\0" * 48), "dtype datetime64[s]"),
        (npy(HEADER.replace("'<f4'", "[('a', '<f4')]")), "structured"),
        (npy(HEADER.replace("2, 3", "6,")), "at least two axes, N and C"),
        (npy(HEADER.replace("2, 3", "")), "at least two axes, N and C"),
    ],
)
def test_bad_npy(cli, content, reason):
    (cli.directory / "x.npy").write_bytes(content)
    message = cli.refused("run", "x.npy", "-o", "y.npy")
    assert message.startswith("groupnorm: 'x.npy': ") and reason.lower() in message.lower()


def test_bad_npz(cli):
    numpy.savez(cli.directory / "x.npz", a=data((2, 3)))
    whole = (cli.directory / "x.npz").read_bytes()
    (cli.directory / "part.npz").write_bytes(whole[:-30])
    spoilt = bytearray(whole)
    spoilt[whole.index(b"\x93NUMPY") + 130] ^= 1
    (cli.directory / "spoilt.npz").write_bytes(spoilt)
    numpy.savez(cli.directory / "object.npz", a=numpy.array([None]))
    numpy.savez(cli.directory / "none.npz")
    assert "is cut short: it lacks the list of arrays" in cli.refused(
        "run", "part.npz", "-o", "y.npy"
    )
    assert "cannot be read" in cli.refused("run", "spoilt.npz", "-o", "y.npy")
    assert "Object arrays" in cli.refused("run", "object.npz", "-o", "y.npy")
    assert "holds nothing" in cli.refused("run", "none.npz", "-o", "y.npy")


def test_bad_images(cli):
    pillow = pytest.importorskip("PIL.Image")
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64), "uint8")
    pillow.fromarray(noise).save(cli.directory / "x.png")
    whole = (cli.directory / "x.png").read_bytes()
    (cli.directory / "x.png").write_bytes(whole[:1000])
    (cli.directory / "noise.jpg").write_bytes(b"noise" * 100)
    message = cli.refused("run", "x.png", "-o", "y.npy", "--layout", "channels_last")
    assert "--layout: means nothing beside .png, which says what each axis is" in message
    for name in ("x.png", "noise.jpg"):
        assert f"'{name}': cannot be read: " in cli.refused("run", name, "-o", "y.npy")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "a subcommand is required"),
        (["nosuch"], "nosuch"),
        (["info", "--nosuch"], "--nosuch"),
        (["run"], "x, -o"),
        (["run", "x.npy"], "-o"),
        (["run", "x.npy", "-o", "y.npy", "more.npy"], "more.npy"),
        (["run", "none.npy", "-o", "y.npy"], "'none.npy': No such file or directory"),
        (["run", ".", "-o", "y.npy"], "'.': is a directory"),
        (["run", "x.npy", "-o", "y.npy", "--format", "raw"], "--format: invalid choice: 'raw'"),
        (["run", "x.npy", "-o", "y.txt"], "got '.txt'"),
        (["run", "x.npy", "-o", "y"], "got ''"),
        (["run", "x.npy", "-o", "y.jpg"], "'y.jpg': the name must end in one of .npy .npz"),
        (["run", "x.npy", "-o", "none/y.npy"], "'none/y.npy': cannot be written: No such file"),
        (["run", "x.npy", "-o", "y.npy", "-g", 4], "divide the 6 channels; got 4"),
        (["run", "x.npy", "-o", "y.npy", "-g", 0], "divide the 6 channels; got 0"),
        (["run", "x.npy", "-o", "y.npy", "-g", -2], "divide the 6 channels; got -2"),
        (["run", "x.npy", "-o", "y.npy", "-g", "two"], "--groups/-g: must be a whole number"),
        (["run", "x.npy", "-o", "y.npy", "--norm", "max"], "--norm: invalid choice: 'max'"),
        (
            ["run", "x.npy", "-o", "y.npy", "--norm", "layer", "-g", 2],
            "--groups: means nothing to --norm layer",
        ),
        (["run", "x.npy", "-o", "y.npy", "--norm", "ghost_batch"], "--groups: needed"),
        (
            ["run", "x.npy", "-o", "y.npy", "--norm", "ghost_batch", "-g", 3],
            "divide the 2 examples; got 3",
        ),
        (["run", "x.npy", "-o", "y.npy", "--layout", "nchw"], "--layout: invalid choice: 'nchw'"),
        (["run", "x.npy", "-o", "y.npy", "--axes", "NCHW"], "--axes: must be letters N, C and S"),
        (["run", "x.npy", "-o", "y.npy", "--axes", "NCC"], "N and C at most once; got 'NCC'"),
        (["run", "x.npy", "-o", "y.npy", "--axes", ""], "--axes"),
        (["run", "x.npy", "-o", "y.npy", "--axes", "NCSS"], "shape [2, 6, 4]; got 'NCSS'"),
        (
            ["run", "x.npy", "-o", "y.npy", "--axes", "NCS", "--layout", "channels_last"],
            "--layout: means nothing beside --axes",
        ),
        (["run", "x.npy", "-o", "y.npy", "--activation", "tanh"], "--activation: invalid choice"),
        (["run", "x.npy", "-o", "y.npy", "--eps", "-1"], "eps"),
        (["run", "x.npy", "-o", "y.npy", "--eps", "nan"], "eps"),
        (["run", "x.npy", "-o", "y.npy", "--eps", "small"], "--eps"),
        (["run", "x.npy", "-o", "y.npy", "--correction", 2], "--correction: must be from 0 to 1"),
        (["run", "x.npy", "-o", "y.npy", "--threads", 0], "--threads: must be from 1 to 1024"),
        (["run", "x.npy", "-o", "y.npy", "--threads", "2000"], "got '2000'"),
        (["run", "x.npy", "-o", "y.npy", "--key", "a"], "--key: means nothing to .npy"),
        (["run", "x.npy", "-o", "y.npy", "--stats", "y.npy"], "must be two files"),
        (["run", "x.npy", "-o", "y.npy", "--stats", "./y.npy"], "must be two files"),
        (["run", "x.npy", "-o", "y.npy", "--stats", "s.npz"], "'s.npz': the name must end in"),
        (["run", "x.npy", "-o", "y.npy", "--stats", "none/s.npy"], "none/s.npy"),
        (["run", "x.npy", "-o", "y.npy", "--gamma", "none.npy"], "'none.npy': No such file"),
        (["run", "x.npy", "-o", "y.npy", "--gamma", "g.npz"], "--gamma: 'g.npz'"),
        (
            ["run", "x.npy", "-o", "y.npy", "--beta", "x.npy"],
            "--beta: 'x.npy': has shape [2, 6, 4]; must be [6], one a channel, or [2, 6]",
        ),
        (["bench", "--shape", "8"], "--shape: must be sizes as in 2x320x64x64"),
        (["bench", "--shape", "2x0x4"], "got '2x0x4'"),
        (["bench", "--shape", "2x8x"], "--shape"),
        (["bench", "--shape", "2x8x5", "-g", 3], "divide the 8 channels; got 3"),
        (["bench", "--shape", "100000x100000x100"], "of memory"),
        (["bench", "--groups", "2"], "--groups: needs --shape"),
        (["bench", "--dtype", "f8"], "--dtype: invalid choice: 'f8'"),
        (["bench", "--seconds", "-1"], "--seconds: must be from 0 to 3600"),
        (["bench", "--seconds", 1, "--quick"], "--quick"),
        (["bench", "--threads", "none"], "--threads"),
        (["bench", "--plot", "p.gif"], "'p.gif': the name must end in .png"),
        (["bench", "--api", "numpy", "--compile"], "--compile: means nothing to --api numpy"),
        (["bench", "--api", "numpy", "--backward"], "--backward: needs torch"),
        (["bench", "--api", "numpy", "--activation", "gelu"], "--activation gelu: needs torch"),
        (
            ["bench", "--api", "numpy", "--shape", "2x8", "--layout", "channels_last"],
            "needs a --shape of 3 sizes or more",
        ),
    ],
)
def test_bad_command_lines(good, arguments, reason):
    assert reason in good.refused(*arguments)


def test_gamma_and_beta_of_two_shapes(good):
    good.save("nc.npy", data((2, 6)))
    arguments = ["run", "x.npy", "-o", "y.npy", "--gamma", "c.npy", "--beta", "nc.npy"]
    assert "--gamma and --beta: must be of the same shape" in good.refused(*arguments)


def test_an_unavailable_target(good, monkeypatch):
    monkeypatch.setattr(groupnorm, "info", lambda: {**good_info, "target": None})
    good_info = {"version": "1", "targets": ["avx2", "scalar"], "threads": 1}
    monkeypatch.setenv("GROUPNORM_TARGET", "avx9")
    for command in (["run", "x.npy", "-o", "y.npy"], ["bench", "--shape", "1x8"]):
        message = good.refused(*command)
        assert "GROUPNORM_TARGET=avx9: is not available here; available: avx2, scalar" in message
    assert "none: GROUPNORM_TARGET=avx9 is not available here" in good.ok("info")


@pytest.mark.parametrize(
    "package, name, wanted",
    [
        ("nibabel", "x.nii.gz", "nibabel, which is not installed: pip install groupnorm[io]"),
        ("pydicom", "x.dcm", "pydicom 3, which is not installed: pip install groupnorm[io]"),
        ("PIL", "x.png", "pillow, which is not installed: pip install groupnorm[io]"),
    ],
)
def test_missing_packages(good, without, package, name, wanted):
    without(package)
    begin = {"x.nii.gz": gzip.compress(b"\0\0\0\0n+2\0"), "x.dcm": b"\0" * 128 + b"DICM"}
    (good.directory / name).write_bytes(begin.get(name, PNG_MAGIC))
    assert f"'{name}': needs {wanted}" in good.refused("run", name, "-o", "y.npy")
    if name != "x.dcm":  # before anything is computed
        assert f"'y{name[1:]}': needs {wanted}" in good.refused(
            "run", "x.npy", "-o", "y" + name[1:]
        )
    good.ok("run", "x.npy", "-o", "y.npy")


def test_outputs_that_cannot_be_written(good):
    (good.directory / "d.npy").mkdir()
    assert "'d.npy': cannot be written: is a directory" in good.refused(
        "run", "x.npy", "-o", "d.npy"
    )
    os.mkfifo(good.directory / "f.npy")
    assert "is not a regular file" in good.refused("run", "x.npy", "-o", "f.npy")
    assert "'f.npy': is not a regular file" in good.refused("run", "f.npy", "-o", "y.npy")
    assert "'d.npy': is a directory" in good.refused("run", "d.npy", "-o", "y.npy")


@pytest.mark.parametrize("output", ["y.npy", "y.npz", "y.nii.gz", "y.png"])
def test_a_disk_that_is_full(good, output):
    """A file of a few bytes at most: what was there stays, and nothing else."""
    for package in {"y.nii.gz": ["nibabel"], "y.png": ["PIL"]}.get(output, []):
        pytest.importorskip(package)
    good.save("x.npy", numpy.random.default_rng(0).standard_normal((1, 3, 64, 64)))
    (good.directory / output).write_text("what was there")
    limit = (
        "import resource, sys; from groupnorm._cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", limit, "run", "x.npy", "-o", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert f"'{output}': cannot be written: " in result.stderr
    assert result.stderr.count("\n") == 1
    assert (good.directory / output).read_text() == "what was there"
    assert good.files() == sorted(["c.npy", "x.npy", output])


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_interrupted_while_writing(good, monkeypatch, error, status):
    def write_half(path, result, beside):
        path.write_bytes(b"half")
        raise error

    halves = dataclasses.replace(files.NPY, save=write_half)
    monkeypatch.setattr(files, "_writer_of", lambda path: halves)
    before = good.files()
    assert good("run", "x.npy", "-o", "y.npy", "--stats", "s.npy")[0] == status
    assert good.files() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_killed_half_way_leaves_nothing(cli, number):
    """At every moment the name has nothing or the whole array, and no other name is left."""
    cli.save("x.npy", data((8, 64, 64, 64)))
    for delay in (0.15, 0.25, 0.35, 0.45):
        process = subprocess.Popen(
            [sys.executable, "-m", "groupnorm", "run", "x.npy", "-o", "y.npy"],
            cwd=cli.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(number)
        process.wait()
        assert set(cli.files()) <= {"x.npy", "y.npy"}
        if "y.npy" in cli.files():
            assert cli.load("y.npy").shape == (8, 64, 64, 64)
            (cli.directory / "y.npy").unlink()


def test_output_may_be_the_input_and_a_link_stays_one(cli):
    x = data((2, 6, 4))
    cli.save("real.npy", x)
    (cli.directory / "x.npy").symlink_to("real.npy")
    (cli.directory / "real.npy").chmod(0o640)
    cli.ok("run", "x.npy", "-o", "x.npy", "--norm", "layer")
    assert (cli.directory / "x.npy").is_symlink()
    assert stat.S_IMODE((cli.directory / "real.npy").stat().st_mode) == 0o640
    near(cli.load("real.npy"), numpy_norms.normalize(x, "layer")[0])


# info, and the program


def test_info(cli):
    found = json.loads(cli.ok("info", "--json"))
    assert list(found) == ["version", "targets", "target", "threads", "caches", "packages"]
    assert {key: found[key] for key in groupnorm.info()} == groupnorm.info()
    assert set(found["caches"]) == {"l1d", "l2", "l3"}
    assert found["packages"]["numpy"] == numpy.__version__
    text = cli.ok("info")
    assert f"target   {found['target']}\n" in text and f"numpy {numpy.__version__}" in text


@pytest.mark.parametrize("command", [[], ["run"], ["info"], ["bench"]])
def test_help(cli, command):
    assert "usage: groupnorm" in cli.ok(*command, "--help")
    assert cli.ok("--version") == f"{groupnorm.__version__}\n"


def test_the_program(cli):
    """As a process: nothing heavy is imported, and a closed pipe is no error."""
    code = (
        "import sys, groupnorm._cli as c; c.main(['info']); "
        "print(*{m.partition('.')[0] for m in sys.modules} "
        "& {'torch', 'nibabel', 'PIL', 'pydicom', 'matplotlib', 'rich'})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("\n\n"), result.stdout
    bad = subprocess.run(
        [sys.executable, "-m", "groupnorm", "run", "none.npy", "-o", "y.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "groupnorm: 'none.npy': No such file or directory\n"
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(
        [sys.executable, "-m", "groupnorm", "info"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (-signal.SIGPIPE, b"")


# bench

TINY = ["--shape", "2x8x5x7", "--groups", "2", "--seconds", "0", "--threads", "1", "--hot"]


def bench_json(cli, *arguments):
    out = cli.ok("bench", *TINY, "--json", *arguments, stderr=None)
    assert out.count("\n") == 1
    found = json.loads(out)
    assert list(found) == list(report.JSON_KEYS)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bench_of_numpy(cli, layout):
    found = bench_json(cli, "--api", "numpy", "--layout", layout, "--activation", "silu")
    wanted = {
        "model": "",
        "shape": "2x8x5x7",
        "groups": 2,
        "dtype": "f32",
        "layout": layout,
        "activation": "silu",
        "direction": "forward",
        "api": "numpy",
        "threads": 1,
        "hot": True,
        "torch_p50_us": None,
        "compile_ratio": None,
        "version": groupnorm.__version__,
        "rival_version": numpy.__version__,
    }
    assert {key: found[key] for key in wanted} == wanted
    for name in ("", "copy_", "numpy_"):
        assert 0 < found[f"{name}p50_us"] <= found[f"{name}p99_us"]
    assert found["copy_ratio"] == pytest.approx(found["p50_us"] / found["copy_p50_us"], rel=1e-4)
    assert found["numpy_ratio"] == pytest.approx(found["numpy_p50_us"] / found["p50_us"], rel=1e-4)
    bytes_moved = 2 * 4 * 2 * 8 * 5 * 7
    assert found["gb_per_s"] == pytest.approx(bytes_moved / found["p50_us"] * 1e-3, rel=1e-4)
    assert 0 < found["max_error_eps"] <= 3.3 and 0 < found["numpy_max_error_eps"] < 30


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", [[], ["--backward"]])
def test_bench_of_torch(cli, dtype, layout, backward):
    torch = pytest.importorskip("torch")
    options = ["--dtype", dtype, "--layout", layout, "--activation", "gelu", *backward]
    found = bench_json(cli, "--api", "torch", *options)
    assert (found["api"], found["rival_version"]) == ("torch", torch.__version__)
    assert found["direction"] == ("forward+backward" if backward else "forward")
    assert 0 < found["torch_p50_us"] <= found["torch_p99_us"]
    assert found["torch_ratio"] == pytest.approx(found["torch_p50_us"] / found["p50_us"], rel=1e-4)
    assert 0 < found["max_error_eps"] <= 4.6
    assert 0 < found["torch_max_error_eps"] < 100
    tensors = 5 if backward else 2
    size = {"f32": 4, "f16": 2, "bf16": 2}[dtype] * 2 * 8 * 5 * 7
    assert found["gb_per_s"] == pytest.approx(tensors * size / found["p50_us"] * 1e-3, rel=1e-4)


def test_bench_rotates(cli):
    """Without --hot: the sets hold the same values, each in memory of its own."""
    pytest.importorskip("torch")
    from groupnorm._cli import contest_torch

    case = contest.Case("", (1, 8, 3), 2)
    setting = contest.Setting("torch", "f32", LAYOUTS[0], "none", True, False, False, 1)
    sets = contest_torch.arena(case, setting).sets
    assert len(sets) == contest._MOST_SETS
    for tensors in zip(*sets[:3], strict=True):
        assert len({tensor.data_ptr() for tensor in tensors}) == 3
        assert all((tensor == tensors[0]).all() for tensor in tensors)
        assert all(tensor.data_ptr() % 64 == tensors[0].data_ptr() % 64 for tensor in tensors)
    assert contest.sets_of(1 << 30, hot=True) == 1
    assert contest.sets_of(1 << 40, hot=False) == 1
    assert contest.sets_of(1 << 26, hot=False) >= 2


def test_bench_takes_no_more_than_a_limited_memory_has(monkeypatch):
    monkeypatch.setattr(contest, "allowed_memory", lambda: 64 << 20)
    assert contest.sets_of(1 << 20, hot=False) == 32
    assert contest.sets_of(1 << 25, hot=False) == 1


def test_a_small_address_space(good):
    """As `ulimit -v`: what does not fit is refused in one line."""
    with open(good.directory / "large.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2, 8, 1 << 28)}
        numpy.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (1 << 34))  # takes no room on the disk
    limit = (
        "import resource, sys; from groupnorm._cli import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)); sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", limit, "run", "large.npy", "-o", "y.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "'large.npy': needs 32 GB of memory, this process may have " in result.stderr
    assert result.stderr.count("\n") == 1


def test_bench_table(cli, monkeypatch):
    monkeypatch.setattr(bench, "CASES", [bench.Case("tiny", (1, 8, 4), 2)])
    status, out, err = cli("bench", "--api", "numpy", "--quick", "--hot", "--threads", 1)
    assert (status, err) == (0, "1/1 tiny 1x8x4\n")
    lines = out.splitlines()
    assert lines[0].startswith(
        "forward, f32, channels_first, activation none, in buffers that stay"
    )
    assert lines[2].split()[:3] == ["model", "shape", "groups"]
    assert "numpy/ours" in lines[2] and "ours/copy" in lines[2] and "torch" not in lines[2]
    assert lines[3].split()[:3] == ["tiny", "1x8x4", "2"]


def outcome_of(ours, torch, compiled=None):
    from groupnorm._cli import contest

    times = {"ours": ours, "torch": torch, "compile": compiled, "copy": 1.0}
    times = {name: contest.Times(p50, 2 * p50) for name, p50 in times.items() if p50}
    errors = dict.fromkeys(times, 0.5)
    return contest.Outcome(contest.Case("m", (1, 8), 2), times, errors, 3.0, 64)


@pytest.mark.parametrize(
    "times, remark",
    [
        ((4.0, 8.0), ""),
        ((4.0, 3.0), "torch faster"),
        ((4.0, 8.0, 3.0), "compile faster"),
        ((4.0, 3.0, 2.0), "torch and compile faster"),
    ],
)
def test_bench_says_where_it_is_slower(times, remark):
    from groupnorm._cli import contest

    setting = contest.Setting("numpy", "f32", LAYOUTS[0], "none", False, False, False, 1)
    row = report.table([outcome_of(*times)], setting).splitlines()[3]
    assert row.endswith(remark) and ("faster" in row) == bool(remark)
    assert f"{times[1] / times[0]:.2f}" in row.split()


def test_bench_does_not_time_what_is_wrong(cli, monkeypatch):
    monkeypatch.setattr(oracle, "forward_bound", lambda activation: 1e-9)
    for flags in ([], ["--json"]):
        status, out, err = cli("bench", *TINY, "--api", "numpy", *flags)
        assert status == 1
        assert "groupnorm: the result is wrong, so it was not timed: 2x8x5x7, 2 groups" in err
        assert ("WRONG" in out) if not flags else out == ""


def test_bench_oracle_by_its_definition():
    x, gamma, beta = data((3, 50), "float64"), data(3, "float64", 1), data(3, "float64", 2)
    y, unit = oracle.forward(x, gamma, beta, 0.1, lambda z: z)
    wanted = norms.exact("group", x[None], gamma, beta, groups=1, eps=0.1)
    numpy.testing.assert_allclose(y, wanted.y[0], rtol=1e-12)
    numpy.testing.assert_allclose(unit, wanted.unit[0], rtol=1e-12)


def test_bench_errors_see_a_wrong_gradient(cli):
    torch = pytest.importorskip("torch")
    from groupnorm._cli import contest_torch

    case = contest.Case("", (3, 8, 5), 2)
    setting = contest.Setting("torch", "f32", LAYOUTS[0], "silu", True, True, False, 1)
    arena = contest_torch.arena(case, setting)
    x, dy = arena.sets[0]
    right = arena.calls["torch"]((x, dy))
    assert 0 < arena.errors({"torch": right})["torch"] < 20
    for i in range(3):
        wrong = [tensor.clone() for tensor in right]
        wrong[i].view(-1)[1] += 1e-2
        assert arena.errors({"torch": wrong})["torch"] > 100
        wrong[i].view(-1)[1] = torch.nan
        assert not arena.errors({"torch": wrong})["torch"] < 100


def test_bench_plot(cli):
    pytest.importorskip("matplotlib")
    out = cli.ok("bench", *TINY, "--api", "numpy", "--plot", "p.png", stderr=None)
    assert out.endswith("wrote    p.png\n")
    assert (cli.directory / "p.png").read_bytes().startswith(b"\x89PNG")
    assert cli.files() == ["p.png"]


@pytest.mark.parametrize(
    "package, flags, wanted",
    [
        ("torch", ["--api", "torch"], "--api torch: needs torch"),
        ("matplotlib", ["--plot", "p.png"], "--plot: needs matplotlib"),
        ("ml_dtypes", ["--api", "numpy", "--dtype", "bf16"], "bf16 --api numpy: needs ml_dtypes"),
    ],
)
def test_bench_without_packages(cli, without, package, flags, wanted):
    without(package)
    assert wanted in cli.refused("bench", *TINY, *flags)


def test_bench_without_torch_takes_numpy(cli, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench_json(cli)["api"] == "numpy"


def test_bench_interrupted_prints_what_it_has(cli, monkeypatch):
    cases = [bench.Case(name, (1, 8, 4), 2) for name in ("one", "two")]
    monkeypatch.setattr(bench, "CASES", cases)

    def play(case, arena, seconds, genuine=bench.play):
        if case.model == "two":
            raise KeyboardInterrupt
        return genuine(case, arena, seconds)

    monkeypatch.setattr(bench, "play", play)
    status, out, _ = cli("bench", "--api", "numpy", "--seconds", 0, "--hot")
    assert status == 130 and "one    1x8x4" in out and "two" not in out
