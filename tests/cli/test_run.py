"""`groupnorm run` against NumPy in float64."""

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_norms import normalize

NORMS = [
    "group",
    "layer",
    "instance",
    "batch",
    "ghost_batch",
    "batch_group",
    "rms",
    "group_rms",
]
GROUPED = {"group", "ghost_batch", "batch_group", "group_rms"}
LAYOUTS = ["channels_first", "channels_last"]
ACTIVATIONS = ["none", "relu", "silu", "gelu", "gelu_tanh", "hard_swish"]
# Half a step of the dtype near 8, and the float32 or float64 arithmetic before it.
TOLERANCE = {"float16": 4e-3, "float32": 4e-6, "float64": 1e-13}


def data(shape, dtype="float32", seed=0, mean=3.0):
    return (mean + numpy.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[actual.dtype.name]
    numpy.testing.assert_allclose(
        actual.astype(numpy.float64), expected, rtol=tolerance, atol=tolerance
    )


def groups_of(norm, groups=2):
    return ["--groups", groups] if norm in GROUPED else []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_layouts_and_dtypes(cli, norm, dtype, layout):
    x = data((4, 6, 5, 8), dtype)
    y = cli.normalize(x, "--norm", norm, "--layout", layout, *groups_of(norm))
    assert y.dtype == x.dtype
    assert_close(y, normalize(x, norm, groups=2, layout=layout)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(8, 6), (2, 6, 1), (2, 6, 7), (1, 6, 3, 4, 5), (2, 2, 1, 2, 1, 3)]
)
def test_any_rank_from_2(cli, shape, layout):
    x = data(shape if layout == "channels_first" else (shape[0], *shape[2:], shape[1]))
    y = cli.normalize(x, "--groups", 2, "--layout", layout)
    assert_close(y, normalize(x, groups=2, layout=layout)[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(cli, activation, dtype):
    x = data((2, 4, 33), dtype)
    y = cli.normalize(x, "--groups", 2, "--activation", activation)
    assert_close(y, normalize(x, groups=2, activation=activation)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype, param",
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float16"),
        ("float16", "float32"),
    ],
)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("which", ["gamma", "beta", "both"])
def test_gamma_and_beta(cli, which, adaptive, dtype, param, layout):
    x = data((3, 6, 5, 6), dtype)
    shape = (3, 6) if adaptive else (6,)
    arrays, arguments = {}, []
    for seed, name in enumerate(["gamma", "beta"]):
        if which not in (name, "both"):
            continue
        arrays[name] = data(shape, param, seed=seed, mean=1.0)
        arguments += [f"--{name}", cli.save(f"{name}.npy", arrays[name])]
    y = cli.normalize(x, "--groups", 3, "--layout", layout, *arguments)
    assert_close(y, normalize(x, groups=3, layout=layout, **arrays)[0])


def test_eps_and_correction(cli):
    x = data((2, 4, 3))
    y = cli.normalize(x, "--groups", 2, "--eps", 0.5, "--correction", 1)
    assert_close(y, normalize(x, groups=2, eps=0.5, correction=1)[0])
    assert not numpy.allclose(y, normalize(x, groups=2, eps=0.5)[0])
    assert not numpy.allclose(y, normalize(x, groups=2, correction=1)[0])


@pytest.mark.parametrize("norm", NORMS)
def test_stats(cli, norm):
    x = data((4, 6, 5))
    cli.normalize(x, "--norm", norm, "--stats", "s.npy", *groups_of(norm))
    stats = cli.load("s.npy")
    _, mean, rstd = normalize(x, norm, groups=2)
    assert stats.dtype == numpy.float64
    assert stats.shape == (2, *mean.shape)
    numpy.testing.assert_allclose(stats[0], mean, rtol=1e-7, atol=1e-12)
    numpy.testing.assert_allclose(stats[1], rstd, rtol=1e-7)


def test_output_may_be_the_input(cli):
    x = data((2, 4, 9))
    y = cli.normalize(x, "--groups", 2)
    cli.ok("run", "x.npy", "--groups", 2, "-o", "x.npy")
    numpy.testing.assert_array_equal(cli.load("x.npy"), y)
    assert cli.files() == ["x.npy", "y.npy"]


def test_output_is_what_numpy_would_save(cli):
    for shape in [(2, 4), (2, 4, 9), (1, 2, 3, 4, 5, 6), (1234567, 2)]:
        y = cli.normalize(data(shape), "--groups", 1)
        cli.save("again.npy", y)
        again = (cli.directory / "again.npy").read_bytes()
        assert (cli.directory / "y.npy").read_bytes() == again


def test_output_through_a_symbolic_link_replaces_its_target(cli):
    x = data((2, 4, 9))
    expected = cli.normalize(x, "--groups", 2)
    (cli.directory / "real.npy").write_text("old")
    (cli.directory / "link.npy").symlink_to("real.npy")
    cli.ok("run", "x.npy", "--groups", 2, "-o", "link.npy")
    assert (cli.directory / "link.npy").is_symlink()
    numpy.testing.assert_array_equal(cli.load("real.npy"), expected)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_format_versions(cli, version):
    x = data((2, 4, 9))
    with open(cli.directory / "v.npy", "wb") as file:
        numpy.lib.format.write_array(file, x, version=version)
    cli.ok("run", "v.npy", "--groups", 2, "-o", "y.npy")
    assert_close(cli.load("y.npy"), normalize(x, groups=2)[0])


def test_bytes_after_the_array_are_ignored_as_by_numpy(cli):
    x = data((2, 4, 9))
    cli.save("x.npy", x)
    with open(cli.directory / "x.npy", "ab") as file:
        file.write(b"more")
    numpy.testing.assert_array_equal(cli.load("x.npy"), x)
    cli.ok("run", "x.npy", "--groups", 2, "-o", "y.npy")
    assert_close(cli.load("y.npy"), normalize(x, groups=2)[0])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3)])
