"""groupnorm.torch.tiled: tiles in lockstep give what the whole gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupnorm.torch import replace_group_norm_
from groupnorm.torch.tiled import Tiled


class _Block(nn.Module):
    """Down, up and a way around, as segmentation networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.inner = nn.Sequential(
            nn.InstanceNorm2d(16, affine=True), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        around = torch.relu(self.norm(self.first(x)))
        inner = self.up(self.inner(self.down(around)))
        y: Tensor = self.last(torch.cat([around, inner], 1))
        return y


def _model() -> nn.Module:
    torch.manual_seed(0)
    return _Block().eval()


def _x(size: tuple[int, ...] = (48, 40), channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 8, size[0]).reshape(-1, *[1] * (len(size) - 1))
    return torch.randn(2, channels, *size, generator=generator) + ramp


def _error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).abs().max() / expected.abs().max())


def _apart(model: nn.Module, x: Tensor, tile: int) -> Tensor:
    """Ordinary tiling: each tile by its own statistics."""
    rows = []
    for a in range(0, x.shape[2], tile):
        lines = [model(x[:, :, a : a + tile, b : b + tile]) for b in range(0, x.shape[3], tile)]
        rows.append(torch.cat(lines, 3))
    return torch.cat(rows, 2)


@pytest.mark.parametrize("tile", [16, (16, 40), (20, 8), 64])
def test_tiles_are_the_whole(tile: Any) -> None:
    model, x = _model(), _x()
    expected = model(x).detach()
    y = Tiled(model, tile, overlap=8)(x)
    assert y.shape == expected.shape
    assert _error(y, expected) < 2e-6
    if tile == 16:
        assert _error(_apart(model, x, 16).detach(), expected) > 0.05  # seams


def test_our_norms_with_their_activations_and_no_norm_at_all() -> None:
    model, x = _model(), _x()
    expected = model(x).detach()
    replace_group_norm_(model)
    assert _error(Tiled(model, 16, 8)(x), expected) < 2e-6
    plain = nn.Conv2d(3, 2, 3, padding=1).eval()
    assert _error(Tiled(plain, 16, 1)(x), plain(x).detach()) < 2e-6


def test_the_model_is_as_it_was_and_its_results_of_all_resolutions() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.up = _model(), nn.Upsample(scale_factor=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.up(self.inner(x))
            return y

    model, x = Wider().eval(), _x()
    before = model(x).detach()
    assert _error(Tiled(model, 16, 8)(x), before) < 2e-6
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_what_is_refused() -> None:
    class Global(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + x.mean((2, 3), keepdim=True)

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.GroupNorm(1, 3), nn.GroupNorm(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x) if x[0, 0, 0, 0] < 4 else self.b(x)
            return y

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.max() > 10:
                raise RuntimeError("too bright")
            y: Tensor = self.norm(x)
            return y

    x = _x()

    def refused(call: Any, *words: str) -> None:
        with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
            call()
        for word in words:
            assert word in str(error.value), str(error.value)

    refused(lambda: Tiled(3, 16, 8), "model", "int")  # type: ignore[arg-type]
    refused(lambda: Tiled(_Block(), 16, 8), "model", "eval")
    tracking = nn.InstanceNorm2d(3, track_running_stats=True).eval()
    refused(lambda: Tiled(tracking, 16, 8), "running statistics")
    batch = nn.BatchNorm2d(3, track_running_stats=False).eval()
    refused(lambda: Tiled(batch, 16, 8), "BatchNorm2d")
    refused(lambda: Tiled(_model(), 16, 0)(x), "overlap", "positions", "got 0")
    refused(lambda: Tiled(_model(), 16, 2)(x), "overlap", "got 2")
    refused(lambda: Tiled(Global().eval(), 16, 8)(x), "overlap", "all of it")
    refused(lambda: Tiled(_model(), (16, 16, 16), 8)(x), "tile", "2 axes")
    refused(lambda: Tiled(_model(), 0, 8)(x), "tile", "got 0")
    refused(lambda: Tiled(_model(), 16, -1)(x), "overlap", "got -1")
    refused(lambda: Tiled(Uneven().eval(), 16, 0)(x), "same norms in the same order")
    refused(lambda: Tiled(Fails().eval(), 16, 0)(x), "too bright")
    halves = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4)).eval()
    refused(lambda: Tiled(halves, 15, 9)(x), "tile", "not whole")


def test_a_segmentation_network_of_monai() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    model = nets.SegResNet(
        spatial_dims=3,
        init_filters=8,
        in_channels=1,
        out_channels=2,
        blocks_down=(1, 1),
        blocks_up=(1,),
    ).eval()
    x = _x((48, 16, 16), 1)[:1]
    expected = model(x).detach()
    assert _error(Tiled(model, (16, 16, 16), 12)(x), expected) < 5e-6


def test_a_decoder_of_diffusers() -> None:
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")

    def decoder(attention: bool) -> Any:
        torch.manual_seed(0)
        return vae.Decoder(
            in_channels=4,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_add_attention=attention,
        ).eval()

    x = _x((64, 16), 4)[:1]
    model = decoder(attention=False)
    expected = model(x).detach()
    assert _error(Tiled(model, (16, 16), 16)(x), expected) < 5e-6
    assert _error(_apart(model, x, 16).detach(), expected) > 0.05
    with pytest.raises(ValueError, match=r"overlap: .*all of it"):
        Tiled(decoder(attention=True), (16, 16), 16)(x)
