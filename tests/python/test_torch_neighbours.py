"""What is computed around a norm, in torch: against the chain in float64, and torch's own chain."""

import copy
import pickle
import weakref
from functools import partial

import neighbour_chains as chains
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn

import groupnorm.torch as gt
from groupnorm.torch import functional as ours

theirs = torch.nn.functional

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = {
    "group": (2, 6, 5, 4),
    "instance": (2, 6, 5, 4),
    "layer": (2, 5, 6),
    "rms": (2, 5, 6),
}
GROUPS = 2


def make(shape, dtype=torch.float32, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (mean + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def channels_last(x):
    """x with the strides of N, spatial..., C."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {"channels_first": lambda x: x, "channels_last": channels_last}
NORMS_IN_LAYOUTS = [
    (n, a) for n in SHAPES for a in LAYOUTS if n not in chains.ROWS or a == "channels_first"
]


def tensors_of(norm, dtype=torch.float32, shape=None, mean=0.0, param=None):
    """Every tensor of a call. skip takes the mean of x away again."""
    shape = shape or SHAPES[norm]
    c = shape[-1] if norm in chains.ROWS else shape[1]
    param = param or dtype
    found = {
        "x": make(shape, dtype, 0, mean),
        "weight": make(c, param, 1),
        "bias": make(c, param, 2),
        "skip": make(shape, dtype, 3, -mean),
        "shift": make((shape[0], c), dtype, 4),
        "residual": make(shape, dtype, 5),
        "scale": make((shape[0], c), param, 6),
        "offset": make((shape[0], c), param, 7),
    }
    if norm == "rms":
        del found["bias"]
    return found


def call(norm, tensors, functions=ours, **options):
    x, weight, bias = (tensors.get(name) for name in ("x", "weight", "bias"))
    given = {name: tensors[name] for name in ("skip", "shift", "residual") if name in tensors}
    if "scale" in tensors:
        given["scale_shift"] = tensors["scale"], tensors["offset"]
    given |= options
    if norm == "group":
        return functions.group_norm(x, GROUPS, weight, bias, **given)
    if norm == "instance":
        return functions.instance_norm(x, weight=weight, bias=bias, **given)
    if norm == "layer":
        return functions.layer_norm(x, x.shape[-1:], weight, bias, **given)
    return functions.rms_norm(x, x.shape[-1:], weight, eps=1e-5, **given)


def leaves_of(tensors):
    return {
        name: t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for name, t in tensors.items()
    }


CHAINS = {
    "skip": ("skip",),
    "shift": ("shift",),
    "residual": ("residual",),
    "scale_shift": ("scale", "offset"),
    "all": ("skip", "shift", "residual", "scale", "offset"),
}


# ---- Values and gradients


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "layout"), NORMS_IN_LAYOUTS)
def test_every_norm_dtype_and_memory_format(norm, dtype, layout, chain):
    for param in {dtype, torch.float32 if dtype.itemsize == 2 else dtype}:
        everything = tensors_of(norm, dtype, param=param)
        params = [name for name in ("weight", "bias") if name in everything]
        tensors = {name: everything[name] for name in ("x", *params, *CHAINS[chain])}
        for name in ("x", "skip", "residual"):
            if name in tensors:
                tensors[name] = LAYOUTS[layout](tensors[name])
        dy, dsum = (make(tensors["x"].shape, dtype, seed) for seed in (8, 9))
        for activation in (None, "silu"):
            exact = chains.exact(
                norm, tensors, groups=GROUPS, activation=activation, dy=dy, dsum=dsum
            )
            leaves = leaves_of(tensors)
            y, total = call(norm, leaves, activation=activation, return_sum=True)
            assert y.dtype == total.dtype == dtype
            assert y.stride() == total.stride() == tensors["x"].stride()
            exact.check("y", y)
            exact.check("sum", total)
            gradients = torch.autograd.grad((y, total), list(leaves.values()), (dy, dsum))
            for name, gradient in zip(leaves, gradients, strict=True):
                assert gradient.dtype == leaves[name].dtype
                exact.check(f"d{name}", gradient)
            with torch.no_grad():
                same = call(norm, tensors, activation=activation, return_sum=True)
            assert torch.equal(same[0], y) and torch.equal(same[1], total)


@pytest.mark.parametrize(("norm", "layout"), NORMS_IN_LAYOUTS)
def test_large_means_that_cancel(norm, layout):
    tensors = tensors_of(norm, mean=1e4)
    for name in ("x", "skip", "residual"):
        tensors[name] = LAYOUTS[layout](tensors[name])
    dy = make(tensors["x"].shape, seed=8)
    exact = chains.exact(norm, tensors, groups=GROUPS, dy=dy)
    leaves = leaves_of(tensors)
    y = call(norm, leaves)
    exact.check("y", y)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    for name, gradient in zip(leaves, gradients, strict=True):
        exact.check(f"d{name}", gradient)


def shapes_of_rows():
    for shape in ((2, 6), (1, 6), (6,), (2, 1, 1, 6), (1, 1, 1, 6), (2, 3, 1, 6), (2, 3, 4, 6)):
        yield (2, 3, 4, 6), shape
    yield (5, 6), (5, 6)
    yield (1, 4, 6), (1, 6)
    yield (6,), (6,)


@pytest.mark.parametrize(("of_x", "shape"), list(shapes_of_rows()), ids=str)
@pytest.mark.parametrize("norm", chains.ROWS)
def test_shapes_of_what_is_by_example_of_rows(norm, of_x, shape):
    x = make(of_x)
    middle = (1,) * (len(of_x) - 2)
    aligned = (shape[0], *middle, 6) if len(shape) == 2 and shape[0] == of_x[0] else shape
    tensors = {"x": x, "shift": make(shape, seed=4), "scale": make(shape, seed=6)}
    tensors["offset"] = make((6,), seed=7)
    tensors |= {"weight": make(6, seed=1)}
    wanted = {name: t.reshape(aligned) if t.shape == shape else t for name, t in tensors.items()}
    wanted["x"] = x
    dy = make(of_x, seed=8)
    exact = chains.exact(norm, wanted, dy=dy)
    leaves = leaves_of(tensors)
    y = call(norm, leaves)
    exact.check("y", y)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    for name, gradient in zip(leaves, gradients, strict=True):
        exact.values[f"d{name}"] = exact.values[f"d{name}"].reshape(gradient.shape)
        exact.bounds[f"d{name}"] = exact.bounds[f"d{name}"].reshape(gradient.shape)
        exact.check(f"d{name}", gradient)


@pytest.mark.parametrize(
    "shape", [(2, 6), (2, 6, 1, 1), (1, 6), (1, 6, 1, 1), (2, 1, 1, 1)], ids=str
)
def test_shapes_of_what_is_by_example_of_channels(shape):
    x, weight = make((2, 6, 5, 4)), make(6, seed=1)
    shift, scale, offset = (make(shape, seed=seed) for seed in (4, 6, 7))
    full = [t.reshape(*t.shape[:2], 1, 1) for t in (shift, scale, offset)]
    y = ours.group_norm(x, 2, weight, shift=shift, scale_shift=(scale, offset))
    z = theirs.group_norm((x + full[0]).double(), 2, weight.double())
    torch.testing.assert_close(y.double(), z * (1 + full[1]) + full[2], rtol=1e-5, atol=1e-5)


def test_views_of_a_projection():
    """As models hold them: chunks of one tensor, with axes added."""
    x, temb = make((2, 6, 5, 4)), make((2, 18), seed=1).requires_grad_()
    for axes in ((), (None, None)):
        shift, scale, offset = temb[(..., *axes)].chunk(3, dim=1)
        y = ours.group_norm(x, 2, shift=shift, scale_shift=(scale, offset), activation="silu")
        parts = temb[:, :, None, None].chunk(3, dim=1)
        u = (x + parts[0]).double()
        z = theirs.group_norm(u, 2) * (1 + parts[1]) + parts[2]
        wanted = theirs.silu(z)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
        found, expected = (torch.autograd.grad(t.sum(), temb)[0] for t in (y, wanted))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of_skip", LAYOUTS)
@pytest.mark.parametrize("of_x", [*LAYOUTS, "strided"])
def test_memory_of_neighbours_is_converted(of_x, of_skip):
    x, skip, residual = (make((2, 6, 4, 10), seed=seed) for seed in range(3))
    wanted = ours.group_norm(x, 2, skip=skip, residual=residual)
    x = x.repeat(1, 1, 2, 1)[:, :, ::2].clone() if of_x == "strided" else x
    if of_x == "strided":
        x = make((2, 6, 4, 20))[..., ::2]
        wanted = ours.group_norm(x.contiguous(), 2, skip=skip, residual=residual)
    else:
        x = LAYOUTS[of_x](x)
    inputs = [t.detach().requires_grad_() for t in (x, LAYOUTS[of_skip](skip), residual)]
    y = ours.group_norm(inputs[0], 2, skip=inputs[1], residual=inputs[2])
    assert y.stride() == theirs.group_norm(x, 2).stride()
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.shape == x.shape for t in inputs)


def test_a_skip_that_expands():
    x, position = make((3, 5, 6)), make((1, 5, 6), seed=1).requires_grad_()
    y, total = ours.layer_norm(x, (6,), skip=position, return_sum=True)
    assert torch.equal(total, x + position)
    torch.testing.assert_close(y, theirs.layer_norm(x + position, (6,)))
    y.square().sum().backward()
    assert position.grad.shape == position.shape


def in_torch(norm, tensors, activation=None):
    """The chain as models write it; of rows [N, L, C], and of images."""
    t = {
        name: chains.expand(norm, v, tensors["x"]) if name in ("shift", "scale", "offset") else v
        for name, v in tensors.items()
    }
    u = t["x"]
    for name in ("skip", "shift"):
        u = u + t[name] if name in t else u
    given = {"x": u, **{name: t[name] for name in ("weight", "bias") if name in t}}
    z = call(norm, given, theirs)
    if "scale" in t:
        z = z * (1 + t["scale"]) + t["offset"]
    z = z + t["residual"] if "residual" in t else z
    return chains.ACTIVATIONS[activation](z), u


@pytest.mark.parametrize("norm", SHAPES)
def test_mixed_dtypes_are_those_of_torch(norm):
    """skip, shift and residual make y wider; parameters do not."""
    for name in ("skip", "shift", "residual"):
        tensors = tensors_of(norm, torch.bfloat16, param=torch.float32)
        tensors[name] = tensors[name].float()
        y = call(norm, tensors)
        assert y.dtype == torch.float32
        wide = {k: v.float() for k, v in tensors.items()}
        torch.testing.assert_close(y, in_torch(norm, wide)[0], rtol=1e-5, atol=1e-5)
    tensors = tensors_of(norm, torch.bfloat16)
    tensors["scale"] = tensors["scale"].float()
    assert call(norm, tensors).dtype == torch.bfloat16
    tensors = tensors_of(norm, torch.float64)
    tensors["skip"] = tensors["skip"].float()
    assert call(norm, tensors).dtype == torch.float64
    tensors = tensors_of(norm)
    del tensors["weight"]
    tensors["scale"] = tensors["scale"].double()
    assert call(norm, tensors).dtype == torch.float64


def test_autocast():
    net = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Linear(5, 16), gt.GroupNorm(2, 8)])
    image, time = make((2, 3, 6, 6)), make((2, 5), seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = net[0](image)
        scale, offset = net[1](time).chunk(2, dim=1)
        y, total = net[2](x, skip=x, scale_shift=(scale, offset), return_sum=True)
        wanted = net[2](x + x) * (1 + scale[:, :, None, None]) + offset[:, :, None, None]
    assert y.dtype == total.dtype == x.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


# ---- Lengths


def padded(norm, dtype=torch.float32, lengths=(0, 3, 7)):
    shape = (3, 7, 6) if norm in chains.ROWS else (3, 6, 7)
    tensors = tensors_of(norm, dtype, shape)
    for name in ("x", "skip", "residual"):
        for i, length in enumerate(lengths):
            behind = tensors[name][i]
            (behind if norm in chains.ROWS else behind.mT)[length:] = torch.nan
    return tensors, list(lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", SHAPES)
def test_lengths(norm, dtype):
    tensors, lengths = padded(norm, dtype)
    dy, dsum = (make(tensors["x"].shape, dtype, seed) for seed in (8, 9))
    clean = {k: torch.nan_to_num(t) for k, t in tensors.items()}
    exact = chains.exact(
        norm, clean, groups=GROUPS, activation="silu", lengths=lengths, dy=dy, dsum=dsum
    )
    leaves = leaves_of(tensors)
    for given in (lengths, torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)):
        options = {"activation": "silu", "return_sum": True, "lengths": given}
        y, total = call(norm, leaves, **options)
        exact.check("y", y)
        exact.check("sum", total)
    gradients = torch.autograd.grad((y, total), list(leaves.values()), (dy, dsum))
    for name, gradient in zip(leaves, gradients, strict=True):
        exact.check(f"d{name}", gradient)
    with torch.no_grad():
        for i, length in enumerate(lengths):
            if length:
                along = 1 if norm in chains.ROWS else 2
                each = {
                    k: t if k in ("weight", "bias") else t[i : i + 1] for k, t in tensors.items()
                }
                each |= {
                    k: each[k].narrow(along, 0, length).contiguous()
                    for k in ("x", "skip", "residual")
                }
                alone, _ = call(norm, each, activation="silu", return_sum=True)
                assert torch.equal(y[i : i + 1].narrow(along, 0, length), alone)


@pytest.mark.parametrize("norm", SHAPES)
def test_lengths_by_the_operator_and_in_torch_are_the_same(norm):
    """In compiled code, and under a transform: made of torch's operations in float64."""
    tensors, lengths = padded(norm)
    names = list(tensors)

    def of(*values):
        given = dict(zip(names, values, strict=True))
        return call(norm, given, activation="relu", lengths=torch.tensor(lengths))

    wanted = of(*tensors.values())
    compiled = torch.compile(of, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*tensors.values()), wanted)
    y, pull = torch.func.vjp(of, *tensors.values())
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    leaves = leaves_of(tensors)
    expected = torch.autograd.grad(of(*leaves.values()).sum(), list(leaves.values()))
    torch.testing.assert_close(pull(torch.ones_like(y)), expected, rtol=1e-4, atol=1e-5)


def test_lengths_of_images_count_positions_of_the_last_axis():
    x = make((2, 4, 3, 6)).requires_grad_()
    y = ours.group_norm(x, 2, lengths=[6, 2], activation="relu")
    torch.testing.assert_close(y[:1], theirs.relu(theirs.group_norm(x[:1], 2)))
    cut = theirs.relu(theirs.group_norm(x[1:, ..., :2], 2))
    torch.testing.assert_close(y[1:, ..., :2], cut)
    assert not y[1, ..., 2:].any()
    y.sum().backward()
    assert not x.grad[1, ..., 2:].any()


def test_lengths_of_heads():
    """[N, heads, L, C]: lengths [N] are those of every head."""
    x, scale = make((2, 3, 5, 8)), make((2, 3, 5, 8), seed=1)
    y = ours.rms_norm(x, (8,), lengths=[5, 2])
    assert torch.equal(y, ours.rms_norm(x, (8,), lengths=torch.tensor([[5] * 3, [2] * 3])))
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(y, theirs.rms_norm(x, (8,)) * valid)
    y = ours.rms_norm(x, (8,), lengths=[5, 2], scale_shift=(scale, scale))
    torch.testing.assert_close(y, (theirs.rms_norm(x, (8,)) * (1 + scale) + scale) * valid)


# ---- RMS norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype):
    x, weight = make((3, 4, 8), dtype), make(8, dtype, 1)
    exact = chains.exact("rms", {"x": x, "weight": weight}, activation="gelu")
    exact.check("y", ours.rms_norm(x, (8,), weight, 1e-5, activation="gelu"))
    small = make((3, 8), dtype) * 2**-12  # where eps counts
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    exact = chains.exact("rms", {"x": small}, eps=eps)
    exact.check("y", ours.rms_norm(small, (8,)))
    module = gt.RMSNorm(8, dtype=dtype)
    assert isinstance(module, nn.RMSNorm) and module.eps is None
    assert torch.equal(module(small), ours.rms_norm(small, (8,), module.weight))
    assert "RMSNorm((8,), eps=None, elementwise_affine=True" in repr(module)
    assert "activation=silu" in repr(gt.RMSNorm(8, activation="silu"))


# ---- Modules

MODULES = {
    "GroupNorm": (lambda **o: gt.GroupNorm(2, 6, **o), (2, 6, 5)),
    "InstanceNorm1d": (lambda **o: gt.InstanceNorm1d(6, affine=True, **o), (2, 6, 5)),
    "InstanceNorm2d": (lambda **o: gt.InstanceNorm2d(6, affine=True, **o), (2, 6, 5, 4)),
    "LayerNorm": (lambda **o: gt.LayerNorm(6, **o), (2, 5, 6)),
    "RMSNorm": (lambda **o: gt.RMSNorm(6, **o), (2, 5, 6)),
}


def neighbours_of(shape, by_example=(2, 6)):
    shift, scale, offset = (make(by_example, seed=seed) for seed in (4, 6, 7))
    found = {"skip": make(shape, seed=3), "shift": shift, "residual": make(shape, seed=5)}
    return {**found, "scale_shift": (scale, offset), "return_sum": True}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    build, shape = MODULES[name]
    module, x, given = build(activation="silu"), make(shape), neighbours_of(shape)
    norm = {"G": "group", "I": "instance", "L": "layer", "R": "rms"}[name[0]]
    tensors = {"x": x, "weight": module.weight, "bias": getattr(module, "bias", None)}
    tensors |= {k: given[k] for k in ("skip", "shift", "residual")}
    tensors["scale"], tensors["offset"] = given["scale_shift"]
    eps = module.eps or torch.finfo(torch.float32).eps
    exact = chains.exact(norm, tensors, activation="silu", eps=eps)
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        y, total = same(x, **given)
        exact.check("y", y)
        exact.check("sum", total)
    seen = []
    module.register_forward_hook(
        lambda module, args, kwargs, y: seen.append(kwargs), with_kwargs=True
    )
    module(x, skip=x)
    assert list(seen[0]) == ["skip"]
    scripted = torch.jit.script(build(activation="silu"))
    torch.testing.assert_close(scripted(x), build(activation="silu")(x))


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_graphs_of_fx(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = MODULES[name][0]()

        def forward(self, x, skip):
            return self.norm(x, skip=skip)

    net, x = Net(), make(MODULES[name][1])
    graph = fx.symbolic_trace(net)
    (node,) = [n for n in graph.graph.nodes if n.op == "call_module"]
    assert node.target == "norm" and list(node.kwargs) == ["skip"]
    assert torch.equal(graph(x, x), net(x, x))


def test_functions_in_graphs_of_fx():
    def of(x, skip, scale, offset):
        y = ours.group_norm(x, 2, skip=skip, scale_shift=(scale, offset), activation="relu")
        return ours.rms_norm(y, (4,))

    values = (make((2, 6, 5, 4)), make((2, 6, 5, 4), seed=1), *(make((2, 6, 1, 1)),) * 2)
    torch.testing.assert_close(fx.symbolic_trace(of)(*values), of(*values))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norms_of_one_example(rank):
    module = getattr(gt, f"InstanceNorm{rank}d")(6, affine=True)
    x = make((6, 5, 4, 3)[: rank + 1])
    given = neighbours_of(x.shape, (6,))
    y, total = module(x, **given)
    batched = {
        k: tuple(t[None] for t in v) if isinstance(v, tuple) else v if v is True else v[None]
        for k, v in given.items()
    }
    wanted = module(x[None], **batched)
    assert torch.equal(y, wanted[0][0]) and torch.equal(total, wanted[1][0])
    if rank == 1:
        assert torch.equal(module(x, lengths=3), module(x[None], lengths=[3])[0])


def test_running_statistics():
    x, skip = make((3, 4, 6)), make((3, 4, 6), seed=1)
    modules = [cls(4, track_running_stats=True) for cls in (gt.InstanceNorm1d, nn.InstanceNorm1d)]
    y = modules[0](x, skip=skip, residual=x)
    torch.testing.assert_close(y, modules[1](x + skip) + x)
    torch.testing.assert_close(modules[0].running_mean, modules[1].running_mean)
    with pytest.raises(ValueError, match="lengths: must be None"):
        modules[0](x, lengths=[1, 2, 3])


# ---- Derivatives of every kind


def small(norm):
    shape = (2, 3, 4) if norm in chains.ROWS else (2, 4, 3)
    return tensors_of(norm, torch.float64, shape)


# Without a shift backward reads the sum in the place of x and skip.
@pytest.mark.parametrize("without", ["", "shift"])
@pytest.mark.parametrize("lengths", [None, [3, 2]], ids=str)
@pytest.mark.parametrize("norm", SHAPES)
def test_gradcheck_and_gradgradcheck(norm, lengths, without):
    tensors = {name: t for name, t in small(norm).items() if name != without}
    names = list(tensors)

    def of(*values):
        given = dict(zip(names, values, strict=True))
        return call(norm, given, activation="silu", return_sum=True, lengths=lengths)

    inputs = list(leaves_of(tensors).values())
    assert torch.autograd.gradcheck(of, inputs)
    if norm in ("group", "rms"):
        assert torch.autograd.gradgradcheck(of, inputs)


def test_what_is_frozen_gets_no_gradient():
    tensors = leaves_of(tensors_of("group"))
    for frozen in tensors:
        for t in tensors.values():
            t.requires_grad_(True)
            t.grad = None
        tensors[frozen].requires_grad_(False)
        call("group", tensors, activation="silu").sum().backward()
        assert all((t.grad is None) == (name == frozen) for name, t in tensors.items())


def test_gradients_of_one_result_alone():
    leaves = leaves_of({k: v for k, v in tensors_of("group").items() if k in ("x", "skip")})
    y, total = call("group", leaves, return_sum=True)
    (dx,) = torch.autograd.grad(total.sum(), leaves["x"], retain_graph=True)
    assert torch.equal(dx, torch.ones_like(dx))
    found = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    assert torch.equal(*found)


@pytest.mark.parametrize("norm", SHAPES)
def test_transforms(norm):
    tensors = {k: t for k, t in small(norm).items() if k != "bias"}
    names = list(tensors)

    def of(*values):
        return call(norm, dict(zip(names, values, strict=True)), activation="silu")

    def chain(*values):
        return in_torch(norm, dict(zip(names, values, strict=True)), "silu")[0]

    values = tuple(tensors.values())
    tangents = tuple(make(t.shape, t.dtype, 20 + i) for i, t in enumerate(values))
    torch.testing.assert_close(
        torch.func.jvp(of, values, tangents), torch.func.jvp(chain, values, tangents)
    )
    batch = tuple(torch.stack([v, t]) for v, t in zip(values, tangents, strict=True))
    torch.testing.assert_close(torch.vmap(of)(*batch), torch.vmap(chain)(*batch))
    with torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)
        ]
        tangent = torch.autograd.forward_ad.unpack_dual(of(*duals)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(chain, values, tangents)[1])


