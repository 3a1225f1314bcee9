"""Style transfer's seconds an iteration, beside the form of PyTorch's tutorial, with the same network and cores.

    PYTHONPATH=. .venv/bin/python benchmarks/style.py [--sides 256 512] [--evaluations 300 100] [--weights FILE]

The tutorial's form (https://docs.pytorch.org/tutorials/advanced/neural_style_tutorial.html): float32, a Sequential with
modules of content and style loss between the layers, which is cut behind the last loss, max pooling, L-BFGS whose
closure clamps the picture. Its conv_1 to conv_5 for the style, conv_4 (conv2_2) for the content, style weight 10⁶; for
weights of Caffe, whose features are 57 times as large and enter the style to the fourth power and the content to the
second, 10⁶ / 57². Ours minimises the same function: its weights are those of the tutorial's normalisation. Both begin
with the content and take as many evaluations; both results are judged by the tutorial's own modules, in float32. The
two take turns, and the median of calls of 20 evaluations counts.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from models.style import Objective, Style, Weights
from models.taps import (
    CAFFE_MEAN,
    CAFFE_STD,
    FeatureNet,
    convolutions_alone,
    from_caffe,
    is_caffe,
    of_vgg,
    random_filters,
)
from models.vgg import VGG
from tasks.precision import resolve_precision
from tasks.settings import Precision
from tasks.styleconfig import StyleOptimConfig
from tasks.stylepictures import fit, read_picture
from tasks.stylize import iterate, make_optimizer
from tasks.weights import IMAGENET, read_state

CONTENT, STYLE = "skimage:chelsea", "skimage:ihc"
CONTENT_LAYER = "conv2_2"
# layers, and their channels
STYLE_LAYERS = {"conv1_1": 64, "conv1_2": 64, "conv2_1": 128, "conv2_2": 128, "conv3_1": 256}
STYLE_WEIGHT, PER_CALL, ROW_EVERY = 1e6, 20, 100
CAFFE_SCALE = 255 * 0.225  # of its features, over those of networks that take pictures of deviation 1
HISTORY = 20  # as the recipes


class ContentLoss(nn.Module):
    """Passes its input on, and keeps its distance to the content's."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.loss = F.mse_loss(x, self.target)
        return x


def tutorial_gram(x: Tensor) -> Tensor:
    a, b, c, d = x.size()
    rows = x.view(a * b, c * d)
    return torch.mm(rows, rows.t()).div(a * b * c * d)


class StyleLoss(nn.Module):
    """Passes its input on, and keeps the distance of its Gram matrix to the style's."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = tutorial_gram(target).detach()

    def forward(self, x: Tensor) -> Tensor:
        self.loss = F.mse_loss(tutorial_gram(x), self.target)
        return x


class Normalization(nn.Module):
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Tutorial:
    """The tutorial's model and its loop."""

    def __init__(
        self,
        net: VGG,
        mean: Sequence[float],
        std: Sequence[float],
        content: Tensor,
        style: Tensor,
        weight: float,
    ) -> None:
        self.style_weight = weight
        self.content_losses: list[ContentLoss] = []
        self.style_losses: list[StyleLoss] = []
        self.model = nn.Sequential(Normalization(mean, std))
        for layer in of_vgg(net, (), "max", False):
            module = nn.ReLU(inplace=False) if layer.name.startswith("relu") else layer.run
            assert isinstance(module, nn.Module)
            self.model.add_module(layer.name, module)
            if layer.name == CONTENT_LAYER:
                self.content_losses.append(ContentLoss(self.model(content)))
                self.model.add_module("content_loss", self.content_losses[-1])
            if layer.name in STYLE_LAYERS:
                self.style_losses.append(StyleLoss(self.model(style)))
                self.model.add_module(f"style_loss_{layer.name}", self.style_losses[-1])
            if len(self.style_losses) == len(STYLE_LAYERS):
                break  # the tutorial cuts off what lies behind its last loss
        self.model.eval()
        self.model.requires_grad_(False)
        self.picture = content.clone().requires_grad_(True)
        self.optimizer = torch.optim.LBFGS([self.picture])

    def cost(self, picture: Tensor) -> Tensor:
        self.model(picture)
        style = sum((each.loss for each in self.style_losses), torch.zeros(()))
        content = sum((each.loss for each in self.content_losses), torch.zeros(()))
        return style * self.style_weight + content

    def call(self) -> None:
        """One call of its optimizer: as many evaluations as `PER_CALL`."""

        def closure() -> Tensor:
            with torch.no_grad():
                self.picture.clamp_(0, 1)
            self.optimizer.zero_grad()
            cost = self.cost(self.picture)
            cost.backward()
            return cost

        self.optimizer.step(closure)  # type: ignore[arg-type]


