"""groupnorm.torch under the transforms of torch.func, forward-mode AD and batched gradients.

The oracle is torch's own module in float64, in plain eager mode, or elementary operations (Plain).
"""

from functools import partial

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import groupnorm.torch as gt

CHANNELS = 4
NORMS = {
    "group": lambda kind: kind.GroupNorm(2, CHANNELS),
    "instance": lambda kind: kind.InstanceNorm2d(CHANNELS, affine=True),
    "layer": lambda kind: kind.LayerNorm(6),
    "layer of two axes": lambda kind: kind.LayerNorm((5, 6)),
}


def make(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_net(norm, kind=gt, dtype=torch.float32):
    """A small network with the norm, frozen; the parameters are those of any other kind."""
    net = nn.Sequential(nn.Conv2d(2, CHANNELS, 3, padding=1), NORMS[norm](kind), nn.Tanh())
    for seed, parameter in enumerate(net.parameters()):
        parameter.data = make(parameter.shape, 10 + seed, dtype)
    return net.requires_grad_(False)


class Plain:
    """Of elementary operations: in derivatives of derivatives, torch's own layer and instance norm
    take mean and rstd for constants (forward mode at the second order, reverse at the third)."""

    def forward(self, x):
        shape = self.weight.shape
        if isinstance(self, nn.LayerNorm):
            blocks = x.flatten(-self.weight.dim())
        else:
            groups = getattr(self, "num_groups", CHANNELS)
            blocks, shape = x.reshape(len(x), groups, -1), (CHANNELS, 1, 1)
        centred = blocks - blocks.mean(-1, keepdim=True)
        xhat = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return xhat.reshape(x.shape) * self.weight.reshape(shape) + self.bias.reshape(shape)


def make_plain_net(norm):
    net = make_net(norm, nn, torch.float64)
    net[1].__class__ = type("Plain", (Plain, type(net[1])), {})
    return net


def dual(f, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


def batched_gradients(net, x, v):
    x = x.detach().requires_grad_()
    dys = torch.stack([v, 2 * v, v.square()]).flatten(3).sum(-1)
    y = net(x).square().sum((-1, -2))[:, :2]
    return torch.autograd.grad(y, x, dys, is_grads_batched=True)[0]


def of_parameters(net, transform):
    """transform of the loss as a function of the parameters of net and one example of x."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, example):
        y = torch.func.functional_call(net, parameters, (example[None],))
        return y.square().sum()

    return transform(loss), parameters


def per_sample_gradients(net, x, v):
    f, parameters = of_parameters(
        net, lambda loss: torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    )
    return tuple(f(parameters, x).values())


def ensemble(net, x, v):
    parameters = {name: torch.stack([p, 2 * p]) for name, p in net.named_parameters()}
    call = partial(torch.func.functional_call, net)
    return torch.func.vmap(lambda p, x: call(p, (x,)), in_dims=(0, None))(parameters, x)


def loss_of(net):
    return lambda x: net(x).pow(3).sum()


def small(net, x):
    """net as a function of few numbers, for whole Jacobians of it."""
    return lambda t: net(x[:1] + t.sin()).sum((0, 2))[:, :5]


def hessian(net, x, v, vectorize=False):
    def loss(t):
        return net[1:](x.repeat(1, 2, 1, 1)[:1] + t.sin()).pow(3).sum()

    return torch.autograd.functional.hessian(loss, v[0, 0, 0], vectorize=vectorize)


# name -> f(net, x, v): every one is a function of x and v alone.
TRANSFORMS = {
    "jvp": lambda net, x, v: torch.func.jvp(net, (x,), (v,)),
    "jvp of jvp": lambda net, x, v: torch.func.jvp(
        lambda x: torch.func.jvp(net, (x,), (v,))[1], (x,), (v.cos(),)
    )[1],
    "vjp": lambda net, x, v: torch.func.vjp(net, x)[1](torch.cat([v, v.cos()], 1))[0],
    "grad": lambda net, x, v: torch.func.grad(loss_of(net))(x),
    "grad of grad": lambda net, x, v: torch.func.grad(
        lambda x: (torch.func.grad(loss_of(net))(x) * v).sum()
    )(x),
    "jvp of grad": lambda net, x, v: torch.func.jvp(torch.func.grad(loss_of(net)), (x,), (v,))[1],
    "grad of jvp": lambda net, x, v: torch.func.grad(
        lambda x: torch.func.jvp(net, (x,), (v,))[1].square().sum()
    )(x),
    "jacrev": lambda net, x, v: torch.func.jacrev(small(net, x))(v[0, 0, 0]),
    "jacfwd": lambda net, x, v: torch.func.jacfwd(small(net, x))(v[0, 0, 0]),
    "hessian": lambda net, x, v: torch.func.hessian(lambda t: small(net, x)(t).pow(3).sum())(
        v[0, 0, 0]
    ),
    "vmap": lambda net, x, v: torch.func.vmap(net)(torch.stack([x, v])),
    "vmap of an inner axis": lambda net, x, v: torch.func.vmap(net, in_dims=2, out_dims=1)(
        torch.stack([x, v], 2)
    ),
    "vmap of grad": lambda net, x, v: torch.func.vmap(torch.func.grad(loss_of(net)))(
        torch.stack([x, v])
    ),
    "grad of vmap": lambda net, x, v: torch.func.grad(
        lambda x: torch.func.vmap(net)(torch.stack([x, v])).pow(3).sum()
    )(x),
    "per-sample gradients": per_sample_gradients,
    "ensemble": ensemble,
    "linearize": lambda net, x, v: torch.func.linearize(net, x)[1](v),
    "dual level": dual,
    "batched gradients": batched_gradients,
    "vectorized jacobian": lambda net, x, v: torch.autograd.functional.jacobian(
        small(net, x), v[0, 0, 0], vectorize=True
    ),
    "vectorized hessian": lambda net, x, v: hessian(net, x, v, vectorize=True),
    "vectorized forward-mode jacobian": lambda net, x, v: torch.autograd.functional.jacobian(
        small(net, x), v[0, 0, 0], vectorize=True, strategy="forward-mode"
    ),
}

# Where torch's own module can't do it.
ORACLES = {"vectorized hessian": hessian}
# Where it does it wrong (Plain). In eager mode ours leaves these to torch.
WRONG_IN_TORCH = ("jvp of jvp", "grad of jvp")


def compiled(f, x, v):
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager")(x, v)


class Passing(TorchDispatchMode):
    """Sees each operator and lets it be, as counters and loggers do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def dispatched(f, x, v):
    with Passing():
        return f(x, v)


MODES = {
    "eager": lambda f, x, v: f(x, v),
    "make_fx": lambda f, x, v: make_fx(f)(x, v)(x, v),
    "compile": compiled,
    "dispatch mode": dispatched,
}


# torch.compile itself can't do these, of torch's own modules either.
NOT_COMPILED = ("jvp of jvp", "batched gradients", "vectorized jacobian", "vectorized hessian")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, norm, mode):
    if mode == "compile" and (name in NOT_COMPILED or norm not in ("group", "layer")):
        pytest.skip("not compiled")
    wrong = mode != "eager" and name in WRONG_IN_TORCH
    oracle = make_plain_net(norm) if wrong else make_net(norm, nn, torch.float64)
    check(name, norm, MODES[mode], oracle)


@pytest.mark.parametrize("norm", NORMS)
def test_a_tangent_under_the_flop_counter(norm):
    def counted(f, x, v):
        with FlopCounterMode(display=False):
            return f(x, v)

    check("jvp", norm, counted, make_net(norm, nn, torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_transforms_of_a_traced_graph(norm):
    """The graph holds the operators, which the transform meets."""
    x, v = make((3, 2, 5, 6), 1), make((3, 2, 5, 6), 2)
    graph = make_fx(make_net(norm))(x)
    assert "groupnorm" in graph.code
    theirs = make_net(norm, nn, torch.float64)
    for name in ("jvp", "dual level", "grad", "vmap", "vmap of grad", "jvp of grad"):
        transform = TRANSFORMS[name]
        expected = transform(theirs, x.double(), v.double())
        assert_all_close(transform(graph, x, v), expected, f"{name} {norm}")


def check(name, norm, mode, oracle):
    transform = TRANSFORMS[name]
    x, v = make((3, 2, 5, 6), 1), make((3, 2, 5, 6), 2)
    expected = ORACLES.get(name, transform)(oracle, x.double(), v.double())
    found = mode(partial(transform, make_net(norm)), x, v)
    assert_all_close(found, expected, f"{name} {norm}")


# ---- operators


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("batched", ["x", "weight", "dy", "all"])
def test_vmap_of_the_operators(batched, activation):
    """Against one call for each member of the batch: the same bits."""
    ops = torch.ops.groupnorm
    x, dy = make((5, 3, 4, 6), 1), make((5, 3, 4, 6), 2)
    weight, bias = make((5, 4), 3), make((5, 4), 4)
    kept = {"x": "x", "weight": "wb", "dy": "d", "all": "xwbd"}[batched]

    def call(dy, x, weight, bias):
        y, mean, rstd = ops.group_norm(x, weight, bias, 2, 1e-5, activation)
        mask = [True, True, True]
        args = (dy, x, weight, bias, mean, rstd, 2, 1e-5, activation, mask)
        return (y, mean, rstd, *ops.group_norm_backward(*args))

    inputs = dict(zip("dxwb", (dy, x, weight, bias), strict=True))
    inputs = {name: t if name in kept else t[0] for name, t in inputs.items()}
    dims = tuple(0 if name in kept else None for name in inputs)
    found = torch.func.vmap(call, in_dims=dims)(*inputs.values())
    for i in range(5):
        one = call(*(t[i] if name in kept else t for name, t in inputs.items()))
        for f, e in zip(found, one, strict=True):
            assert torch.equal(f[i], e), i


# ---- higher derivatives of frozen nets


def derivatives(net, x, order):
    """u, u_x, u_xx, ... of u = the sum of net(x), along and across coordinates."""
    x = x.detach().requires_grad_()
    found = [net(x)]
    for _ in range(order):
        # The product mixes the partial derivatives of different inputs.
        seed = torch.linspace(0.5, 1.5, found[-1].numel(), dtype=x.dtype).reshape(found[-1].shape)
        found.append(torch.autograd.grad(found[-1], x, seed, create_graph=True)[0])
    return found


@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("trained", ["nothing", "bias", "all"])
@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_of_any_order(norm, trained, activation):
    net = make_net(norm, gt, torch.float64)
    if activation is not None:
        net[1].activation = activation
    theirs = make_plain_net(norm)
    outside = {None: nn.Identity(), "silu": nn.SiLU(), "gelu": nn.GELU()}
    theirs.insert(2, outside.get(activation, nn.GELU("tanh")))
    for each in (net, theirs):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(trained == "all" or (trained == "bias" and "bias" in name))
    x = make((3, 2, 5, 6), 1, torch.float64)
    found, expected = (derivatives(each, x, 4) for each in (net, theirs))
    for order, (f, e) in enumerate(zip(found, expected, strict=True)):
        error = (f - e).abs().max() / e.abs().max()
        assert error <= 1e-11, f"order {order}: {error}"
    if trained != "nothing":
        for net_found in (found, expected):
            net_found[3].square().sum().backward()
        for p, q in zip(net.parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)


def test_gradgradcheck_with_frozen_parameters():
    weight, bias = make((4,), 1, torch.float64), make((4,), 2, torch.float64)
    x = make((2, 4, 3), 3, torch.float64).requires_grad_()
    for params in ((None, None), (weight, bias), (weight, None)):
        call = partial(gt.functional.group_norm, num_groups=2, activation="silu")
        assert torch.autograd.gradgradcheck(
            lambda x, call=call, params=params: call(x, weight=params[0], bias=params[1]), [x]
        )


def assert_all_close(found, expected, case):
    """Within 1e-4 of the largest number: a few hundred roundings of f32, and no derivative of
    the tanh of a norm is ill-conditioned by more than that."""
    found, expected = ((t,) if isinstance(t, torch.Tensor) else t for t in (found, expected))
    assert len(found) == len(expected), case
    # Of all outputs: the gradient of a bias before an instance norm is 0.
    largest = max(e.abs().max().item() for e in expected)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert f.shape == e.shape, case
        error = (f.double() - e).abs().max().item()
        assert error <= 1e-4 * largest, f"{case}: output {i} is off by {error}"
