"""Convolutional sliding windows: every place is what the classifier says of its window."""

import pytest
import torch
from torch import nn

from models.classification import ARCHITECTURES, arguments_of, build, least_px
from models.efficientnet_lite import EfficientNetLite
from models.slidingwindow import (
    PARTS,
    as_convolution,
    crops_of,
    fully_convolutional,
    native_stride,
)

CONVERTIBLE = [name for name in ARCHITECTURES if not name.startswith("efficientnet_lite")]
UNPADDED = [("overfeat_course", 14, 2), ("overfeat_course", 24, 2), ("lenet5", 24, 4), ("lenet5", 32, 4)]


def network(name: str, px: int, channels: int = 3) -> nn.Module:
    """A network whose norms and biases are not those of a fresh one; dense layers narrowed."""
    torch.manual_seed(0)
    arguments = arguments_of(name, px) | ({"dense": 16} if name.startswith(("alexnet", "vgg")) else {})
    net = build(name, 4, channels, arguments, (0.5,) * channels, (0.25,) * channels).net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize(("px", "places"), [(14, 1), (15, 1), (16, 2), (28, 8)])
@torch.no_grad()
def test_the_course_net_has_the_places_of_the_course(px: int, places: int) -> None:
    whole = fully_convolutional(network("overfeat_course", 14), 14)
    assert whole(torch.randn(1, 3, px, px)).shape == (1, 4, places, places)
    assert whole.stride_px == 2


@torch.no_grad()
def test_the_course_net_keeps_its_weights_and_its_number_of_parameters() -> None:
    net = network("overfeat_course", 14)
    whole = fully_convolutional(net, 14)
    shapes = [tuple(m.weight.shape) for m in whole.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(16, 3, 5, 5), (400, 16, 5, 5), (400, 400, 1, 1), (4, 400, 1, 1)]
    assert sum(p.numel() for p in whole.parameters()) == 323_620
    for ours, theirs in zip(whole.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())


@pytest.mark.parametrize(("name", "window_px", "stride_px"), UNPADDED)
@torch.no_grad()
def test_without_padding_every_place_equals_its_window(name: str, window_px: int, stride_px: int) -> None:
    """Exactly in what is computed; in float64 nothing but the order of sums is left."""
    net = network(name, window_px).double()
    whole = fully_convolutional(net, window_px)
    assert whole.stride_px == stride_px
    pictures = torch.randn(2, 3, window_px + 13, window_px + 22, dtype=torch.float64)
    crops = crops_of(pictures, window_px, stride_px)
    B, rows, columns = crops.shape[:3]
    alone = net(crops.flatten(0, 2)).view(B, rows, columns, 4).permute(0, 3, 1, 2)
    together = whole(pictures)
    assert together.shape == (2, 4, 13 // stride_px + 1, 22 // stride_px + 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", CONVERTIBLE)
@torch.no_grad()
def test_a_picture_as_large_as_the_window_gets_what_the_classifier_says(name: str) -> None:
    px = max(32, least_px(name))
    net = network(name, px).double()
    picture = torch.randn(2, 3, px, px, dtype=torch.float64)
    together = fully_convolutional(net, px)(picture)
    assert together.shape == (2, 4, 1, 1)
    torch.testing.assert_close(together[:, :, 0, 0], net(picture), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "px", "stride_px"), [("resnet18", 224, 32), ("vgg11", 224, 32),
                                                      ("alexnet", 224, 32), ("googlenet", 224, 32),
                                                      ("squeezenet1_1", 224, 16), ("airnet94", 32, 8),
                                                      ("nin", 32, 4), ("resnet20_cifar", 32, 4)])  # fmt: skip
