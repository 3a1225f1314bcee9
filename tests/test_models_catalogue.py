"""Every network of the catalogue: exact size, gradients everywhere, no NaN; and what is particular to each."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.airnet import AirNet
from models.alexnet import AlexNet
from models.classification import ARCHITECTURES, WITH_SIDES, arguments_of, build, least_px
from models.googlenet import GoogLeNet
from models.inception import InceptionV3
from models.resnet import CifarResNet, PadShortcut
from models.sides import WithSides

# name → number of tensors, sha256 of the sorted lines "key shape" of torchvision 0.28.0's own state_dict
TORCHVISION = json.loads((Path(__file__).parent / "torchvision_keys.json").read_text())
SIZES = {  # (num_classes, channels) → parameters
    "lenet5": (10, 1, 61_706),
    "lenet5_course": (10, 3, 62_958),
    "overfeat_course": (4, 3, 323_620),
    "airnet94": (10, 3, 1_971_640),
    "airnet_narrow": (10, 3, 1_088_888),
    "resnet18": (1000, 3, 11_689_512),
    "resnet34": (1000, 3, 21_797_672),
    "resnet50": (1000, 3, 25_557_032),
    "resnet101": (1000, 3, 44_549_160),
    "resnet152": (1000, 3, 60_192_808),
    "alexnet": (1000, 3, 61_100_840),
    "alexnet_2012": (1000, 3, 60_965_224),
    "vgg11": (1000, 3, 132_863_336),
    "vgg11_bn": (1000, 3, 132_868_840),
    "vgg13": (1000, 3, 133_047_848),
    "vgg13_bn": (1000, 3, 133_053_736),
    "vgg16": (1000, 3, 138_357_544),
    "vgg16_bn": (1000, 3, 138_365_992),
    "vgg19": (1000, 3, 143_667_240),
    "vgg19_bn": (1000, 3, 143_678_248),
    "nin": (10, 3, 966_986),
    "googlenet": (1000, 3, 13_004_888),
    "googlenet_2014": (1000, 3, 13_378_280),
    "inception_v3": (1000, 3, 27_161_264),
    "squeezenet1_0": (1000, 3, 1_248_424),
    "squeezenet1_1": (1000, 3, 1_235_496),
    "mobilenet_v2": (1000, 3, 3_504_872),
    "plain18": (1000, 3, 11_689_512 - 173_824),  # less three projections with their norms
    "plain34": (1000, 3, 21_797_672 - 173_824),
    "resnet8_cifar": (10, 3, 75_290),
    "resnet32_cifar": (10, 3, 464_154),
    "resnet44_cifar": (10, 3, 658_586),
    "resnet110_cifar": (10, 3, 1_727_962),
    "plain20_cifar": (10, 3, 269_722),
    "plain32_cifar": (10, 3, 464_154),
    "plain44_cifar": (10, 3, 658_586),
    "plain56_cifar": (10, 3, 853_018),
    "plain110_cifar": (10, 3, 1_727_962),
    "efficientnet_lite0": (1000, 3, 4_652_008),
    "efficientnet_lite1": (1000, 3, 5_416_680),
    "efficientnet_lite2": (1000, 3, 6_092_072),
    "resnet20_cifar": (10, 3, 269_722),
    "resnet56_cifar": (10, 3, 853_018),
}


def small(name: str) -> int:
    """A side that the network takes, and at which its norms see more than one value per channel."""
    return max(32, least_px(name))


def classifier(name: str, num_classes: int = 10, channels: int = 3) -> nn.Module:
    """A small edition: the dense layers of AlexNet and VGG, most of their parameters, are narrowed."""
    torch.manual_seed(0)
    arguments = arguments_of(name, small(name))
    if name.startswith(("alexnet", "vgg")):
        arguments["dense"] = 16
    return build(name, num_classes, channels, arguments, (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts_are_exact(name: str) -> None:
    num_classes, channels, size = SIZES[name]
    with torch.device("meta"):
        net = ARCHITECTURES[name](num_classes=num_classes, channels=channels)
    assert sum(p.numel() for p in net.parameters()) == size


def test_side_branches_cost_what_they_should() -> None:
    with torch.device("meta"):
        bare = [
            GoogLeNet(1000, 3, sides=False),
            GoogLeNet(1000, 3, sides=False, original=True),
            InceptionV3(1000, 3, sides=False),
        ]
    sizes = [sum(p.numel() for p in net.parameters()) for net in bare]
    assert sizes == [6_624_904, 6_998_552, 23_834_568]


def test_alexnet_without_groups_has_the_parameters_that_courses_count() -> None:
    with torch.device("meta"):
        net = AlexNet(1000, 3, original=True, groups=1)
        sides = [layer(torch.empty(1, 3, 227, 227)).shape for layer in (net.features[0], net.features)]
    assert sum(p.numel() for p in net.parameters()) == 62_378_344
    assert [tuple(shape) for shape in sides] == [(1, 96, 55, 55), (1, 256, 6, 6)]


# eps and momentum of every norm: torch's own, but for those whose sources have others
NORMS = {
    "googlenet": (1e-3, 0.1),
    "inception_v3": (1e-3, 0.1),
    "efficientnet": (1e-3, 0.01),
    "airnet": (1e-12, 0.4),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_are_those_of_the_source(name: str) -> None:
    with torch.device("meta"):
        net = ARCHITECTURES[name](num_classes=10, channels=3)
    found = {(each.eps, each.momentum) for each in net.modules() if isinstance(each, nn.BatchNorm2d)}
    wanted = next((norm for start, norm in NORMS.items() if name.startswith(start)), (1e-5, 0.1))
    assert found <= {wanted}
    without = ("lenet5", "overfeat", "alexnet", "nin", "squeezenet", "googlenet_2014")
    plain_vgg = name.startswith("vgg") and not name.endswith("_bn")
    assert bool(found) != (name.startswith(without) or plain_vgg)


@pytest.mark.parametrize(
    ("name", "px", "sides"),
    [
        # 112 pooled by 3 with a stride of 2 is 56 only if what is left over at the border counts
        ("googlenet", 224, {"conv1": 112, "conv3": 56, "inception3a.branch1": 28, "inception4a.branch1": 14,
                            "inception5a.branch1": 7}),
        ("squeezenet1_0", 224, {"features.0": 109, "features.3.squeeze": 54, "features.7.squeeze": 27,
                                "features.12.squeeze": 13}),
        ("squeezenet1_1", 224, {"features.0": 111, "features.3.squeeze": 55, "features.6.squeeze": 27,
                                "features.9.squeeze": 13}),
        ("inception_v3", 299, {"Conv2d_1a_3x3": 149, "Conv2d_2b_3x3": 147, "Conv2d_4a_3x3": 71,
                               "Mixed_5b.branch1x1": 35, "Mixed_6b.branch1x1": 17, "Mixed_7b.branch1x1": 8}),
    ],
)  # fmt: skip
def test_maps_have_torchvisions_sides(name: str, px: int, sides: dict[str, int]) -> None:
    found: dict[str, int] = {}
    with torch.device("meta"):
        net = ARCHITECTURES[name](num_classes=10, channels=3).eval()
        for each in sides:
            net.get_submodule(each).register_forward_hook(
                lambda _module, _inputs, output, each=each: found.update({each: output.shape[-1]})
            )
        net(torch.empty(1, 3, px, px))
    assert found == sides


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        state = ARCHITECTURES[name](num_classes=1000, channels=3).state_dict()
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert len(lines) == TORCHVISION[name]["num_tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == TORCHVISION[name]["sha256"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_trainable_parameter_gets_a_finite_gradient(name: str) -> None:
    for channels in (1, 3) if name in ("lenet5", "resnet20_cifar", "airnet_narrow") else (3,):
        model = classifier(name, 7, channels).train()
        side = small(name)
        output = model(torch.randint(0, 256, (4, channels, side, side), dtype=torch.uint8))
        all_logits = [output.logits, *output.sides] if isinstance(output, WithSides) else [output]
        assert all(logits.shape == (4, 7) for logits in all_logits)
        sum(F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])) for logits in all_logits).backward()
        for label, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_picture_scores_the_same_beside_any_others(name: str) -> None:
    model, side = classifier(name).eval(), small(name)
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if least_px(name) > 1])
def test_the_least_side_is_the_least(name: str) -> None:
    def output(px: int) -> torch.Tensor:
        net = ARCHITECTURES[name](num_classes=2, channels=3, **arguments_of(name, px)).eval()
        return net(torch.empty(2, 3, px, px))

    with torch.device("meta"):
        px = least_px(name)
        assert output(px).shape == (2, 2)
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            output(px - 1)


@pytest.mark.parametrize("name", WITH_SIDES)
def test_side_branches_answer_in_training_alone(name: str) -> None:
    model, side = classifier(name), small(name)
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    trained = model.train()(images)
    assert isinstance(trained, WithSides)
    assert trained.weights == ((0.4,) if name == "inception_v3" else (0.3, 0.3))
    assert len(trained.sides) == len(trained.weights)
    called: list[bool] = []
    for label, module in model.net.named_children():  # type: ignore[union-attr, operator]
        if label.startswith(("aux", "Aux")):
            module.register_forward_hook(lambda *_: called.append(True))
    with torch.inference_mode():
        assert isinstance(model.eval()(images), torch.Tensor)
    assert not called


def test_normalisation_travels_with_the_weights() -> None:
    model = build("lenet5", 10, 1, {"input_px": 32}, (0.25,), (0.5,))
    assert {"mean", "std"} <= set(model.state_dict())
    images = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    assert torch.allclose(model.normalise(images), torch.tensor(1.5))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_channel_is_normalised_by_its_own_statistics(
    memory_format: torch.memory_format, channels: int
) -> None:
    mean, std = (0.25, 0.5, 0.4)[:channels], (0.5, 0.2, 0.3)[:channels]
    model = build("lenet5", 10, channels, {"input_px": 32}, mean, std)
    images = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8)
    seen = model.normalise(images.to(memory_format=memory_format))
    assert seen.shape == images.shape
    assert seen.is_contiguous(memory_format=torch.channels_last)
    for c in range(channels):
        assert torch.allclose(seen[:, c], (images[:, c] / 255 - mean[c]) / std[c], atol=1e-6)


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lenet-5.*known: lenet5, lenet5_course, overfeat_course, airnet94"):
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
