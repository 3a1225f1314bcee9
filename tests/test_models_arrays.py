"""The networks for signals and volumes: exact sizes, gradients everywhere, any length, no influence of neighbours."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import signals, volumes
from models.signals import M5, SeriesResNet, require_fit
from models.volumes import VolumeResNet, VoxNet

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    **{name: (build, (2048,)) for name, build in signals.ARCHITECTURES.items()},
    **{name: (build, (32, 32, 32)) for name, build in volumes.ARCHITECTURES.items()},
}
networks = pytest.mark.parametrize("name", NETWORKS)


def network(name: str, channels: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return build(num_classes=7, channels=channels), torch.randn(4, channels, *shape)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_those_that_the_authors_give() -> None:
    assert size(M5(35, 1)) == 26_915  # torchaudio's tutorial
    assert size(VoxNet(40, 1)) == 921_736  # the paper, section III-C
    series = SeriesResNet(2, 1)
    running = sum(buffer.numel() for name, buffer in series.named_buffers() if "running" in name)
    assert size(series) + running == 506_818  # Keras counts running statistics too


def test_parameter_counts_by_hand() -> None:
    convolutions = 27 * (1 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
    assert size(VolumeResNet(10, 1)) == convolutions + norms + 64 * 10 + 10
    assert size(M5(10, 1, width=128)) == 80 * 128 + 3 * 128 * 128 + 3 * 128 * 256 + 3 * 256 * 256 + (
        3 * (128 + 128 + 256 + 256) + 256 * 10 + 10
    )


@networks
@pytest.mark.parametrize("channels", [1, 6])
def test_every_parameter_gets_a_finite_gradient(name: str, channels: int) -> None:
    net, batch = network(name, channels)
    logits = net.train()(batch)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label


@networks
def test_an_item_scores_the_same_beside_any_others(name: str) -> None:
    net, batch = network(name, 1)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(batch)[2:3], net(batch[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "lengths"), [("resnet_ts", (1, 7, 100)), ("m5", (2000, 5001)), ("m5_wide", (3000,))]
)
def test_signals_of_any_length_fit(name: str, lengths: tuple[int, ...]) -> None:
    for length in lengths:
        require_fit(name, length)
        assert signals.ARCHITECTURES[name](3, 2).eval()(torch.randn(2, 2, length)).shape == (2, 3)


@pytest.mark.parametrize("name", signals.ARCHITECTURES)
def test_the_least_length_is_the_least_that_the_network_takes(name: str) -> None:
    net, least = signals.ARCHITECTURES[name](3, 2).eval(), signals.least_length(name)
    assert net(torch.randn(1, 2, least)).shape == (1, 3)
    require_fit(name, least)
    with pytest.raises(
        ValueError, match=rf"input.length \(={least - 1}\) is too short for {name}: .* {least}"
    ):
        require_fit(name, least - 1)
    if least > 1:
        with pytest.raises(RuntimeError, match="output size"):
            net(torch.randn(1, 2, least - 1))


def test_cubes_of_any_side_fit_the_residual_network_and_voxnet_refuses_small_ones() -> None:
    assert VolumeResNet(3, 1).eval()(torch.randn(1, 1, 5, 9, 20)).shape == (1, 3)
    assert VoxNet(3, 1, input_voxels=11).eval()(torch.randn(1, 1, 11, 11, 11)).shape == (1, 3)
    with pytest.raises(ValueError, match="voxnet needs crop_voxels of at least 11, got 10"):
        VoxNet(3, 1, input_voxels=10)


def test_normalisation_travels_with_the_weights() -> None:
    model = signals.build("resnet_ts", 3, 2, {}, (5.0, -3.0), (2.0, 0.5))
    model.net = nn.Identity()
    values = torch.tensor([[[7.0, 3.0], [-3.0, -2.0]]])
    assert model(values).tolist() == [[[1, -1], [0, 2]]]
    assert {"mean", "std"} <= set(model.state_dict())


@pytest.mark.parametrize(("build", "known"), [(signals.build, "resnet_ts"), (volumes.build, "voxnet")])
def test_unknown_architecture_lists_the_known_ones(build: Any, known: str) -> None:
    with pytest.raises(ValueError, match=f"'lenet' is not in the catalogue; known: {known}"):
        build("lenet", 3, 1, {}, (0.0,), (1.0,))


def test_even_filters_keep_the_length() -> None:
    layer = signals.Same(1, 1, 8, activate=False).eval()
    assert layer(torch.randn(1, 1, 13)).shape == (1, 1, 13)
