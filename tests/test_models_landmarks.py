"""Networks for landmarks: losses by hand, the mean shape, what is not given counts in no loss."""

import math

import pytest
import torch

from models.landmarks import LandmarkModel, Landmarks, build, landmark_loss, wing

MODEL = {
    "name": "resnet8_cifar",
    "loss": "wing",
    "wing_px": 10,
    "wing_curvature_px": 2,
    "visibility_weight": 1,
}


def test_wing_loss_worked_by_hand() -> None:
    values = wing(torch.tensor([0.0, 2.0, -2.0, 10.0, 14.0]), 10, 2)
    constant = 10 - 10 * math.log(6)
    wanted = [0, 10 * math.log(2), 10 * math.log(2), 10 - constant, 14 - constant]
    torch.testing.assert_close(values, torch.tensor(wanted))


def test_an_untrained_head_of_zeros_finds_the_mean_shape() -> None:
    model = build("resnet8_cifar", 4, 3, {}, (0.5,) * 3, (0.2,) * 3)
    points = torch.rand(5, 4, 2)
    given = torch.ones(5, 4, dtype=torch.bool)
    given[2:, 1], given[:, 3] = False, False
    model.fit_mean_shape(points, given)
    torch.testing.assert_close(model.mean_shape[0], points[:, 0].mean(0))
    torch.testing.assert_close(model.mean_shape[1], points[:2, 1].mean(0))
    assert model.mean_shape[3].tolist() == [0.5, 0.5]
    torch.nn.init.zeros_(model.net.fc.weight)
    torch.nn.init.zeros_(model.net.fc.bias)
    found = model.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    torch.testing.assert_close(found.points, model.mean_shape.expand(2, 4, 2))
    assert found.visibility.shape == (2, 4)


@pytest.mark.parametrize("name", ["wing", "smooth_l1", "mse"])
def test_points_that_are_not_given_count_in_no_loss(name: str) -> None:
    config = LandmarkModel.parse({**MODEL, "loss": name}, "model")
    given = torch.tensor([[True, False, True]])
    found = Landmarks(torch.rand(1, 3, 2).requires_grad_(), torch.randn(1, 3).requires_grad_())
    terms = []
    for wild in (0.0, 1e6):
        points = torch.full((1, 3, 2), 7.0)
        points[0, 1] = wild
        terms.append(
            landmark_loss(found, points, given & torch.tensor([[True, False, False]]), given, 32, config)
        )
    assert terms[0] == terms[1]
    sum(terms[0].values()).backward()
    assert not found.points.grad[0, 1].any() and not found.visibility.grad[0, 1].any()
    assert found.points.grad[0, 0].all()


def test_networks_with_side_branches_are_refused() -> None:
    with pytest.raises(ValueError, match="without side branches"):
        LandmarkModel.parse({**MODEL, "name": "googlenet"}, "model")
