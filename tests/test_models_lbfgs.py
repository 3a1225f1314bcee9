"""L-BFGS within bounds: its direction is that of dense BFGS, and it finds what scipy's L-BFGS-B finds."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from models.lbfgs import CORNER_WAVES, FIRST_STEP, GREY, SHRINK, BoundedLBFGS, direction, natural

N = 12


def quadratic(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A positive definite matrix, and a minimum without bounds, some of whose values are beyond 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(N, N, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(N, dtype=torch.float64), torch.randn(
        N, generator=generator, dtype=torch.float64
    )


def cost_of(x: Tensor, matrix: Tensor, target: Tensor) -> Tensor:
    return (x - target) @ matrix @ (x - target) / 2


def run(picture: Tensor, num: int, matrix: Tensor, target: Tensor, history: int = 20) -> BoundedLBFGS:
    optimizer = BoundedLBFGS(picture, 1.0, history, torch.clone)

    def evaluate() -> float:
        optimizer.zero_grad()
        cost = cost_of(picture, matrix, target)
        cost.backward()
        return float(cost.detach())

    for _ in range(num):
        optimizer.step(evaluate)
        assert picture.min() >= 0 and picture.max() <= 1
    return optimizer


def test_the_direction_is_that_of_bfgs_with_the_whole_matrix() -> None:
    matrix, _ = quadratic()
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(4)]
    changes = [matrix @ step for step in steps]
    one, [metric, _] = torch.eye(N, dtype=torch.float64), quadratic(2)
    inverse = metric * (steps[-1] @ changes[-1] / (changes[-1] @ metric @ changes[-1]))
    for step, change in zip(steps, changes, strict=True):
        rho = 1 / (step @ change)
        left = one - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
    gradient = torch.randn(N, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(direction(gradient, steps, changes, lambda x: metric @ x), -inverse @ gradient)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_minimum_within_bounds_that_scipy_finds(seed: int) -> None:
    matrix, target = quadratic(seed)
    picture = torch.full((N,), 0.5, dtype=torch.float64, requires_grad=True)
    run(picture, 200, matrix, target)

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        apart = x - target.numpy()
        return float(apart @ matrix.numpy() @ apart / 2), matrix.numpy() @ apart

    found = minimize(evaluate, np.full(N, 0.5), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * N, tol=1e-12)
    assert (found.x == 0).any() or (found.x == 1).any()  # the bounds matter
    assert float(cost_of(picture.detach(), matrix, target)) == pytest.approx(found.fun, rel=1e-3)


def test_the_first_step_changes_values_by_a_grey_level() -> None:
    matrix, target = quadratic()
    picture = torch.full((N,), 0.5, dtype=torch.float64, requires_grad=True)
    run(picture, 1, matrix, target)
    assert float((picture.detach() - 0.5).square().mean().sqrt()) == pytest.approx(FIRST_STEP)


def test_the_history_has_steps_as_they_were_cut_and_is_as_long_as_asked() -> None:
    matrix, target = quadratic()
    picture = torch.full((N,), 0.5, dtype=torch.float64, requires_grad=True)
    state = run(picture, 30, matrix, target, history=5).state[picture]
    assert len(state["steps"]) == len(state["changes"]) == 5
    for step, change in zip(state["steps"], state["changes"], strict=True):
        torch.testing.assert_close(change, matrix @ step)


def test_a_step_that_makes_it_much_worse_is_taken_back() -> None:
    picture = torch.tensor([0.5, 0.5], requires_grad=True)
    optimizer = BoundedLBFGS(picture, 1.0, 5, torch.clone)
    costs, seen = iter([1.0, 2.0, 1.4]), list[Tensor]()

    def evaluate() -> float:
        picture.grad = torch.tensor([1.0, 0.0])
        seen.append(picture.detach().clone())
        return next(costs)

    for _ in range(3):
        optimizer.step(evaluate)
    torch.testing.assert_close(seen[2] - seen[0], SHRINK * (seen[1] - seen[0]))
    torch.testing.assert_close(optimizer.state[picture]["position"], seen[2])


@pytest.mark.parametrize("size", [(1, 3, 8, 12), (1, 1, 9, 7)])
def test_the_metric_of_pictures_is_symmetric_positive_and_weights_waves(size: tuple[int, ...]) -> None:
    metric, num = natural(size), int(np.prod(size))
    matrix = torch.stack([metric(row) for row in torch.eye(num, dtype=torch.float64)])
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    H, W = size[-2:]
    rows, columns = torch.arange(H).double()[:, None], torch.arange(W).double()[None]
    wave = torch.cos(2 * torch.pi * (2 * columns / W + rows / H)).expand(size).flatten()
    frequency = float(np.hypot(2, W / H))  # waves in as many pixels as the picture is wide
    torch.testing.assert_close(
        metric(wave), GREY * wave / (1 + frequency / CORNER_WAVES), rtol=1e-6, atol=1e-6
    )