class Ours:
    """The loop of tasks.stylize, for the same function."""

    def __init__(self, net: FeatureNet, content: Tensor, style: Tensor, weight: float) -> None:
        layers = {name: 4 / width**2 for name, width in STYLE_LAYERS.items()}
        weights = Weights(4.0, weight, 0.0, CONTENT_LAYER, layers)
        self.objective = Objective(net, content, [Style(style)], weights, "course")
        self.picture = content.clone().requires_grad_(True)
        optim = StyleOptimConfig(name="lbfgs", lr=1.0, momentum=0.0, history=HISTORY)
        self.optimizer = make_optimizer(optim, self.picture)

    def call(self) -> None:
        """As many evaluations, one a step."""
        for _ in range(PER_CALL):
            iterate(self.picture, self.optimizer, self.objective)


def network(weights: Path | None) -> tuple[VGG, tuple[float, ...], tuple[float, ...]]:
    """VGG-16's convolutions with mean and deviation of their input: of a file, else orthogonal filters of chance."""
    net = convolutions_alone(VGG(1, 3, 16, dense=1))
    if weights is None:
        random_filters(net, 0)
        return net, *IMAGENET
    state = read_state(weights)
    if is_caffe(state):
        net.load_state_dict(from_caffe(state, net))
        return net, CAFFE_MEAN, CAFFE_STD
    net.load_state_dict({name: value for name, value in state.items() if name.startswith("features")})
    return net, *IMAGENET


def seconds(call: Callable[[], None]) -> float:
    """Of one evaluation."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) / PER_CALL


def compare(px: int, num_evaluations: int, weights: Path | None, precision: Precision) -> list[list[str]]:
    """Rows of the table, one every 100 evaluations: both take turns, call by call."""
    content, style = (fit(read_picture(photo), (px, px)) for photo in (CONTENT, STYLE))
    net, mean, std = network(weights)
    weight = STYLE_WEIGHT / (CAFFE_SCALE**2 if std == CAFFE_STD else 1)
    theirs = Tutorial(copy.deepcopy(net), mean, std, content, style, weight)
    dtype = resolve_precision(precision, torch.device("cpu"))
    features = FeatureNet(net, [*STYLE_LAYERS, CONTENT_LAYER], mean, std, dtype=dtype)
    ours = Ours(features, content, style, weight)
    taken: tuple[list[float], list[float]] = ([], [])
    rows = []
    for done in range(PER_CALL, num_evaluations + 1, PER_CALL):
        for way, mine in zip((theirs, ours), taken, strict=True):
            mine.append(seconds(way.call))
        if done % ROW_EVERY == 0 or done + PER_CALL > num_evaluations:
            with torch.no_grad():
                costs = [float(theirs.cost(way.picture.clamp(0, 1))) for way in (theirs, ours)]
            first, second = (statistics.median(mine) for mine in taken)
            rows.append([
                f"{px}", f"{done}", f"{first:.3f}", f"{second:.3f}", f"{second / first:.2f}", f"{costs[0]:.5g}",
                f"{costs[1]:.5g}", f"{costs[1] / costs[0] - 1:+.1%}",
            ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[300, 100], help="of each side")
    parser.add_argument("--weights", type=Path, help="of VGG-16; otherwise filters of chance")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of ours")
    options = parser.parse_args()
    columns = (
        "px",
        "evaluations",
        "tutorial, s",
        "ours, s",
        "ratio",
        "tutorial's cost",
        "ours",
        "difference",
    )
    table = Table(*columns)
    for px, num in zip(options.sides, options.evaluations, strict=True):
        for row in compare(px, num, options.weights, options.precision):
            table.add_row(*row)
    Console().print(f"seconds an evaluation, {torch.get_num_threads()} threads, ours in {options.precision}")
    Console().print(table)


if __name__ == "__main__":
    main()