def test_empty_tensors(cli, shape):
    y = cli.normalize(numpy.zeros(shape, "float32"), "--norm", "layer", "--stats", "s.npy")
    assert y.shape == shape
    assert cli.load("s.npy").size == 0


def test_threads_and_targets_do_not_change_the_shape_of_things(cli):
    x = data((2, 8, 64, 33), mean=1e4)
    expected = normalize(x, groups=4)[0]
    one = cli.normalize(x, "--groups", 4, "--threads", 1)
    two = cli.normalize(x, "--groups", 4, "--threads", 2)
    numpy.testing.assert_array_equal(one, two)
    assert_close(one, expected)


def test_reference_agrees(cli):
    x = data((2, 8, 33), mean=1e3)
    fast = cli.normalize(x, "--groups", 4)
    out = cli.ok("run", "x.npy", "--groups", 4, "--reference", "-o", "r.npy", "--stats", "s.npy")
    assert "reference" in out
    assert_close(cli.load("r.npy"), normalize(x, groups=4)[0])
    assert_close(fast, cli.load("r.npy").astype("float64"))
    numpy.testing.assert_allclose(cli.load("s.npy")[0], normalize(x, groups=4)[1], rtol=1e-14)


def test_report(cli):
    x = data((1, 4, 50), mean=7)
    cli.save("x.npy", x)
    out = cli.ok("run", "x.npy", "--groups", 2, "--report", "-o", "y.npy")
    assert_close(cli.load("y.npy"), normalize(x, groups=2)[0])
    for block in x.astype("float64").reshape(2, -1):
        assert f"{block.mean():.5g}" in out and f"{block.std():.5g}" in out
    assert out.count("0.99999") + out.count("1.00000") == 2
    assert "allowed: ok" in out


def test_prints_what_it_did(cli):
    cli.save("x.npy", data((2, 8, 3, 5)))
    out = cli.ok(
        "run",
        "x.npy",
        "--groups",
        4,
        "--threads",
        2,
        "--target",
        "scalar",
        "-o",
        "y.npy",
    )
    assert "f32 [2, 8, 3, 5], seen as n 2, c 8, s 15, channels_first" in out
    assert "group: 8 blocks of m = 30 elements" in out
    assert "scalar, 2 threads" in out
    assert " ms, " in out and " GB/s" in out
    assert "y.npy" in out


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n=st.integers(1, 4),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 9),
    spatial=st.lists(st.integers(1, 7), max_size=3),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    norm=st.sampled_from(["group", "layer", "instance", "batch", "batch_group", "rms"]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(cli, n, groups, per_group, spatial, dtype, norm, layout, seed):
    c = groups * per_group
    shape = (n, c, *spatial) if layout == "channels_first" else (n, *spatial, c)
    x = data(shape, dtype, seed)
    y = cli.normalize(x, "--norm", norm, "--layout", layout, *groups_of(norm, groups))
    # One element a block leaves x - mean: nothing, whatever eps says.
    assert_close(y, normalize(x, norm, groups=groups, layout=layout)[0])
