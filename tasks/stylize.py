"""Neural style transfer by optimisation: a picture is changed until its features are those asked for (models.style).

    ./convoy stylize content.jpg style.jpg --out picture.png

Coarse to fine: each scale begins with the picture of the one before, enlarged, and of Adam's and gradient descent's
moments too (L-BFGS begins anew, since its steps are of another space). An iteration is one evaluation of J and its
gradient, and a step, after which the picture is cut to 0 to 1, as in PyTorch's tutorial: beyond lies a lower J that no
file of a picture can hold. A run's folder has `state.pt`, from which a run that was stopped goes on to the same bits,
`pictures/`, and `costs.csv`, a line an iteration.
"""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data.files import whole, write_whole
from data.palette import luminance
from models.lbfgs import BoundedLBFGS, natural
from models.style import Objective
from tasks.featurenet import StyleNet
from tasks.stopping import Interrupted
from tasks.styleconfig import StyleOptimConfig, StylizeConfig
from tasks.stylepictures import Pictures, Scale, at_scale, finished, to_image, write_picture

Cost = Callable[[Tensor], dict[str, Tensor]]  # a picture → what models.style.Objective gives
STATE_FILE, COSTS_FILE, PICTURES = "state.pt", "costs.csv", "pictures"
RESULT = "result.png"


@dataclass(frozen=True)
class Step:
    """One iteration: the costs of the picture before it."""

    iteration: int  # from 0, over all scales
    longer_px: int
    content: float
    style: float
    variation: float
    total: float
    time_s: float  # of this iteration


@dataclass
class State:
    """Where a run is: all that it needs to go on."""

    scale: int = 0
    iteration: int = 0  # done in this scale
    picture: Tensor | None = None
    optimizer: dict[str, Any] | None = None
    carried: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Stylized:
    """The picture (1, 3, H, W) of 0 to 1, and how it came about."""

    picture: Tensor
    steps: list[Step]
    final: dict[str, float]  # the costs of the optimised picture, at the last scale


def make_optimizer(config: StyleOptimConfig, picture: Tensor) -> torch.optim.Optimizer:
    """The optimizer of one picture; each of its steps takes one evaluation."""
    if config.name == "lbfgs":
        return BoundedLBFGS(picture, config.lr, config.history, natural(picture.shape))
    if config.name == "adam":
        return torch.optim.Adam([picture], lr=config.lr)
    return torch.optim.SGD([picture], lr=config.lr, momentum=config.momentum)


def first_picture(content: Tensor, noise: float, seed: int) -> Tensor:
    """A mix of the content and of uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    return (1 - noise) * content + noise * torch.rand(content.shape, generator=generator)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What Adam and gradient descent remember of each pixel, and Adam's count of steps."""
    states: list[dict[str, Any]] = list(optimizer.state.values())
    state = states[0] if states else {}
    names = ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
    return {name: state[name] for name in names if state.get(name) is not None}


