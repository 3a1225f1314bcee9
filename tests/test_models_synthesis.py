"""Gradient ascent: seeded, climbing, each picture by itself; and its regularisers do what they are called."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from models.synthesis import SynthesisConfig, _Redirecting, ascend, blurred, of_units

PLAIN: dict[str, Any] = {
    "steps": 12, "lr": 0.05, "side_px": 24, "parametrisation": "frequency", "objective": "channel", "jitter": 0.08,
    "scale": 0.1, "rotate_deg": 10, "blur_px": 0, "blur_every": 4, "total_variation": 0, "weight_decay": 0, "seed": 0,
}  # fmt: skip
STILL = {"jitter": 0, "scale": 0, "rotate_deg": 0}


def config(**changes: Any) -> SynthesisConfig:
    return SynthesisConfig.parse({**PLAIN, **changes}, "synthesis")


def edges(pictures: Tensor) -> Tensor:
    """A unit of upright edges: the mean of rectified differences."""
    return (pictures[..., 1:] - pictures[..., :-1]).mean(1).relu().mean(dim=(1, 2))


def make(objective: Any = edges, num: int = 1, channels: int = 3, **changes: Any) -> Tensor:
    return ascend(objective, num, channels, 24, config(**changes))


@pytest.mark.parametrize("parametrisation", ["frequency", "pixels"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_unit_answers_more_to_the_picture_than_to_its_beginning(
    parametrisation: str, channels: int
) -> None:
    begun = make(channels=channels, parametrisation=parametrisation, steps=1, lr=1e-9)
    made = make(channels=channels, parametrisation=parametrisation)
    assert made.shape == (1, channels, 24, 24) and made.min() >= 0 and made.max() <= 1
    assert edges(made) > 2 * edges(begun)


def test_the_seed_decides_all() -> None:
    assert torch.equal(make(), make())
    assert not torch.allclose(make(), make(seed=1))


def test_a_picture_does_not_depend_on_its_company() -> None:
    def two(pictures: Tensor) -> Tensor:
        return torch.stack([edges(pictures[:1])[0], pictures[1, 0].mean()])

    torch.testing.assert_close(make(two, num=2)[:1], make(num=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "weight"), [("total_variation", 50.0), ("weight_decay", 50.0)])
def test_a_penalty_lowers_what_it_weighs(name: str, weight: float) -> None:
    free, held = make(**STILL), make(**STILL, **{name: weight})
    roughness = [
        float(each.diff(dim=2).square().mean() + each.diff(dim=3).square().mean()) for each in (free, held)
    ]
    distance = [float((each - 0.5).square().mean()) for each in (free, held)]
    measured = roughness if name == "total_variation" else distance
    assert measured[1] < 0.7 * measured[0]


def test_blurring_leaves_fewer_high_frequencies() -> None:
    rough = [
        float(make(parametrisation="pixels", blur_px=blur, blur_every=2).diff(dim=3).square().mean())
        for blur in (0, 1.0)
    ]
    assert rough[1] < rough[0]


def test_the_blur_is_gaussian() -> None:
    x = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    wanted = gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5), mode="mirror", radius=(0, 0, 5, 5))
    np.testing.assert_allclose(blurred(x, 1.5).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6])
def test_a_unit_that_is_off_at_first_is_climbed_all_the_same(relu: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3, bias=True), relu(inplace=True), nn.MaxPool2d(2))
    nn.init.constant_(net[0].weight, 1.0)  # type: ignore[arg-type]
    nn.init.constant_(net[0].bias, -0.75 * 27)  # type: ignore[arg-type]
    assert net(torch.full((1, 3, 24, 24), 0.5)).max() == 0

    def answer(pictures: Tensor) -> Tensor:
        return net(pictures).mean(dim=(1, 2, 3))

    assert answer(make(answer, steps=60, **STILL)) > 1


def test_redirected_gradients_are_the_usual_ones_where_there_are_any() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).mul(4).requires_grad_()
    weights = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for relu in (F.relu, F.relu6, torch.relu, nn.ReLU6()):
        [usual] = torch.autograd.grad((relu(x) * weights).sum(), [x])
        with _Redirecting():
            y = relu(x)
        [found] = torch.autograd.grad((y * weights).sum(), [x])
        assert torch.equal(y, relu(x)) and torch.equal(found, usual)


def test_a_unit_is_a_channel_a_place_or_a_logit() -> None:
    maps = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    assert of_units(maps, [2, 0], "channel").tolist() == [maps[0, 2].mean(), maps[1, 0].mean()]
    assert of_units(maps, [2, 0], "centre").tolist() == [maps[0, 2, 2, 2], maps[1, 0, 2, 2]]
    assert of_units(maps[:, :, 0, 0], [1, 2], "channel").tolist() == [maps[0, 1, 0, 0], maps[1, 2, 0, 0]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blur_px \(=1\) is of parametrisation=pixels"):
        config(blur_px=1)
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        make(lambda pictures: pictures.mean(dim=(1, 2, 3)) * torch.nan)
