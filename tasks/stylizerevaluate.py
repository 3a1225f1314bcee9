"""How well a stylizer renders pictures that it never saw: J and its parts, and the optimisation's J beside it.

The judge is the network that it was trained by, which its file carries. Costs are of what is shown, cut to 0 to 1.
`untouched` is J of the picture as it was: all style, no content. The optimisation begins with the content and is
counted from before the features of content and style are computed, on the same device and threads.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import Dataset, Split
from models.style import Objective, Style
from models.stylizer import Judge, unit
from tasks.landmarkmetrics import interval
from tasks.modelfile import load_model
from tasks.settings import Precision
from tasks.style import StylizerEvaluate
from tasks.styleconfig import StyleOptimConfig
from tasks.stylepictures import fit
from tasks.stylize import make_optimizer
from tasks.stylizerpredict import LEAST_PX, StylizerPredictor, decoded, pixels_of
from tasks.stylizerreport import Compared, Rendered, Report, Shown
from tasks.tested import tested

PARTS = ("total", "content", "style", "variation")
BENCH_PX, NUM_RUNS = 512, 5  # side of the square that speed is told by
Trace = list[tuple[float, float]]  # seconds since the beginning, and J then


def evaluate(
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    split: Split = "test",
    config: StylizerEvaluate,
    device: torch.device | None = None,
    precision: Precision = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    called: Sequence[str] = (),
) -> Report:
    """Render each picture of a split in each style of the model in the one folder of `folders`.

    Raises ValueError for several models, a model of another family, or a split without pictures.
    """
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} models were given; stylizers are evaluated one at a time")
    saved = load_model(folders[0])
    model = called[0] if called else str(folders[0])
    if saved.card.family != "style":
        raise ValueError(f"the model {model} is for {saved.card.family}, and this is for style")
    dataset.require_family("style")
    dataset.require(split)
    predictor = StylizerPredictor(saved, device, precision)
    names = saved.card.classes
    manners = [predictor.manner_of({name: 1.0}) for name in names]
    ids = dataset.table(split, ["id"])["id"].to_pylist()
    rows: list[Rendered] = []
    shown: list[Shown] = []
    compared: list[Compared] = []
    for place, id in enumerate(ids):
        blob = dataset.rows(split, [place], ["image"])["image"][0].as_py()
        content = fitted(decoded(blob, least_px=1), config.longer_px).to(predictor.device)
        made = []
        for number, name in enumerate(names):
            began = time.perf_counter()
            made.append(predictor.render(content, manners[number]))
            wait_for(predictor.device)
            seconds = time.perf_counter() - began
            costs = costs_of(predictor, made[-1], content, number)
            untouched = costs_of(predictor, content, content, number)
            pixels = content.shape[2] * content.shape[3]
            rows.append(Rendered(id, name, costs, untouched["total"], untouched["style"], seconds, pixels))
        number = place % len(names)
        if place < config.num_worst:
            shown.append(Shown(id, pixels_of(content), tuple(pixels_of(each) for each in made)))
        if place < config.optimise_pictures:
            compared.append(
                compare(predictor, content, made[number], number, rows[number - len(names)], config)
            )
        if on_progress is not None:
            on_progress(place + 1, len(ids))
    return Report(
        metrics=summarise(rows, compared) | {f"time_{BENCH_PX}_s": bench(predictor)},
        about={
            **tested([model], [saved.card]),
            "dataset": dataset.info.name,
            "dataset_source_sha256": dataset.info.source_sha256,
            "split": split,
            "longer_px": config.longer_px,
            "intervals": "95%, percentile bootstrap over pictures",
            "untouched": "J of the pictures as they were",
            "cost": told(predictor.network.judge),
            "content_weight": predictor.network.judge.weights.content,
            "optimised": f"{config.optimise_by.name} from the content, for {config.optimise_s:g} s a picture",
            "device": str(predictor.device),
            "threads": torch.get_num_threads(),
            "precision": precision,
            "registered_view": config.registered_view,
        },
        styles=tuple((name, pixels_of(unit(predictor.network.styles[i : i + 1]))) for i, name in enumerate(names)),
        rows=tuple(rows),
        compared=tuple(compared),
        shown=tuple(shown),
    )  # fmt: skip


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given, which calls do not wait for: seconds are counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def told(judge: Judge) -> str:
    """J in words: its parts with their weights and layers."""
    weights = judge.weights
    layers = ", ".join(f"{name} {value:g}" for name, value in judge.style_layers.items())
    return (
        f"J = {weights.content:g} content ({weights.content_layer}) + {weights.style:g} style ({layers}) + "
        f"{weights.variation:g} variation, {judge.normalisation}"
    )


def fitted(picture: Tensor, longer_px: int) -> Tensor:
    """A picture whose longer side is at most so long, unless the other would be below LEAST_PX: then that is so long.

    One tiny or narrow picture must not end a test that hours of training led to.
    """
    height, width = picture.shape[2:]
    scale = max(min(1.0, longer_px / max(height, width)), LEAST_PX / min(height, width))
    return fit(picture, (round(height * scale), round(width * scale)))


@torch.inference_mode()
def costs_of(predictor: StylizerPredictor, made: Tensor, content: Tensor, number: int) -> dict[str, float]:
    costs = predictor.network.costs_of(made, content, number)
    return {part: float(costs[part][0]) for part in PARTS}


def compare(
    predictor: StylizerPredictor, content: Tensor, made: Tensor, number: int, row: Rendered, config: StylizerEvaluate
) -> Compared:  # fmt: skip
    """What the optimisation makes of a picture, and when it was as far as the network."""
    style = unit(predictor.network.styles[number : number + 1])
    picture, trace = optimise(predictor.network.judge, content, style, config.optimise_s, config.optimise_by)
    forward = row.costs["total"]
    at_once = [total for seconds, total in trace if seconds <= row.seconds]
    reached = [seconds for seconds, total in trace if total <= forward]
    return Compared(
        id=row.id,
        style=row.style,
        forward=forward,
        forward_s=row.seconds,
        optimised_at_once=min(at_once, default=row.untouched),
        optimised=min(total for _, total in trace),
        time_to_equal_s=reached[0] if reached else None,
        trace=tuple(trace),
        pictures=(pixels_of(content), pixels_of(made), pixels_of(picture)),
    )


def optimise(
    judge: Judge, content: Tensor, style: Tensor, limit_s: float, config: StyleOptimConfig
) -> tuple[Tensor, Trace]:
    """Optimise a picture from the content for so many seconds: what it is then, and J before each step."""
    began, trace = time.perf_counter(), []
    objective = Objective(judge.features, content, [Style(style)], judge.weights, judge.normalisation)
    picture = content.clone().requires_grad_(True)
    optimizer = make_optimizer(config, picture)

    def closure() -> float:
        optimizer.zero_grad()
        total = objective(picture)["total"]
        total.backward()
        value = float(total.detach())
        wait_for(picture.device)
        trace.append((time.perf_counter() - began, value))
        return value

    while not trace or trace[-1][0] < limit_s:
        optimizer.step(closure)
        with torch.no_grad():
            picture.clamp_(0, 1)  # as tasks.stylize does: beyond lies a lower J that no file can hold
    return picture.detach(), trace


def summarise(rows: Sequence[Rendered], compared: Sequence[Compared]) -> dict[str, float]:
    """The flat figures: means over pictures of their means over styles, and what the optimisation did beside."""
    num_images = len({row.id for row in rows})

    def means(value: Callable[[Rendered], float]) -> np.ndarray:
        """Of each picture, whose rows, one a style, stand together."""
        return np.array([value(row) for row in rows]).reshape(num_images, -1).mean(1)

    metrics: dict[str, float] = {"num_images": num_images, "num_styles": len(rows) // num_images}
    for name, value in {
        "total": lambda row: row.costs["total"],
        "content": lambda row: row.costs["content"],
        "style": lambda row: row.costs["style"],
        "total_share": lambda row: row.costs["total"] / row.untouched,
        "style_share": lambda row: row.costs["style"] / row.untouched_style,
    }.items():
        each = means(value)
        metrics[name] = float(each.mean())
        if num_images > 1:  # of one picture a bootstrap has no width
            metrics[f"{name}_low"], metrics[f"{name}_high"] = interval(each)
    metrics["variation"] = float(means(lambda row: row.costs["variation"]).mean())
    metrics["untouched"] = float(means(lambda row: row.untouched).mean())
    metrics["megapixels_per_s"] = sum(row.pixels for row in rows) / sum(row.seconds for row in rows) / 1e6
    if compared:
        wait_s = statistics.median(
            math.inf if c.time_to_equal_s is None else c.time_to_equal_s for c in compared
        )
        metrics |= {
            "compared_images": len(compared),
            "compared_total": statistics.fmean(c.forward for c in compared),
            "optimised_total_at_equal_time": statistics.fmean(c.optimised_at_once for c in compared),
            "optimised_total": statistics.fmean(c.optimised for c in compared),
            "optimised_reached": statistics.fmean(c.time_to_equal_s is not None for c in compared),
        }
        if math.isfinite(wait_s):  # half of them got so far
            metrics["optimised_time_to_equal_s"] = wait_s
    return metrics


def bench(predictor: StylizerPredictor) -> float:
    """Median seconds of rendering a square of BENCH_PX, after one to warm up."""
    picture = torch.rand(1, 3, BENCH_PX, BENCH_PX, generator=torch.Generator().manual_seed(0))
    picture = picture.to(predictor.device)
    seconds: list[float] = []
    for _ in range(1 + NUM_RUNS):
        began = time.perf_counter()
        predictor.render(picture).cpu()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
