"""The reference's gradients in float64 against PyTorch's autograd: the oracle's own oracle."""

import os
import subprocess

import numpy
import pytest

torch = pytest.importorskip("torch")
functional = torch.nn.functional

EPS = 1e-3
SHAPE = (4, 6, 5)
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "hard_swish": functional.hardswish,
}
# Examples and channels of a block of [n, c, s]; whether it is centred. 2 groups where there are
# groups.
NORMS = {
    "group": lambda n, c: (1, c // 2, True),
    "layer": lambda n, c: (1, c, True),
    "instance": lambda n, c: (1, 1, True),
    "batch": lambda n, c: (n, 1, True),
    "ghost_batch": lambda n, c: (n // 2, 1, True),
    "batch_group": lambda n, c: (n, c // 2, True),
    "rms": lambda n, c: (1, c, False),
    "group_rms": lambda n, c: (1, c // 2, False),
}


def normalize(x, norm, correction=0):
    """xhat of x [n, c, s] by plain tensor operations, for autograd to differentiate."""
    n, c, s = x.shape
    examples, channels, center = NORMS[norm](n, c)
    blocks = x.reshape(n // examples, examples, c // channels, channels, s)
    if center:
        blocks = blocks - blocks.mean((1, 3, 4), keepdim=True)
    m = examples * channels * s
    var = (blocks * blocks).sum((1, 3, 4), keepdim=True) / (m - correction)
    return (blocks / torch.sqrt(var + EPS)).reshape(n, c, s)


def forward(x, gamma, beta, norm, activation, correction):
    xhat = normalize(x, norm, correction)
    return ACTIVATIONS[activation](gamma[..., None] * xhat + beta[..., None])


def make(shape=SHAPE, mean=0.0, adaptive=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    params = shape[:2] if adaptive else shape[1:2]
    return mean + normal(*shape), normal(*shape), normal(*params), 2 * normal(*params)


def autograd(y_of, x, dy, gamma, beta):
    """dx, dgamma and dbeta of y_of(x, gamma, beta)."""
    leaves = [v.clone().requires_grad_() for v in (x, gamma, beta)]
    return torch.autograd.grad(y_of(*leaves), leaves, dy)


def reference(
    x,
    dy,
    gamma,
    beta,
    norm="group",
    layout="channels_first",
    activation="none",
    correction=0,
    groups=2,
    neighbours=(),
    sequence=(),
):
    """dx, dgamma and dbeta of the project's reference, and with neighbours (skip, shift, residual,
    scale, offset, dsum) those of residual, shift, scale and offset. sequence: its length, and
    lengths."""

    def stored(v):
        return v if layout == "channels_first" or v.dim() < 3 else v.movedim(1, -1)

    n, c, s = x.shape
    stride = 0 if gamma.dim() == 1 else c
    arguments = [
        norm,
        groups,
        f"{n}x{c}x{s}",
        layout,
        activation,
        correction,
        EPS,
        stride,
        *sequence,
    ]
    result = subprocess.run(
        [os.environ["GROUPNORM_GRADIENT_DUMP"], *map(str, arguments)],
        input=b"".join(
            stored(v).contiguous().numpy().tobytes() for v in (x, dy, gamma, beta, *neighbours)
        ),
        capture_output=True,
        check=True,
        timeout=60,
    )
    values = torch.from_numpy(numpy.frombuffer(result.stdout).copy())
    of = [x, gamma, beta]
    if neighbours:
        _, shift, residual, scale, offset, _ = neighbours
        of += [residual, shift, scale, offset]
    return [
        g.reshape(stored(v).shape).movedim(-1, 1)
        if v.dim() == 3 and layout == "channels_last"
        else g.reshape(v.shape)
        for g, v in zip(values.split([v.numel() for v in of]), of, strict=True)
    ]


def assert_same(actual, expected, tolerance=1e-13):
    names = ("dx", "dgamma", "dbeta", "dresidual", "dshift", "dscale", "doffset")
    for name, a, b in zip(names, actual, expected, strict=False):
        torch.testing.assert_close(
            a,
            b,
            rtol=tolerance,
            atol=tolerance * float(b.abs().max()),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm, layout, correction, adaptive):
    tensors = make(adaptive=adaptive)
    expected = autograd(
        lambda x, gamma, beta: forward(x, gamma, beta, norm, "none", correction),
        *tensors,
    )
    assert_same(reference(*tensors, norm, layout, correction=correction), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["group", "batch", "rms"])
def test_activations(norm, activation):
    tensors = make((2, 6, 50))
    expected = autograd(
        lambda x, gamma, beta: forward(x, gamma, beta, norm, activation, 0), *tensors
    )
    assert_same(reference(*tensors, norm, activation=activation), expected)


def with_neighbours(leaves, norm, activation, sequence, lengths):
    """sum and y, each sequence by itself over what is valid of it."""
    x, gamma, beta, skip, shift, residual, scale, offset = leaves

    def rows(v):
        return v.repeat_interleave(sequence, 0)[..., None]

    u = x + skip + rows(shift)
    sums, ys = torch.zeros_like(u), torch.zeros_like(u)
    for i, length in enumerate(lengths or [None] * (len(x) // sequence)):
        first = i * sequence
        examples = slice(first, first + (sequence if sequence == 1 else length or sequence))
        valid = (examples, slice(None), slice(length if sequence == 1 else None))
        if length == 0:
            continue
        xhat = normalize(u[valid], norm)
        z = (gamma[:, None] * xhat + beta[:, None]) * (1 + rows(scale)[examples])
        z = z + rows(offset)[examples] + residual[valid]
        sums[valid] = u[valid]
        ys[valid] = ACTIVATIONS[activation](z)
    return sums, ys


@pytest.mark.parametrize("sequence, lengths", [(1, []), (1, [5, 0, 2, 3]), (2, []), (2, [1, 2])])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("norm", ["group", "layer", "instance", "rms"])
def test_neighbours(norm, activation, layout, sequence, lengths):
    x, dy, gamma, beta = make()
    generator = torch.Generator().manual_seed(1)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    n, c, s = x.shape
    rows = (n // sequence, c)
    skip, residual, dsum = normal(n, c, s), normal(n, c, s), normal(n, c, s)
    shift, scale, offset = normal(*rows), normal(*rows), normal(*rows)
    leaves = [
        v.clone().requires_grad_() for v in (x, gamma, beta, skip, shift, residual, scale, offset)
    ]
    sums, y = with_neighbours(leaves, norm, activation, sequence, lengths)
    dx, dgamma, dbeta, dskip, dshift, dresidual, dscale, doffset = torch.autograd.grad(
        [y, sums], leaves, [dy, dsum]
    )
    assert torch.equal(dx, dskip)
    actual = reference(
        x,
        dy,
        gamma,
        beta,
        norm,
        layout,
        activation,
        neighbours=[skip, shift, residual, scale, offset, dsum],
        sequence=[sequence, *lengths],
    )
    assert_same(actual, (dx, dgamma, dbeta, dresidual, dshift, dscale, doffset))


@pytest.mark.parametrize("shape", [(4, 6, 1), (3, 6, 7), (1, 6, 24)])
def test_group_norm_of_pytorch(shape):
    """Its own backward, a closed form, where the tests above differentiate step by step."""
    tensors = make(shape)
    expected = autograd(
        lambda x, gamma, beta: functional.group_norm(x, 3, gamma, beta, EPS), *tensors
    )
    assert_same(reference(*tensors, groups=3), expected)


def test_batch_norm_of_pytorch():
    tensors = make()
    expected = autograd(
        lambda x, gamma, beta: functional.batch_norm(
            x, None, None, gamma, beta, training=True, eps=EPS
        ),
        *tensors,
    )
    assert_same(reference(*tensors, "batch"), expected)


def test_a_large_mean():
    """The gradient does not move with the mean; PyTorch's own rounding of it does."""
    tensors = make(mean=1e5)
    expected = autograd(
        lambda x, gamma, beta: forward(x, gamma, beta, "group", "silu", 0), *tensors
    )
    assert_same(reference(*tensors, activation="silu"), expected, 1e-9)


def test_the_jumps_of_the_derivatives():
    """x of one value is xhat 0, so z is beta: 0 for relu; -3, 3 for hard_swish."""
    x, dy, _, _ = make((1, 2, 3))
    x, gamma = torch.zeros_like(x), torch.ones(2, dtype=torch.float64)
    for activation, z in [("relu", (0, 0)), ("hard_swish", (-3, 3))]:
        tensors = x, dy, gamma, torch.tensor(z, dtype=torch.float64)
        expected = autograd(
            lambda x, gamma, beta, a=activation: forward(x, gamma, beta, "instance", a, 0),
            *tensors,
        )
        assert_same(reference(*tensors, "instance", activation=activation), expected)
