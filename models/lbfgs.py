"""L-BFGS for pictures: within bounds, from smooth to fine, one evaluation a step.

Nocedal 1980 (https://doi.org/10.1090/S0025-5718-1980-0572855-7): the direction comes from the last steps and the
changes of the gradient over them. Values that stand at a bound and would leave it are held (Bertsekas 1982,
https://doi.org/10.1137/0320018). A step goes all the way, is cut to the bounds, and the history takes it as it was cut.

torch.optim.LBFGS knows no bounds. Where the picture is clamped behind its back, as in PyTorch's tutorial, its history
holds steps that were not taken: J leaps now and then by factors of ten and more. Two more deviations from it: pairs of
a step and a change whose angle says that rounding made them are left out, and a step after which J is half again as
high is taken back, and a third of it tried. There is no other line search.

Where all pixels count alone, noise is as near as a broad stroke. `natural` weights frequencies as photographs have them
(Field 1987, https://doi.org/10.1364/JOSAA.4.002379), as Olah, Mordvintsev and Schubert 2017 do for pictures of units
(https://distill.pub/2017/feature-visualization/#preconditioning). It is where the inverse Hessian starts from: the cost
is the same, falls faster, and leaves less noise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FIRST_STEP = 1 / 255  # root mean square of the first step's changes: a grey level
LEAST_COSINE = 1e-4  # between a step and the change of the gradient over it
MOST_RISE = 1.5  # of J over a step that stands
SHRINK = 0.3  # of a step that is taken back
CORNER_WAVES = 4.0  # a picture's width, from which on weights fall as 1 / f
GREY = 3.0  # weight of what is common to all colours


Metric = Callable[[Tensor], Tensor]  # a symmetric positive map of (N,) to (N,)


def natural(size: Sequence[int]) -> Metric:
    """Weights frequencies of pictures (…, C, H, W) by 1 / (1 + f / 4), f in waves a width; grey counts three times."""
    H, W = size[-2:]
    down, across = torch.fft.fftfreq(H, 1 / W)[:, None], torch.fft.rfftfreq(W, 1 / W)[None]
    weights = 1 / (1 + torch.hypot(down, across) / CORNER_WAVES)

    def apply(values: Tensor) -> Tensor:
        waves = torch.fft.rfft2(values.view(*size)) * weights.to(values)
        smooth = torch.fft.irfft2(waves, s=(H, W))
        return (smooth + (GREY - 1) * smooth.mean(-3, keepdim=True)).flatten()

    return apply


def direction(gradient: Tensor, steps: Sequence[Tensor], changes: Sequence[Tensor], metric: Metric) -> Tensor:
    """The quasi-Newton step −H g (N,) by two loops over the history, oldest first; H before: the scaled metric."""
    found, weights = -gradient, list[Tensor]()
    products = [step.dot(change) for step, change in zip(steps, changes, strict=True)]
    for step, change, product in reversed(list(zip(steps, changes, products, strict=True))):
        weights.append(step.dot(found) / product)
        found = found - weights[-1] * change
    found = metric(found) * (products[-1] / changes[-1].dot(metric(changes[-1])))
    for step, change, product, weight in zip(steps, changes, products, reversed(weights), strict=True):
        found = found + (weight - change.dot(found) / product) * step
    return found


class BoundedLBFGS(torch.optim.Optimizer):
    """Of one tensor with values from 0 to 1, and costs of 0 or more. Its state has all that it goes on with.

    `lr` is the share of a quasi-Newton step that is taken, `history` how many steps are remembered.
    """

    def __init__(self, picture: Tensor, lr: float, history: int, metric: Metric) -> None:
        super().__init__([picture], {"lr": lr, "history": history})
        self.metric = metric

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        """Evaluate the cost and its gradient where the picture is, and move it; the cost."""
        with torch.enable_grad():
            cost = float(closure())
        [group] = self.param_groups
        [picture] = group["params"]
        state = self.state[picture]
        here, gradient = picture.detach().flatten().clone(), picture.grad.flatten().clone()
        if state and not cost <= MOST_RISE * state["cost"]:
            shorter = state["position"] + SHRINK * (here - state["position"])
            picture.copy_(shorter.view_as(picture))
            return cost
        if state:
            remember(state, here - state["position"], gradient - state["gradient"], group["history"])
        else:
            state.update(steps=[], changes=[])
        held = ((here <= 0) & (gradient > 0)) | ((here >= 1) & (gradient < 0))
        state.update(position=here, gradient=gradient, cost=cost)
        gradient = gradient.masked_fill(held, 0.0)
        if state["steps"]:
            move = direction(gradient, state["steps"], state["changes"], self.metric)
        else:
            move = -self.metric(gradient)
            move *= FIRST_STEP / move.square().mean().sqrt().clamp(min=1e-30)
        picture.copy_((here + group["lr"] * move.masked_fill(held, 0.0)).clamp(0, 1).view_as(picture))
        return cost


def remember(state: dict[str, Any], step: Tensor, change: Tensor, most: int) -> None:
    """Take a pair into the history, unless its curvature is none that can be told from rounding."""
    if step.dot(change) > LEAST_COSINE * step.norm() * change.norm():
        state["steps"] = [*state["steps"], step][-most:]
        state["changes"] = [*state["changes"], change][-most:]