def test_batched_gradients():
    leaves = leaves_of(small("group"))
    y = call("group", leaves, activation="silu")
    dy = make((3, *y.shape), torch.float64, 9)
    found = torch.autograd.grad(
        y, list(leaves.values()), dy, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        each = torch.autograd.grad(y, list(leaves.values()), dy[i], retain_graph=True)
        torch.testing.assert_close([g[i] for g in found], list(each))


# ---- Operators


def operator_inputs():
    for dtype, layout, shape in (
        (torch.float32, "channels_first", (2, 6, 5)),
        (torch.float32, "channels_last", (2, 6, 5, 4)),
        (torch.bfloat16, "channels_first", (2, 6)),
    ):
        t = tensors_of("group", dtype, shape)
        for name in ("x", "skip", "residual"):
            t[name] = LAYOUTS[layout](t[name])
        lengths = torch.tensor([5, 2]) if len(shape) == 3 else None
        yield (*t.values(), lengths, 2, 1, 1e-5, "silu", True, True)
    rows = tensors_of("layer", shape=(4, 6))
    by_example = [rows[k][:2] if k in ("shift", "scale", "offset") else rows[k] for k in rows]
    yield (*by_example, torch.tensor([2, 1]), 1, 2, 1e-5, "none", False, False)
    yield (make((2, 6, 5)), *(None,) * 8, 3, 1, 1e-5, "relu", True, False)
    x, skip = make((4, 6)), make((4, 6), seed=1)
    yield (x, make((6,)), None, skip, *(None,) * 5, 1, 1, 1e-6, "none", False, True)


@pytest.mark.parametrize(
    ("case", "requires_grad"), [(0, False), (1, True), (2, False), (3, True), (4, True), (5, True)]
)
def test_opcheck(case, requires_grad):
    args = tuple(
        t.detach().requires_grad_(requires_grad)
        if isinstance(t, torch.Tensor) and t.is_floating_point()
        else t
        for t in list(operator_inputs())[case]
    )
    torch.library.opcheck(torch.ops.groupnorm.norm_with_neighbours, args)
    with torch.no_grad():
        y, _, mean, rstd = torch.ops.groupnorm.norm_with_neighbours(*args)
    inputs, rule = args[:9], args[9:-1]
    dy = torch.ones_like(y).requires_grad_(requires_grad)
    mask = [inputs[i] is not None for i in (0, 1, 2, 4, 5, 6, 7)]
    torch.library.opcheck(
        torch.ops.groupnorm.norm_with_neighbours_backward,
        (dy, dy if args[-1] else None, *inputs, mean, rstd, *rule, mask),
    )


class Net(nn.Module):
    """Every neighbour, as a diffusion model has them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.project = nn.Linear(4, 18)
        self.group = gt.GroupNorm(2, 6, activation="silu")
        self.rows = gt.RMSNorm(6)

    def forward(self, x, time):
        x = self.conv(x)
        shift, scale, offset = self.project(time)[:, :, None, None].chunk(3, dim=1)
        y, total = self.group(
            x, skip=x, shift=shift, residual=x, scale_shift=(scale, offset), return_sum=True
        )
        rows = (y + total).flatten(2).mT
        return self.rows(rows, scale_shift=(scale.flatten(1), offset.flatten(1)), skip=rows)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_whole_graphs(backend):
    torch.manual_seed(0)
    net, inputs = Net(), (make((2, 3, 5, 4)), make((2, 4), seed=1))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), net(*inputs))
    compiled(*inputs).sum().backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(*inputs).sum().backward()
    torch.testing.assert_close(found, [p.grad for p in net.parameters()])


def test_export_with_dynamic_sizes():
    net, inputs = Net(), (make((2, 3, 5, 4)), make((2, 4), seed=1))
    n, size = torch.export.Dim("n", min=1, max=64), torch.export.Dim("size", min=2, max=64)
    program = torch.export.export(net, inputs, dynamic_shapes=({0: n, 2: size}, {0: n}))
    names = {str(node.target) for node in program.graph.nodes}
    assert "groupnorm.norm_with_neighbours.default" in names
    for more in (inputs, (make((3, 3, 7, 4)), make((3, 4)))):
        torch.testing.assert_close(program.module()(*more), net(*more))


def test_traced_by_torch_jit():
    net, inputs = Net(), (make((2, 3, 5, 4)), make((2, 4), seed=1))
    traced = torch.jit.trace(net, inputs, check_trace=False)
    torch.testing.assert_close(traced(*inputs), net(*inputs))


# ---- What the engine does not take


Tagged = type("Tagged", (torch.Tensor,), {})


@pytest.mark.parametrize("norm", SHAPES)
def test_subclasses_and_other_devices_take_torchs_operations(norm):
    tensors = tensors_of(norm)
    wanted = call(norm, tensors, activation="relu")
    tagged = {k: t.as_subclass(Tagged) for k, t in tensors.items()}
    y = call(norm, tagged, activation="relu")
    assert type(y) is Tagged
    torch.testing.assert_close(y.as_subclass(torch.Tensor), wanted, rtol=1e-5, atol=1e-5)
    meta = {k: t.to("meta") for k, t in tensors.items()}
    y, total = call(norm, meta, return_sum=True)
    assert y.is_meta and total.shape == tensors["x"].shape


def test_empty():
    x = make((0, 4, 3))
    y, total = ours.group_norm(x, 2, skip=x, shift=make((0, 4)), return_sum=True)
    assert y.shape == total.shape == x.shape


def test_inference_and_results_that_are_changed_in_place():
    tensors = tensors_of("group")
    with torch.inference_mode():
        y = call("group", tensors)
        assert y.is_inference()
    leaves = leaves_of(tensors)
    y, total = call("group", leaves, return_sum=True)
    y += 1
    total.mul_(2)
    (y.sum() + total.sum()).backward()
    x = tensors["x"].clone().requires_grad_()
    y = ours.group_norm(x * 1, 2, residual=x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_the_sum_alone_where_it_is_exact(dtype):
    x, skip = (make((2, 4, 8)).to(dtype).requires_grad_() for _ in range(2))
    made = [t * 1 for t in (x, skip)]  # as a layer makes them
    kept = [weakref.ref(t) for t in made]
    y, total = ours.rms_norm(made[0], (8,), skip=made[1], return_sum=True)
    del made
    assert [ref() is None for ref in kept] == [dtype is torch.float32] * 2
    total.mul_(2)
    if dtype is torch.float32:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.float().sum().backward()
    else:
        y.float().sum().backward()


X = make((2, 4, 3))
ROWS = make((2, 3, 4))
REFUSED = [
    ({"skip": make((2, 4, 2))}, ValueError, r"skip: .*\[2, 4, 3\].*\[2, 4, 2\]"),
    ({"residual": make((3, 2, 4, 3))}, ValueError, r"residual: .*\[3, 2, 4, 3\]"),
    ({"skip": 1.0}, TypeError, "skip: .*Tensor.*float"),
    ({"shift": [1.0]}, TypeError, "shift: .*Tensor.*list"),
    ({"shift": make(4)}, ValueError, r"shift: .*\[2, 4\], or \[2, 4, 1\].*\[4\]"),
    ({"shift": make((2, 4, 3))}, ValueError, r"shift: .*\[2, 4, 3\]"),
    ({"scale_shift": make((2, 4))}, TypeError, "scale_shift: .*pair"),
    ({"scale_shift": (make((2, 4)), None)}, TypeError, "scale_shift: .*pair.*NoneType"),
    ({"scale_shift": (make((2, 4)), make((2, 3)))}, ValueError, r"scale_shift\[1\]: .*\[2, 3\]"),
    ({"lengths": [1.0, 2.0]}, TypeError, "lengths: .*integers.*float"),
    ({"lengths": torch.tensor([True, False])}, TypeError, "lengths: .*integers.*bool"),
    ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths: .*integers.*float"),
    ({"lengths": [1]}, ValueError, r"lengths: .*\[2\].*\[1\]"),
    ({"lengths": 2}, ValueError, r"lengths: .*\[2\].*\[\]"),
    ({"lengths": [3, 4]}, ValueError, "lengths: .*from 0 to 3.*4 at index 1"),
    ({"lengths": [-1, 3]}, ValueError, "lengths: .*from 0 to 3.*-1 at index 0"),
    ({"skp": X}, TypeError, "'skp'"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED, ids=lambda value: None)
def test_what_is_refused(options, error, words):
    calls = (
        partial(ours.group_norm, X, 2),
        partial(ours.instance_norm, X),
        partial(gt.GroupNorm(2, 4), X),
    )
    for run in calls:
        with pytest.raises(error, match=words):
            run(**options)


def test_what_is_refused_of_rows():
    for run in (partial(ours.layer_norm, ROWS, (4,)), partial(ours.rms_norm, ROWS, (4,))):
        with pytest.raises(ValueError, match=r"shift: .*\[2, 4\], one for each example.*\[3, 2\]"):
            run(shift=make((3, 2)))
        with pytest.raises(ValueError, match="lengths: .*from 0 to 3.*5 at index 1"):
            run(lengths=[0, 5])
        with pytest.raises(ValueError, match="lengths: .*from 0 to 3.*5 at index 1"):
            run(lengths=[0, 5], shift=ROWS)
    with pytest.raises(ValueError, match=r"lengths: .*\[N, ..., L, \*normalized_shape\].*\[2, 4\]"):
        ours.layer_norm(X[:, :, 0], (4,), lengths=[1, 2])
    with pytest.raises(ValueError, match=r"lengths: .*\[N, C, ..., L\].*\[2, 4\]"):
        ours.group_norm(X[:, :, 0], 2, lengths=[1, 2])
    with pytest.raises(RuntimeError, match="divisible by num_groups"):
        ours.group_norm(X, 3, skip=X)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        ours.instance_norm(X[0], lengths=[1])
    with pytest.raises(RuntimeError, match="not implemented for 'Long'"):
        ours.layer_norm(X.long(), (3,), skip=X.long())
