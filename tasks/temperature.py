"""Probabilities that are as often right as they say: all logits are divided by one temperature.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 4.2. Of crops and
networks whose softmax outputs are averaged, the logits are the logarithms of the averages; of one network and one crop
that is the same as dividing its own. tasks.calibrate finds the temperature.
"""

import torch
from torch import Tensor

# beyond them the validation split does not tell how confident a model may be
LEAST_T, GREATEST_T = 0.02, 50.0


def divided(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T) of each row (B, K), in the type that it comes in; rounding may make neighbours equal."""
    tiny = torch.finfo(torch.float32).tiny  # softmax in float32 may reach 0
    return (probabilities.clamp_min(tiny).log() / temperature).softmax(1)


def with_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """`divided`, of rows (B, K) float32, each of which keeps its most probable class."""
    if temperature == 1:
        return probabilities
    scaled = divided(probabilities.double(), temperature).float()
    best = probabilities.argmax(1, keepdim=True)
    # nearly equal probabilities may round to equal ones, of which the first would be taken
    above = torch.nextafter(scaled.amax(1, keepdim=True), torch.ones(1))
    lost = scaled.argmax(1, keepdim=True) != best
    return scaled.scatter(1, best, torch.where(lost, above, scaled.gather(1, best)))
