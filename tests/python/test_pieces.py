"""groupnorm.moments, normalize, gradient_sums and normalize_backward: any cut is as good as none."""

import itertools
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import groupnorm
from groupnorm import GradientSums, Moments

EPS64 = np.finfo(np.float64).eps


ACTIVATIONS: dict[str | None, Any] = {
    None: lambda z: z,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


@st.composite
def _cuts(draw: Any) -> dict[str, Any]:
    """An array, and boundaries on each axis: pieces may be empty or of one element."""
    groups = draw(st.integers(1, 4))
    n, per = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 20]))
    space = draw(st.lists(st.integers(1, 12), min_size=0, max_size=2))
    shape = (n, groups * per, *space)
    bounds = []
    for axis, size in enumerate(shape):
        inner = draw(st.lists(st.integers(0, size), max_size=3))
        if axis == 1:
            inner = [i // per * per for i in inner]  # at the boundaries of groups
        bounds.append([0, *sorted(inner), size])
    return {
        "shape": shape,
        "groups": groups,
        "bounds": bounds,
        "across": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"])),
        "layout": draw(st.sampled_from(["channels_first", "channels_last"])),
        "mean": draw(st.sampled_from([0.0, 30.0, 1e5])),
        "activation": draw(st.sampled_from([None, "silu", "gelu"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


class _Cut:
    """A case of _cuts: its data in channels_first, and its pieces in its own layout."""

    def __init__(self, case: dict[str, Any]) -> None:
        random = np.random.default_rng(case["seed"])
        dtype = np.dtype(getattr(ml_dtypes, case["dtype"], case["dtype"]))
        mean = 30.0 if case["mean"] > 1e4 and dtype.itemsize == 2 else case["mean"]
        self.case, self.dtype = case, dtype
        self.x = (random.standard_normal(case["shape"]) + mean).astype(dtype)
        self.dy = random.standard_normal(case["shape"]).astype(dtype)
        param = np.float64 if dtype == np.float64 else np.float32
        self.weight = (1 + random.standard_normal(case["shape"][1]) / 2).astype(param)
        self.bias = (random.standard_normal(case["shape"][1]) / 2).astype(param)
        self.per = case["shape"][1] // case["groups"]
        ranges = [[slice(a, b) for a, b in itertools.pairwise(each)] for each in case["bounds"]]
        self.pieces = list(itertools.product(*ranges))
        self.options = {"layout": case["layout"]}
        self.norm = {**self.options, "activation": case["activation"]}

    def of(self, array: np.ndarray, piece: Any) -> np.ndarray:
        return self.lay(array[piece])

    def lay(self, array: np.ndarray) -> np.ndarray:
        if self.case["layout"] == "channels_first":
            return np.ascontiguousarray(array)
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))

    def back(self, array: np.ndarray) -> np.ndarray:
        return array if self.case["layout"] == "channels_first" else np.moveaxis(array, -1, 1)

    def groups_of(self, piece: Any) -> slice:
        return slice(piece[1].start // self.per, piece[1].stop // self.per)

    def key(self, piece: Any) -> str:
        """What pieces of the same blocks have in common."""
        return str(piece[1]) if self.case["across"] else str(piece[:2])

    def moments(self, piece: Any) -> Moments:
        groups = self.groups_of(piece)
        return groupnorm.moments(
            self.of(self.x, piece),
            groups.stop - groups.start or None,  # of no channels
            across_batch=self.case["across"],
            **self.options,
        )


@given(_cuts())
@settings(max_examples=150, deadline=None)
def test_any_cut_is_the_whole(case: dict[str, Any]) -> None:
    cut = _Cut(case)
    totals: dict[Any, Moments] = {}
    for piece in cut.pieces:
        own, key = cut.moments(piece), cut.key(piece)
        totals[key] = totals[key] | own if key in totals else own
    _assert_moments(cut, totals)

    y, dx = np.empty(cut.x.shape, cut.dtype), np.empty(cut.x.shape, cut.dtype)
    sums: dict[Any, GradientSums] = {}
    for piece in cut.pieces:
        x, dy, key = cut.of(cut.x, piece), cut.of(cut.dy, piece), cut.key(piece)
        args = (totals[key], cut.weight[piece[1]], cut.bias[piece[1]])
        y[piece] = cut.back(groupnorm.normalize(x, *args, **cut.norm))
        own_sums = groupnorm.gradient_sums(dy, x, *args, **cut.norm)
        sums[key] = sums[key] + own_sums if key in sums else own_sums
    dweight, dbias = np.zeros(cut.weight.shape), np.zeros(cut.weight.shape)
    for piece in cut.pieces:
        x, dy, key = cut.of(cut.x, piece), cut.of(cut.dy, piece), cut.key(piece)
        params = cut.weight[piece[1]], cut.bias[piece[1]]
        found = groupnorm.normalize_backward(dy, x, totals[key], sums[key], *params, **cut.norm)
        dx[piece] = cut.back(found[0])
    for key, piece in {cut.key(piece): piece for piece in cut.pieces}.items():
        dweight[piece[1]] += sums[key].dweight
        dbias[piece[1]] += sums[key].dbias
    _Reference(cut).check(y, dx, dweight, dbias)


def _assert_moments(cut: _Cut, totals: dict[Any, Moments]) -> None:
    whole = groupnorm.moments(
        cut.lay(cut.x), cut.case["groups"], across_batch=cut.case["across"], **cut.options
    )
    for piece in cut.pieces:
        total, of = totals[cut.key(piece)], whole.data[..., cut.groups_of(piece), :]
        expected = Moments(of if cut.case["across"] else of[piece[0]])
        np.testing.assert_array_equal(total.count, expected.count)
        if cut.dtype != np.float64:  # whose sums are of float32, in chains
            continue
        scale = 1 + np.abs(expected.mean)
        assert np.all(np.abs(total.mean - expected.mean) <= 4 * EPS64 * scale)
        # x - mean carries an eps of the mean.
        room = 4 * EPS64 * (expected.m2 + scale * np.sqrt(expected.count * expected.m2) + EPS64)
        assert np.all(np.abs(total.m2 - expected.m2) <= room)


class _Reference:
    """y and gradients by torch in float64, and what errors are measured against."""

    def __init__(self, cut: _Cut) -> None:
        self.cut = cut
        n, c = cut.x.shape[:2]
        tensors = [torch.from_numpy(a.astype(np.float64)) for a in (cut.x, cut.weight, cut.bias)]
        x, weight, bias = (t.requires_grad_() for t in tensors)
        groups = cut.case["groups"]
        blocks = x.reshape(n, groups, -1)
        if cut.case["across"]:
            blocks = blocks.transpose(0, 1).reshape(1, groups, -1)
        mean = blocks.mean(-1, keepdim=True)
        rstd = (((blocks - mean) ** 2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        xhat = (blocks - mean) * rstd
        if cut.case["across"]:
            xhat = xhat.reshape(groups, n, -1).transpose(0, 1)
        xhat = xhat.reshape(cut.x.shape)
        shape = (1, c, *[1] * (x.dim() - 2))
        scaled = xhat * weight.reshape(shape)
        y = ACTIVATIONS[cut.case["activation"]](scaled + bias.reshape(shape))
        dy = torch.from_numpy(cut.dy.astype(np.float64))
        y.backward(dy)
        self.y: Any = y
        self.dx: Any = x.grad
        self.dweight: Any = weight.grad
        self.dbias: Any = bias.grad
        # What numerics.md has: f64 is measured with the mean's own rounding.
        shift = float((mean.abs() * rstd).detach().max()) if cut.dtype == np.float64 else 0.0
        self.scale = 1 + scaled.abs() + bias.reshape(shape).abs() + shift
        # |activation'| <= 1.13, |activation''| <= 1.2: an error of z reaches dz through it.
        dz = dy.abs() * (1.13 + 1.2 * self.scale)
        own = (dz * weight.reshape(shape).abs()).amax()
        most = xhat.abs().amax()
        self.dx_scale = (rstd.max() * own * (1 + most * most) * (1 + shift)).detach()
        axes = [0, *range(2, x.dim())]
        self.dbias_scale = (dz * (1 + shift)).sum(axes)
        self.dweight_scale = (dz * (1 + shift) * (1 + xhat.abs())).sum(axes)

    def check(self, y: Any, dx: Any, dweight: Any, dbias: Any) -> None:
        eps = np.finfo(np.float64 if self.cut.dtype == np.float64 else np.float32).eps
        step = ml_dtypes.finfo(self.cut.dtype).eps if self.cut.dtype.itemsize == 2 else 0.0
        for name, ours, exact, scale in (
            ("y", y, self.y, self.scale),
            ("dx", dx, self.dx, self.dx_scale),
            ("dweight", dweight, self.dweight, self.dweight_scale),
            ("dbias", dbias, self.dbias, self.dbias_scale),
        ):
            expected = exact.detach().numpy()
            room = 4 * eps * scale.detach().numpy()
            if name in ("y", "dx"):  # rounded to 16 bits once
                room = room + step * (np.abs(expected) + 2.0**-14)
            error = np.abs(ours.astype(np.float64) - expected) / room
            worst = int(np.argmax(error))
            assert error.flat[worst] <= 1, (
                f"{name}[{worst}]: {ours.flat[worst]}, not {expected.flat[worst]}, off by "
                f"{error.flat[worst]} bounds; {self.cut.case}"
            )


def _pieces(count: int = 7) -> list[Moments]:
    random = np.random.default_rng(3)
    return [
        groupnorm.moments(random.normal(1e5, 1, (2, 8, size)), 4)
        for size in random.integers(0, 50, count)
    ]


def test_one_piece_has_the_bits_of_group_norm() -> None:
    x = np.random.default_rng(0).normal(50, 1, (2, 12, 40, 50)).astype(np.float32)
    weight, bias = np.linspace(1, 2, 12, dtype=np.float32), np.ones(12, np.float32)
    dy = x[::-1].copy()
    every: list[dict[str, Any]] = [{"activation": "silu"}, {"correction": 1}, {"eps": 0.5}]
    for options in every:
        y, mean, rstd = groupnorm.group_norm(x, 3, weight, bias, return_statistics=True, **options)
        whole = groupnorm.moments(x, 3)
        y_of_piece = groupnorm.normalize(x, whole, weight, bias, **options)
        np.testing.assert_array_equal(y_of_piece, y)
        rule = {k: v for k, v in options.items() if k != "activation"}
        np.testing.assert_array_equal(whole.mean, mean)
        np.testing.assert_array_equal(whole.rstd(**rule), rstd)
        more = {k: v for k, v in options.items() if k != "eps"}
        dx, dweight, dbias = groupnorm.group_norm_backward(
            dy, x, 3, weight, mean, rstd, bias=bias, **more
        )
        sums = groupnorm.gradient_sums(dy, x, whole, weight, bias, **options)
        found = groupnorm.normalize_backward(dy, x, whole, sums, weight, bias, **options)
        for a, b in zip(found, (dx, dweight, dbias), strict=True):
            np.testing.assert_array_equal(a, b)


def test_layer_norm_and_rms_norm_in_pieces_of_rows() -> None:
    x = np.random.default_rng(0).normal(5, 1, (3, 4, 60)).astype(np.float32)
    weight = np.linspace(1, 2, 60, dtype=np.float32)
    cuts = [slice(0, 7), slice(7, 7), slice(7, 8), slice(8, 60)]
    shapes = [x[..., cut].shape[-1:] for cut in cuts]
    whole = Moments.merge(
        [
            groupnorm.moments(x[..., cut], normalized_shape=shape)
            for cut, shape in zip(cuts, shapes, strict=True)
        ]
    )
    for center, expected in (
        (True, groupnorm.layer_norm(x, 60, weight)),
        (False, groupnorm.rms_norm(x, 60, weight)),
    ):
        y = [
            groupnorm.normalize(
                x[..., cut], whole, weight[cut], normalized_shape=shape, center=center
            )
            for cut, shape in zip(cuts, shapes, strict=True)
        ]
        np.testing.assert_allclose(np.concatenate(y, -1), expected, rtol=0, atol=1e-6)


def test_merge_has_the_same_bits_again_and_any_tree_is_close() -> None:
    pieces = _pieces()
    a, b = Moments.merge(pieces), Moments.merge(iter(pieces))
    assert a.data.tobytes() == b.data.tobytes()
    left = pieces[0]
    for piece in pieces[1:]:
        left = left | piece
    np.testing.assert_allclose(left.mean, a.mean, rtol=4 * EPS64)
    np.testing.assert_allclose(left.m2, a.m2, rtol=16 * EPS64 * 1e5)


def test_channels_in_the_middle_of_a_group() -> None:
    x = np.random.default_rng(0).normal(1e5, 1, (2, 12, 30))
    parts = [groupnorm.moments(x[:, cut]) for cut in (slice(0, 5), slice(5, 6), slice(6, 12))]
    channels = Moments(np.concatenate([part.data for part in parts], axis=1))
    groups, expected = channels.channels_to_groups(3), groupnorm.moments(x, 3)
    np.testing.assert_allclose(groups.mean, expected.mean, rtol=4 * EPS64)
    np.testing.assert_allclose(groups.rstd(), expected.rstd(), rtol=1e-10)
    batch = groups.across(0)
    np.testing.assert_allclose(
        batch.mean, groupnorm.moments(x, 3, across_batch=True).mean, rtol=4 * EPS64
    )
    assert groups.groups_to_channels(12).shape == (2, 12)


def test_moments_travel() -> None:
    own = _pieces(1)[0]
    sent = pickle.dumps(own)
    assert pickle.loads(sent).data.tobytes() == own.data.tobytes()
    assert len(own.data.tobytes()) == 24 * 8 and len(sent) < 500
    assert np.frombuffer(own.data.tobytes()).reshape(2, 4, 3)[0, 0, 0] == own.count[0, 0]
    sums = GradientSums(np.ones((2, 4, 2)), np.ones(8), None)
    again = pickle.loads(pickle.dumps(sums))
    np.testing.assert_array_equal((again + sums).sums, 2)
    assert (again + sums).dbias is None
    total: Any = sum([sums, sums, sums])
    assert total.dweight[0] == 3
    with pytest.raises(ValueError, match="read-only"):
        own.data[0] = 1


def test_what_is_refused() -> None:
    x = np.zeros((2, 8, 5), np.float32)
    whole = groupnorm.moments(x, 4)

    def refused(call: Any, *words: str) -> None:
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        for word in words:
            assert word in str(error.value), str(error.value)

    refused(lambda: Moments.merge([whole, groupnorm.moments(x, 2)]), "pieces", "(2, 4)", "(2, 2)")
    refused(lambda: Moments.merge([]), "pieces")
    number: Any = 3
    refused(lambda: Moments.merge([whole, number]), "pieces", "int")
    refused(lambda: whole | number, "unsupported")
    refused(lambda: Moments(np.zeros((2, 4))), "data", "(2, 4)")
    refused(lambda: groupnorm.moments(x, 3), "num_groups", "8", "3")
    refused(lambda: groupnorm.moments(x, 4, normalized_shape=5), "normalized_shape")
    refused(lambda: groupnorm.normalize(x, None), "moments", "NoneType")  # type: ignore[arg-type]
    refused(lambda: groupnorm.normalize(x[:1], whole), "moments", "(1, 4)", "(2, 4)")
    refused(lambda: groupnorm.normalize(x[:, :6], whole), "moments", "6 channels", "got 4")
    half = groupnorm.moments(x[..., :2], 4)
    refused(lambda: groupnorm.normalize(x, half), "moments", "10 elements", "got 4")
    refused(lambda: groupnorm.normalize(x, whole, eps=-1), "eps", "-1")
    sums = groupnorm.gradient_sums(x, x, whole)
    refused(lambda: groupnorm.normalize_backward(x, x, whole, None), "sums")  # type: ignore[arg-type]
    other = groupnorm.gradient_sums(x, x, groupnorm.moments(x, 2))
    refused(lambda: groupnorm.normalize_backward(x, x, whole, other), "sums", "(2, 2)")
    refused(lambda: sums + other, "sums", "(2, 4, 2)", "(2, 2, 2)")
    refused(
        lambda: groupnorm.normalize(x, whole, out=np.zeros((2, 8, 4), np.float32)),
        "out",
        "(2, 8, 4)",
    )


def test_moments_of_nothing() -> None:
    empty = groupnorm.moments(np.zeros((2, 8, 0), np.float32), 4)
    assert empty.shape == (2, 4) and not empty.data.any()
    assert np.isnan(empty.rstd()).all() and np.isnan(empty.var()).all()
    of_no_example = groupnorm.moments(np.zeros((0, 8, 3)), 4, across_batch=True)
    assert of_no_example.shape == (4,) and not of_no_example.data.any()
    assert groupnorm.moments(np.zeros((0, 8, 3)), 4).shape == (0, 4)
    y = groupnorm.normalize(np.zeros((2, 8, 0)), groupnorm.moments(np.ones((2, 8, 3)), 4))
    assert y.shape == (2, 8, 0)


def test_correction_of_one_element_a_piece() -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 9))
    whole = Moments.merge([groupnorm.moments(x[..., i : i + 1], 1) for i in range(9)])
    y = [groupnorm.normalize(x[..., i : i + 1], whole, correction=1) for i in range(9)]
    expected = groupnorm.group_norm(x, 1, correction=1)
    np.testing.assert_allclose(np.concatenate(y, -1), expected, rtol=1e-14)
    np.testing.assert_allclose(whole.var(1), x.var(ddof=1), rtol=1e-14)
