"""Norms of other code that replace_group_norm_ knows by the source of their forward.

The classes are written as such code bases write them. The oracle is torch's function in float64.
"""

import copy
import pickle
import types

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor, nn

import groupnorm.torch as gt
from groupnorm.torch import known_norms

EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class GroupNorm32To(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        """Computes in float32."""
        y = super(GroupNorm32To, self).forward(input.to(torch.float32))  # noqa: UP008 - as many do
        return y.to(input.dtype)


class GroupNorm32Named(nn.GroupNorm):
    def forward(self, x):
        y = nn.GroupNorm.forward(self, x.to(dtype=torch.float))
        return y.type_as(x)


class GroupNorm32Functional(nn.GroupNorm):
    def forward(self, input):
        output = F.group_norm(
            input.float(),
            self.num_groups,
            self.weight.float() if self.weight is not None else None,
            self.bias.float() if self.bias is not None else None,
            self.eps,
        )
        return output.type_as(input)


class GroupNormOfWeight(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class GroupNormNamed(nn.GroupNorm):
    def forward(self, x):
        return torch.nn.functional.group_norm(
            x, num_groups=self.num_groups, weight=self.weight, bias=self.bias, eps=self.eps
        )


class GroupNorm2(nn.GroupNorm):
    """Has torch's forward."""

    def __init__(self, channels):
        super().__init__(2, channels)


class LayerNormClip(nn.LayerNorm):
    def forward(self, x: Tensor):
        orig_type = x.dtype
        ret = super().forward(x.type(torch.float32))
        return ret.type(orig_type)


class LayerNormOpenClip(nn.LayerNorm):
    def forward(self, x: Tensor):
        orig_type = x.dtype
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.to(orig_type)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x = x.permute(0, 3, 1, 2)
        return x


class LayerNorm2dFp32(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        weight = self.weight.float() if self.weight is not None else None
        bias = self.bias.float() if self.bias is not None else None
        x = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
        return x.permute(0, 3, 1, 2)


class LayerNorm1d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, 2).contiguous()).transpose(1, 2)


class LayerNormSam(nn.Module):
    def __init__(self, num_channels, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(dim=1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        return x


class LayerNormConvNext(nn.Module):
    def __init__(self, normalized_shape, eps=1e-6, data_format="channels_last"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.data_format = data_format
        if self.data_format not in ["channels_last", "channels_first"]:
            raise NotImplementedError
        self.normalized_shape = (normalized_shape,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        elif self.data_format == "channels_first":
            u = x.mean(1, keepdim=True)
            s = (x - u).pow(2).mean(1, keepdim=True)
            x = (x - u) / torch.sqrt(s + self.eps)
            x = self.weight[:, None, None] * x + self.bias[:, None, None]
            return x


def group(norm, x):
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def last(norm, x):
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def channels(norm, x):
    return last(norm, x.movedim(1, -1)).movedim(-1, 1)


IMAGE, ROWS = (2, 8, 5, 6), (3, 7, 8)
# Whether 16-bit inputs may meet float32 parameters, the norm, the input's shape, what it computes.
CASES = {
    "GroupNorm32": (True, GroupNorm32(2, 8), IMAGE, group),
    "GroupNorm32To": (True, GroupNorm32To(4, 8), IMAGE, group),
    "GroupNorm32Named": (True, GroupNorm32Named(2, 8), (2, 8, 30), group),
    "GroupNorm32Functional": (True, GroupNorm32Functional(2, 8), IMAGE, group),
    "GroupNormOfWeight": (True, GroupNormOfWeight(2, 8), IMAGE, group),
    "GroupNormNamed": (False, GroupNormNamed(2, 8), IMAGE, group),
    "GroupNorm2": (False, GroupNorm2(8), IMAGE, group),
    "LayerNormClip": (True, LayerNormClip(8), ROWS, last),
    "LayerNormOpenClip": (True, LayerNormOpenClip(8), ROWS, last),
    "LayerNorm2d": (False, LayerNorm2d(8), IMAGE, channels),
    "LayerNorm2dFp32": (True, LayerNorm2dFp32(8), IMAGE, channels),
    "LayerNorm1d": (False, LayerNorm1d(8), (2, 8, 9), channels),
    "LayerNormSam": (False, LayerNormSam(8), IMAGE, channels),
    "LayerNormConvNext": (False, LayerNormConvNext(8), ROWS, last),
    "channels_first": (
        *(False, LayerNormConvNext(8, data_format="channels_first")),
        *(IMAGE, channels),
    ),
}


def draw(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def prepared(case, dtype):
    """A copy of the norm with random parameters, an input, and y in float64."""
    mixed, norm, shape, oracle = CASES[case]
    norm = copy.deepcopy(norm)
    for i, p in enumerate(norm.parameters()):
        p.data = draw(p.shape, torch.float32 if mixed else dtype, i + 1)
    x = draw(shape, dtype)
    return norm, x, oracle(copy.deepcopy(norm).double(), x.double())


def assert_rounded_once(y, x, expected):
    """The engine's 3.3 float32 eps (docs/numerics.md), and the rounding to the dtype of y."""
    assert (y.dtype, y.shape) == (x.dtype, expected.shape)
    unit = EPS[x.dtype]
    scale = 8 * (1 + expected.abs())  # |gamma xhat| + |beta| of these data, by far
    bound = 2 * 3.3 * EPS[torch.float32] * scale + (unit if unit > 2.0**-24 else 0) * expected.abs()
    bound = bound + (2.0**-25 if x.dtype is torch.float16 else 0)  # subnormal
    error = (y.double() - expected).abs()
    worst = (error / bound).max().item()
    assert worst <= 1, f"seed 0: {worst} times the bound at {(error / bound).argmax().item()}"


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_known_classes_are_replaced(case, dtype):
    norm, x, expected = prepared(case, dtype)
    cls, keys = type(norm), list(norm.state_dict())
    torchs = norm(x)
    (replacement,) = gt.replace_group_norm_(norm).replaced
    assert replacement.kind == cls.__name__
    assert isinstance(norm, cls)
    assert list(norm.state_dict()) == keys
    assert_rounded_once(norm(x), x, expected)
    assert norm(x).dtype == torchs.dtype
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(other(x), norm(x))
        assert repr(other) == repr(norm)
    assert gt.restore_group_norm_(norm) == [""]
    assert type(norm) is cls
    assert torch.equal(norm(x), torchs)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_an_activation_behind_them_is_fused(case, dtype):
    norm, x, expected = prepared(case, dtype)
    model = nn.Sequential(norm, nn.SiLU())
    (replacement,) = gt.replace_group_norm_(model).replaced
    assert replacement.activation == "silu"
    assert_rounded_once(model(x), x, F.silu(expected))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_class(case):
    norm, x, _ = prepared(case, torch.float32)
    found = []
    for _ in range(2):
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        norm(leaf).sin().sum().backward()
        found.append([leaf.grad, *(p.grad.clone() for p in norm.parameters())])
        gt.replace_group_norm_(norm)
    for theirs, ours in zip(*found, strict=True):
        assert (theirs - ours).abs().max() <= 1e-5 * (1 + theirs.abs().max())


@pytest.mark.parametrize(
    ("params", "data"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_other_dtypes_give_what_the_class_gives(case, params, data):
    """A result or a refusal."""
    norm, x, _ = prepared(case, torch.float32)
    norm, x = norm.to(params), x.to(data)

    def outcome():
        try:
            return norm(x)
        except RuntimeError as error:
            return str(error)

    theirs = outcome()
    gt.replace_group_norm_(norm)
    ours = outcome()
    assert type(ours) is type(theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_name_of_the_argument_and_the_constructor_are_kept():
    norm, x, _ = prepared("GroupNorm32To", torch.float16)
    expected = norm(input=x)
    gt.replace_group_norm_(norm)
    assert (norm(input=x) - expected).abs().max() <= 2.0**-9
    made = GroupNorm2(8)
    gt.replace_group_norm_(made)
    assert type(made)(6).num_channels == 6


def test_the_memory_format_is_that_of_the_class():
    for case in ("LayerNorm2d", "LayerNormSam"):
        norm, x, _ = prepared(case, torch.float32)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            y = norm(x.contiguous(memory_format=memory_format))
            gt.replace_group_norm_(norm)
            assert norm(x.contiguous(memory_format=memory_format)).stride() == y.stride()
            gt.restore_group_norm_(norm)


# --- Not known.


class WidensBeforeItLooks(nn.GroupNorm):
    def forward(self, x):
        x = x.float()
        return super().forward(x).type(x.dtype)


class Activates(nn.GroupNorm):
    def forward(self, x):
        return F.silu(super().forward(x.float())).type(x.dtype)


class OtherEps(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, 1e-3)


class NoBias(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, None, self.eps)


class Swapped(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.bias, self.weight, self.eps)


class MovesOnce(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1))


class Chooses(nn.GroupNorm):
    def forward(self, x):
        if x.dtype == torch.float16:
            return x
        return super().forward(x)


class Calls(nn.GroupNorm):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Grandchild(Activates):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class Counts(nn.GroupNorm):
    def forward(self, x):
        self.calls = 1
        return super().forward(x)


class ChecksNothing(nn.InstanceNorm2d):
    def _check_input_dim(self, input):
        pass


class Decorated(nn.GroupNorm):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class UncentredSam(LayerNormSam):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = x.pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        return x


@pytest.mark.parametrize(
    "norm",
    [
        *(WidensBeforeItLooks(2, 8), Activates(2, 8), OtherEps(2, 8), NoBias(2, 8), Swapped(2, 8)),
        *(MovesOnce(8), Chooses(2, 8), Calls(2, 8), Grandchild(2, 8), Counts(2, 8)),
        *(ChecksNothing(8), Decorated(2, 8)),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_what_may_be_something_else_is_skipped(norm):
    cls = type(norm)
    report = gt.replace_group_norm_(nn.Sequential(norm))
    assert report.replaced == []
    (skip,) = report.skipped
    assert skip.reason.endswith(
        f"that may compute something else; trusted=[{cls.__name__}] says that it does not"
    )
    assert type(norm) is cls


def test_other_modules_with_a_weight_and_a_bias_are_no_norms():
    model = nn.Sequential(UncentredSam(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    assert gt.replace_group_norm_(model) == gt.Report()


def test_a_name_that_means_something_else_is_seen():
    fake = types.SimpleNamespace(group_norm=lambda x, *_: x)
    forward = types.FunctionType(GroupNormNamed.forward.__code__, {"torch": fake, "F": fake})
    cls = type("Shadowed", (nn.GroupNorm,), {"forward": forward})
    assert known_norms.computation(GroupNormNamed) == "super().forward(x)"
    assert known_norms.computation(cls) is None


# --- Trusted.


def test_a_class_that_is_vouched_for():
    norm, x, _ = prepared("GroupNorm32", torch.bfloat16)
    norm.__class__ = Counts
    model = nn.Sequential(norm, nn.ReLU())
    report = gt.replace_group_norm_(model, trusted=[Counts])
    assert [(r.kind, r.activation) for r in report.replaced] == [("Counts", "relu")]
    exact = group(copy.deepcopy(norm).double(), x.double())
    assert_rounded_once(model(x), x, F.relu(exact))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    gt.restore_group_norm_(model)
    assert type(norm) is Counts


def test_what_can_be_trusted():
    model = nn.Sequential(Counts(2, 8))
    for trusted in (Counts, "Counts", [Counts(2, 8)]):
        with pytest.raises(TypeError, match=r"^trusted: must be a collection of classes; got "):
            gt.replace_group_norm_(model, trusted=trusted)
    with pytest.raises(
        ValueError, match=r"^trusted: must be subclasses of GroupNorm, .*; got ReLU"
    ):
        gt.replace_group_norm_(model, trusted=[Counts, nn.ReLU])
    assert type(model[0]) is Counts