def test_strides_are_the_products_of_the_strides_inside(name: str, px: int, stride_px: int) -> None:
    whole = fully_convolutional(network(name, px), px).to("meta")
    assert whole.stride_px == stride_px
    for more in (0, stride_px - 1, stride_px, 5 * stride_px + 1):
        out = whole(torch.empty(1, 3, px + more, px, device="meta"))
        assert out.shape == (1, 4, more // stride_px + 1, 1)


@pytest.mark.parametrize(("name", "px"), [("overfeat_course", 14), ("lenet5", 32), ("airnet94", 32), ("nin", 32),
                                          ("resnet20_cifar", 32), ("vgg11", 32), ("alexnet", 63), ("resnet18", 64),
                                          ("squeezenet1_1", 64), ("googlenet", 32), ("mobilenet_v2", 64)])  # fmt: skip
@torch.no_grad()
def test_bands_of_a_picture_give_what_the_whole_gives(name: str, px: int) -> None:
    net = network(name, px).double()
    whole = fully_convolutional(net, px)
    assert whole.stride_px == native_stride(net, px)
    _pixels, rows = next(whole.bands(10**6, px, 1))
    height = px + whole.stride_px * (2 * rows.stop + 1) + whole.stride_px - 1  # two bands and two rows more
    picture = torch.randn(1, 3, height, px + whole.stride_px, dtype=torch.float64)
    expected = whole(picture)
    [(pixels, rows)] = whole.bands(*picture.shape[2:], picture.numel())
    assert pixels.start == 0 and rows == slice(0, expected.shape[2])

    def banded() -> torch.Tensor:
        bands = list(whole.bands(*picture.shape[2:], 1))
        assert len(bands) > 2
        return torch.cat([whole(picture[:, :, pixels])[:, :, rows] for pixels, rows in bands], 2)

    torch.testing.assert_close(banded(), expected, rtol=1e-9, atol=1e-11)
    pads, whole.beyond_px = whole.beyond_px != (0, 0), (0, 0)
    assert (
        torch.allclose(banded(), expected, rtol=1e-9, atol=1e-11) != pads
    )  # without what it sees beyond, it differs


def test_what_a_place_sees_beyond_its_window_is_what_convolutions_pad() -> None:
    assert fully_convolutional(network("overfeat_course", 14), 14).beyond_px == (0, 0)
    # 3x3 at strides 1, 2, 4, 4, 8, 8, 16, 16 begin 1 + 2 + 4 + 4 + 8 + 8 + 16 + 16 pixels before: two strides
    assert fully_convolutional(network("vgg11", 32), 32).beyond_px == (64, 64)


@torch.no_grad()
def test_what_padding_sees_is_all_that_makes_a_padded_network_differ() -> None:
    """VGG without its paddings is exact; with them, the crop has zeros where the picture goes on."""
    px = 224
    net = network("vgg11", px).double()
    pictures = torch.randn(1, 3, px, px + 32, dtype=torch.float64)
    right = net(pictures[..., 32:])
    assert not torch.allclose(fully_convolutional(net, px)(pictures)[..., 0, 1], right, rtol=1e-6)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
    together = fully_convolutional(net, px)(pictures)  # a map of 1x1 now, which VGG's pooling spreads to 7x7
    torch.testing.assert_close(together[..., 0, 1], net(pictures[..., 32:]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [1, 3, 7, 10, 14])
@torch.no_grad()
def test_an_adaptive_pooling_folds_into_the_dense_layer(side: int) -> None:
    torch.manual_seed(0)
    pooling, dense = nn.AdaptiveAvgPool2d(7), nn.Linear(5 * 49, 6).double()
    maps = torch.randn(3, 5, side, side, dtype=torch.float64)
    conv = as_convolution(dense, side, pooling)
    assert conv.kernel_size == (side, side)
    torch.testing.assert_close(conv(maps)[:, :, 0, 0], dense(pooling(maps).flatten(1)))


@pytest.mark.parametrize(("name", "window_px", "_stride"), UNPADDED)
def test_a_place_of_an_unpadded_network_sees_its_window_and_nothing_else(
    name: str, window_px: int, _stride: int
) -> None:
    """By the gradient of one place."""
    whole = fully_convolutional(network(name, window_px), window_px)
    picture = torch.randn(1, 3, window_px + 20, window_px + 20, requires_grad=True)
    whole(picture)[0, :, 1, 2].sum().backward()
    assert picture.grad is not None
    seen = picture.grad.abs().sum((0, 1)).nonzero()
    top, left = whole.stride_px, 2 * whole.stride_px
    assert (seen.min(0).values >= torch.tensor([top, left])).all()
    assert (seen.max(0).values < torch.tensor([top + window_px, left + window_px])).all()


def test_crops_are_the_windows() -> None:
    picture = torch.arange(6 * 7).view(1, 1, 6, 7)
    crops = crops_of(picture, 3, 2)
    assert crops.shape == (1, 2, 3, 1, 3, 3)
    assert torch.equal(crops[0, 1, 2, 0], picture[0, 0, 2:5, 4:7])


def test_what_cannot_be_converted_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"EfficientNetLite cannot be made fully convolutional: .* known: OverFeat"
    ):
        fully_convolutional(EfficientNetLite(2, 3), 224)
    with pytest.raises(ValueError, match="a dense layer of 400 inputs does not follow a map of 6x6"):
        fully_convolutional(network("overfeat_course", 14), 16)
    whole = fully_convolutional(network("overfeat_course", 14), 14)
    with pytest.raises(ValueError, match="no window of 14 px fits into 20x13 px"):
        whole(torch.zeros(1, 3, 13, 20))
    assert len(PARTS) == 12
