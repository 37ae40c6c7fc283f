"""`groupnorm run --reference` in float64 against PyTorch in float64: the oracle's own oracle."""

import numpy
import pytest

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SHAPES = [(4, 6), (2, 6, 1), (3, 6, 7), (2, 6, 5, 4), (1, 6, 2, 3, 4)]
EPS = 1e-3


def channel_axis(v, x):
    """v [C] or [N, C] shaped to multiply x [N, C, ...]."""
    return v.reshape(*v.shape, *[1] * (x.dim() - 2))


def affine(y, gamma, beta):
    return y * channel_axis(gamma, y) + channel_axis(beta, y)


def group(x, gamma, beta):
    return functional.group_norm(x, 3, gamma, beta, EPS)


def layer(x, gamma, beta):
    return affine(functional.layer_norm(x, x.shape[1:], eps=EPS), gamma, beta)


def instance(x, gamma, beta):
    if x.shape[2:].numel() == 1:  # which PyTorch refuses: x - mean is 0
        return affine(x * 0, gamma, beta)
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=EPS)


def batch(x, gamma, beta):
    if x.shape[0] * x.shape[2:].numel() == 1:
        return affine(x * 0, gamma, beta)
    return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def rms(x, gamma, beta):
    mean_square = (x * x).mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return affine(x * torch.rsqrt(mean_square + EPS), gamma, beta)


NORMS = {
    "group": group,
    "layer": layer,
    "instance": instance,
    "batch": batch,
    "rms": rms,
}
ACTIVATIONS = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "hard_swish": functional.hardswish,
}


def run(cli, x, gamma, beta, *arguments):
    cli.save("gamma.npy", gamma.numpy())
    cli.save("beta.npy", beta.numpy())
    y = cli.normalize(
        x.contiguous().numpy(),
        "--gamma",
        "gamma.npy",
        "--beta",
        "beta.npy",
        "--eps",
        EPS,
        "--reference",
        *arguments,
    )
    return torch.from_numpy(y)


def make(shape, mean=0.0):
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(shape, generator=generator, dtype=torch.float64)
    gamma, beta = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    return x, gamma, beta


def assert_same(actual, expected, tolerance=1e-13):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_norms(cli, norm, shape, layout):
    x, gamma, beta = make(shape)
    groups = ["--groups", 3] if norm == "group" else []
    stored = x if layout == "channels_first" else x.movedim(1, -1)
    y = run(cli, stored, gamma, beta, "--norm", norm, "--layout", layout, *groups)
    if layout == "channels_last":
        y = y.movedim(-1, 1)
    assert_same(y, NORMS[norm](x, gamma, beta))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(cli, activation):
    x, gamma, beta = make((2, 6, 50))
    y = run(cli, x, gamma, 3 * beta, "--groups", 3, "--activation", activation)
    assert_same(y, ACTIVATIONS[activation](group(x, gamma, 3 * beta)))


def test_a_large_mean(cli):
    """The exact result does not move with the mean; PyTorch's own rounding of it does."""
    x, gamma, beta = make((2, 6, 50), mean=1e5)
    assert_same(run(cli, x, gamma, beta, "--groups", 3), group(x, gamma, beta), 1e-10)


def test_correction_is_that_of_torch_var(cli):
    x, gamma, beta = make((2, 6, 5))
    blocks = x.reshape(2, 3, -1)
    mean, var = blocks.mean(-1, keepdim=True), blocks.var(-1, keepdim=True)
    expected = affine(((blocks - mean) / torch.sqrt(var + EPS)).reshape(x.shape), gamma, beta)
    assert_same(run(cli, x, gamma, beta, "--groups", 3, "--correction", 1), expected)


def test_statistics(cli):
    x, gamma, beta = make((2, 6, 5))
    run(cli, x, gamma, beta, "--groups", 3, "--stats", "stats.npy")
    _, mean, rstd = torch.native_group_norm(x, gamma, beta, 2, 6, 5, 3, EPS)
    stats = torch.from_numpy(numpy.load(cli.directory / "stats.npy"))
    assert_same(stats, torch.stack([mean, rstd]))


def test_adaptive_parameters(cli):
    x, _, _ = make((3, 6, 4))
    gamma, beta = torch.randn(
        2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = affine(functional.group_norm(x, 3, eps=EPS), gamma, beta)
    assert_same(run(cli, x, gamma, beta, "--groups", 3), expected)