def carry_up(moments: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Moments at the next scale: J is a mean, so a pixel's gradient falls as there are more of them."""
    carried = {}
    for name, value in moments.items():
        if value.dim() == 4:
            share = value.shape[2] * value.shape[3] / (size[0] * size[1])
            value = F.interpolate(value, size=size, mode="bilinear", align_corners=False)
            value = value * (share**2 if name == "exp_avg_sq" else share)
        carried[name] = value
    return carried


def load_state(folder: Path) -> State:
    """Where the run of a folder was; the beginning where nothing was kept."""
    file = folder / STATE_FILE
    if not file.is_file():
        return State()
    values = torch.load(file, weights_only=True)
    return State(**{**values, "steps": [Step(**step) for step in values["steps"]]})


def save_state(folder: Path, state: State) -> None:
    """Keep where the run is, whole or not at all, and the costs beside it."""
    buffer = io.BytesIO()
    values = {**vars(state), "steps": [asdict(step) for step in state.steps]}
    torch.save(values, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / STATE_FILE) as stream:
        stream.write(buffer.getvalue())
    table = io.StringIO()
    writer = csv.DictWriter(table, list(Step.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(step) for step in state.steps)
    write_whole(folder / COSTS_FILE, table.getvalue())


def iterate(picture: Tensor, optimizer: torch.optim.Optimizer, objective: Cost) -> dict[str, float]:
    """One evaluation of J and one change of the picture, which stays within 0 to 1: the costs before the change."""
    costs: dict[str, float] = {}

    def evaluate() -> float:
        optimizer.zero_grad()
        found = objective(picture)
        found["total"].backward()
        costs.update({name: float(cost.detach()) for name, cost in found.items()})
        return costs["total"]

    optimizer.step(evaluate)
    with torch.no_grad():
        picture.clamp_(0, 1)
    return costs


class Run:
    """One run of a folder: takes iterations, keeps states and pictures."""

    def __init__(
        self,
        config: StylizeConfig,
        pictures: Pictures,
        source: StyleNet,
        folder: Path,
        on_step: Callable[[Step, Path | None], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.config, self.pictures, self.folder = config, pictures, folder
        self.on_step, self.stopping = on_step, stopping
        self.net = source.build(config.cost.weights().layers, config.seed)
        self.state = load_state(folder)

    def fit(self) -> Stylized:
        """All scales that are left; raises Interrupted when told to stop, FloatingPointError where J is no number."""
        for number in range(self.state.scale, len(self.config.scales)):
            scale = at_scale(self.pictures, self.config.scales[number][0], self.config)
            objective = self.objective(scale)
            if self.state.scale != number or self.state.picture is None:
                self.begin(number, scale)
            self.run_scale(scale, objective)
        assert self.state.picture is not None
        with torch.no_grad():
            final = {name: float(cost) for name, cost in objective(self.state.picture).items()}
        shown = finished(self.state.picture, scale.content, self.config.colour)
        write_picture(self.folder / RESULT, to_image(shown))
        return Stylized(shown, self.state.steps, final)

    def objective(self, scale: Scale) -> Cost:
        """J of a picture at a scale; where brightness alone is transferred, of that: no more is shown of a picture."""
        cost = self.config.cost
        objective = Objective(self.net, scale.seen, scale.styles, cost.weights(), cost.normalisation)
        if self.config.colour != "luminance":
            return objective
        return lambda picture: objective(luminance(picture))

    def begin(self, number: int, scale: Scale) -> None:
        """Enter a scale, with the picture of the one before."""
        before, size = self.state.picture, tuple(scale.content.shape[2:])
        if before is None:
            picture = first_picture(scale.seen, self.config.noise, self.config.seed)
        else:
            picture = F.interpolate(before, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        carried = carry_up(self.state.carried, size)  # type: ignore[arg-type]
        self.state = State(number, 0, picture, None, carried, self.state.steps)

    def run_scale(self, scale: Scale, objective: Cost) -> None:
        """The iterations of a scale that are left."""
        state, [longer_px, num_iterations] = self.state, self.config.scales[self.state.scale]
        assert state.picture is not None
        picture = state.picture.detach().clone().requires_grad_(True)
        optimizer = make_optimizer(self.config.optim, picture)
        if state.optimizer is not None:
            optimizer.load_state_dict(state.optimizer)
        elif state.carried:
            optimizer.state[picture] = dict(state.carried)
        while state.iteration < num_iterations:
            step = self.take_step(picture, optimizer, objective, longer_px)
            state.iteration += 1
            state.steps.append(step)
            last = state.iteration == num_iterations
            stop = self.stopping()
            if last or stop or len(state.steps) % self.config.checkpoint_every == 0:
                state.picture, state.optimizer = picture.detach(), optimizer.state_dict()
                state.carried = moments(optimizer) if last else {}
                save_state(self.folder, state)
            self.on_step(step, self.show(picture, scale, len(state.steps)))
            if stop:
                raise Interrupted(len(state.steps))
        state.picture = picture.detach()

    def take_step(
        self, picture: Tensor, optimizer: torch.optim.Optimizer, objective: Cost, longer_px: int
    ) -> Step:
        """One iteration; raises FloatingPointError where J is no number."""
        began = time.perf_counter()
        costs = iterate(picture, optimizer, objective)
        number = len(self.state.steps)
        if not math.isfinite(costs["total"]):
            raise FloatingPointError(
                f"J is no number at iteration {number + 1}: lower the weights of cost (style_weight "
                f"={self.config.cost.style_weight}), or see whether the network's own weights are numbers"
            )
        return Step(iteration=number, longer_px=longer_px, **costs, time_s=time.perf_counter() - began)

    def show(self, picture: Tensor, scale: Scale, num_done: int) -> Path | None:
        """Keep the picture as it is now, where it is time for that; its file."""
        every = self.config.picture_every
        if not every or num_done % every:
            return None
        file = self.folder / PICTURES / f"{num_done:05d}.png"
        write_picture(file, to_image(finished(picture, scale.content, self.config.colour)))
        return file


def stylize(
    config: StylizeConfig,
    pictures: Pictures,
    source: StyleNet,
    folder: Path,
    on_step: Callable[[Step, Path | None], None] = lambda _step, _file: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Stylized:
    """Render the picture, going on where `folder` has the state of a run that was stopped.

    `on_step` hears each iteration, with the file of the picture where one was kept.
    """
    return Run(config, pictures, source, folder, on_step, stopping).fit()
