"""Every network of the catalogue: exact size, gradients everywhere, no NaN; and what is particular to each."""

import pytest
import torch
from torch.nn import functional as F

from models.airnet import AirNet
from models.classification import ARCHITECTURES, arguments_of, build
from models.resnet import CifarResNet, PadShortcut

SIZES = {  # (num_classes, channels) → parameters
    "lenet5": (10, 1, 61_706),
    "airnet94": (10, 3, 1_971_640),
    "resnet18": (1000, 3, 11_689_512),
    "resnet34": (1000, 3, 21_797_672),
    "efficientnet_lite0": (1000, 3, 4_652_008),
    "efficientnet_lite1": (1000, 3, 5_416_680),
    "efficientnet_lite2": (1000, 3, 6_092_072),
    "resnet20_cifar": (10, 3, 269_722),
    "resnet56_cifar": (10, 3, 853_018),
}


def classifier(name: str, num_classes: int = 10, channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes, channels, arguments_of(name, 32), (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_exact(name: str) -> None:
    num_classes, channels, size = SIZES[name]
    assert sum(p.numel() for p in classifier(name, num_classes, channels).parameters()) == size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_trainable_parameter_gets_a_finite_gradient(name: str, channels: int) -> None:
    model = classifier(name, 7, channels).train()
    images = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for label, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_picture_scores_the_same_beside_any_others(name: str) -> None:
    model = classifier(name).eval()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-4, atol=1e-5)


def test_normalisation_travels_with_the_weights() -> None:
    model = build("lenet5", 10, 1, {"input_px": 32}, (0.25,), (0.5,))
    assert {"mean", "std"} <= set(model.state_dict())
    images = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    assert torch.allclose(model.normalise(images), torch.tensor(1.5))


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lenet-5.*known: lenet5, airnet94"):
        build("lenet-5", 10, 1, {}, (0.5,), (0.5,))


def test_whitening_makes_patches_uncorrelated() -> None:
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(200, 3, 20, 20), 3, stride=1)  # neighbours correlate
    net = AirNet(10, 3)
    net.fit_whitening(smooth)
    with torch.inference_mode():
        response = net.whiten(smooth)[:, :12] - net.whiten.bias[:12].view(1, -1, 1, 1)
    flat = response.permute(1, 0, 2, 3).reshape(12, -1)
    covariance = flat @ flat.T / flat.shape[1]
    off_diagonal = covariance - torch.diag(covariance.diag())
    assert off_diagonal.abs().max() < 0.01
    assert covariance.diag().min() > 0.5 and covariance.diag().max() < 1.01  # less than 1 by the 5e-4


def test_identity_start_passes_channels_through() -> None:
    net = AirNet(10, 3, widths=(32, 32, 32))
    x = torch.rand(1, 24, 8, 8)
    assert torch.allclose(net.groups[0].conv1(x)[:, :24], x, atol=1e-6)


def test_pad_shortcut_has_no_parameters_and_zero_channels_on_both_sides() -> None:
    shortcut = PadShortcut(16, 32, 2)
    y = shortcut(torch.ones(1, 16, 8, 8))
    assert not list(shortcut.parameters()) and y.shape == (1, 32, 4, 4)
    assert (y[:, :8] == 0).all() and (y[:, 8:24] == 1).all() and (y[:, 24:] == 0).all()


def test_projection_shortcuts_cost_what_they_should() -> None:
    size = sum(p.numel() for p in CifarResNet(10, 3, depth=20, shortcut="B").parameters())
    assert size == 272_474


@pytest.mark.parametrize("depth", [7, 9, 21])
def test_impossible_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth \(={depth}\) must be 6n \+ 2"):
        CifarResNet(10, 3, depth=depth)


def test_lenet_refuses_a_side_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 4 and at least 16, got 30"):
        build("lenet5", 10, 1, {"input_px": 30}, (0.5,), (0.5,))
