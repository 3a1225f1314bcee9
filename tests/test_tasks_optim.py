"""Optimizers, schedules, averaging: hand-worked values and independent references."""

import itertools

import pytest
import torch
from torch import nn

from tasks.optim import (
    Muon,
    OptimConfig,
    build_optimizers,
    orthogonalise,
    schedule_factor,
    set_rates,
    split_parameters,
    update_average,
)


def config(**changes: object) -> OptimConfig:
    values = {
        "name": "sgd", "lr": 0.1, "momentum": 0.9, "head_lr": 0.05, "bias_lr": 0.2, "weight_decay": 0.01,
        "schedule": "linear", "warmup_share": 0.0, "final_share": 0.0, "label_smoothing": 0.0,
        "averaging_decay": 0.0, "clip_norm": 0.0,
        "first_share": 0.0, "class_weights": "none", "lookahead": False,
    }  # fmt: skip
    return OptimConfig.parse({**values, **changes}, "optim")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_linear_schedule_by_hand() -> None:
    factors = [schedule_factor(config(final_share=0.2), step, 4) for step in range(4)]
    assert factors == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_linear_schedule_warms_up_and_then_falls() -> None:
    factors = [schedule_factor(config(warmup_share=0.2), step, 10) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(a > b for a, b in itertools.pairwise(factors[2:])) and factors[-1] > 0


def test_cosine_schedule_by_hand() -> None:
    factors = [schedule_factor(config(schedule="cosine"), step, 4) for step in range(4)]
    assert factors == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (20, 20)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        # three steps leave the smallest values of a square matrix behind; the rest is inside the iteration's band
        assert values.max() < 1.3 and values.median() > 0.6


def test_muon_moves_each_bank_along_the_orthogonalised_momentum() -> None:
    torch.manual_seed(0)
    bank = nn.Parameter(torch.randn(4, 2, 3, 3))
    before, grad = bank.detach().clone(), torch.randn(4, 2, 3, 3)
    bank.grad = grad.clone()
    Muon([bank], lr=0.5, momentum=0.9).step()
    expected = before * 4**0.5 / before.norm() - 0.5 * orthogonalise((grad * 1.9).flatten(1)).view_as(grad)
    torch.testing.assert_close(bank.detach(), expected)


def test_parameters_are_split_by_kind_and_frozen_ones_left_out() -> None:
    model = network()
    model[0].weight.requires_grad = False
    kinds = split_parameters(model)
    assert set(kinds) == {"dense", "rest"}
    assert [tuple(p.shape) for p in kinds["dense"]] == [(4, 288)] and len(kinds["rest"]) == 4


def test_biases_and_norms_have_their_own_rate_and_no_decay() -> None:
    [sgd] = build_optimizers(network(), config())
    by_rate = {group["lr"]: group["weight_decay"] for group in sgd.param_groups}
    assert by_rate == {0.1: 0.01, 0.2: 0.0}


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_optimizer_lowers_a_quadratic(name: str) -> None:
    model = network()
    optimizers = build_optimizers(model, config(name=name, lr=0.02, head_lr=0.01, bias_lr=0.01))
    images, target = torch.randn(16, 3, 8, 8), torch.randn(16, 4)
    losses = []
    for step in range(30):
        set_rates(optimizers, schedule_factor(config(), step, 30))
        loss = (model(images) - target).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_average_follows_weights_and_copies_counters() -> None:
    model = network()
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    model[1].num_batches_tracked += 5
    update_average(average, model, decay=0.75)
    assert torch.allclose(average["3.weight"], 0.25 * model[3].weight)
    assert average["1.num_batches_tracked"] == 5


def test_unknown_optimizer_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"optim.name \(='adam'\).*'sgd', 'adamw' or 'muon'"):
        config(name="adam")


def test_misspelt_parameter_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"optim.learning_rate is not a parameter; known here: .*bias_lr.*lr"
    ):
        config(learning_rate=1)
