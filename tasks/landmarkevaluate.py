"""How well a network finds landmarks on a split, in pixels of the upright pictures as they are stored."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from data.dataset import Dataset, DatasetInfo, Split
from data.decode import decode_image
from data.landmarks import IBUG68_EYE_CORNERS, in_squares, is_ibug68, shown
from tasks.landmarkmetrics import lengths, nan_mean, point_errors, summarise
from tasks.landmarkpredict import LandmarkPredictor
from tasks.landmarkreport import Report, Shown
from tasks.landmarks import LandmarkEvaluate
from tasks.modelfile import load_model
from tasks.predict import machine_of
from tasks.settings import Precision
from tasks.tested import tested

PIECE_IMAGES = 256  # decoded at a time
SHOWN_PX = 512  # longer side of a picture in the report, at most
NORMALISERS = {
    "eye_corners": "distance of the outer eye corners",
    "box": "diagonal of the box around the true points",
    "side": "geometric mean of the picture's sides",
}


def normaliser(
    info: DatasetInfo, config: LandmarkEvaluate
) -> tuple[Literal["eye_corners", "box", "side"], tuple[int, int] | None]:
    """What errors are shares of, and the points that are eye corners; raises ValueError where they are not known."""
    eyes = config.eye_corners or (IBUG68_EYE_CORNERS if is_ibug68(info) else None)
    if eyes is not None and (eyes[0] == eyes[1] or not all(0 <= eye < len(info.points) for eye in eyes)):
        raise ValueError(
            f"evaluate.eye_corners (={list(eyes)}) must be two numbers below {len(info.points)}, the points of "
            f"{info.name!r}"
        )
    if config.normalise_by == "auto":
        return ("eye_corners" if eyes else "box"), eyes
    if config.normalise_by == "eye_corners" and eyes is None:
        raise ValueError(
            f"evaluate.normalise_by (=eye_corners): {info.name!r} does not say which points they are; give "
            "evaluate.eye_corners, or set normalise_by to box or side"
        )
    return config.normalise_by, eyes


def evaluate(
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    split: Split = "test",
    config: LandmarkEvaluate,
    device: torch.device | None = None,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
    called: Sequence[str] = (),
) -> Report:
    """Evaluate the model in the one folder of `folders` on a split of `dataset`; every picture counts.

    Raises ValueError for several models, a split without pictures, or a model whose points are not the dataset's.
    """
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} models were given; landmarks are evaluated one model at a time")
    saved, info = load_model(folders[0]), dataset.info
    name = called[0] if called else str(folders[0])
    if saved.card.family != "landmarks" or saved.card.classes != info.points:
        raise ValueError(
            f"the model {name} is for {saved.card.family} of {len(saved.card.classes)} points, and the dataset "
            f"{info.name!r} for {info.family} of {len(info.points)}; they must be the same points in the same order"
        )
    dataset.require(split)
    by, eyes = normaliser(info, config)
    predictor = LandmarkPredictor(saved, device, precision, config.batch_size)
    table = dataset.table(split, ["id", "points_xy", "visible", "width", "height"])
    P = len(info.points)
    points = np.array(table["points_xy"].to_pylist(), np.float32).reshape(-1, P, 2)
    visible = np.array(table["visible"].to_pylist(), bool).reshape(-1, P)
    given = visible | (points != 0).any(2)
    sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1)
    found, found_visible, seconds = locate_split(predictor, dataset, split, on_progress)
    errors = point_errors(found, points, given, lengths(points, given, sizes, by, eyes))
    # as training has it: what lies outside of what the network is shown is not visible
    seen = visible & shown(in_squares(points, sizes, predictor.input), predictor.input.input_px)
    metrics = summarise(errors, found_visible, seen, given)
    metrics["images_per_s"] = len(points) / seconds
    return Report(
        metrics=metrics,
        about={
            **tested([name], [saved.card]),
            "dataset": info.name,
            "dataset_source_sha256": info.source_sha256,
            "split": split,
            "num_images": len(points),
            "num_points": P,
            "network": saved.card.members[0].architecture,
            "trained_on": saved.card.dataset,
            "input_px": predictor.input.input_px,
            "resize": predictor.input.resize,
            "normalised_by": NORMALISERS[by],
            "nme_interval": "95%, percentile bootstrap over pictures",
            "device": machine_of(predictor.device),
            "precision": precision,
            "registered_view": config.registered_view,
            "images_per_s": "wall clock of reading, decoding and the network",
        },
        names=info.points,
        ids=table["id"].to_pylist(),
        points_xy=points,
        given=given,
        found_xy=found,
        found_visible=found_visible,
        errors=errors,
        shown=pictures_of(dataset, split, errors, config.num_worst, predictor.channels),
    )


def locate_split(
    predictor: LandmarkPredictor,
    dataset: Dataset,
    split: Split,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Points (N, P, 2) and visibility (N, P) that are found, and how many seconds it took."""
    num, began = dataset.info.num_images(split), time.perf_counter()
    points, visible = [], []
    for start in range(0, num, PIECE_IMAGES):
        places = range(start, min(start + PIECE_IMAGES, num))
        found = predictor.locate(dataset.rows(split, places, ["image"])["image"].to_pylist())
        assert not any(found[2]), "a stored picture was decoded before"
        points.append(found[0])
        visible.append(found[1])
        if on_progress is not None:
            on_progress(places.stop, num)
    return np.concatenate(points), np.concatenate(visible), time.perf_counter() - began


def pictures_of(
    dataset: Dataset, split: Split, errors: np.ndarray, num: int, channels: Literal[1, 3]
) -> tuple[Shown, ...]:
    """The best, the median and the worst pictures by their error, a third of `num` each."""
    own = nan_mean(errors, 1)
    order = np.argsort(own, kind="stable")[: int((~np.isnan(own)).sum())]
    each = min(num // 3, len(order))
    middle = (len(order) - each) // 2
    kinds = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    drawn = []
    for kind, places in kinds.items():
        if len(places):
            blobs = dataset.rows(split, places.tolist(), ["image"])["image"].to_pylist()
            drawn += [
                Shown(kind, int(p), *reduced(decode_image(blob, channels=channels)))
                for p, blob in zip(places, blobs, strict=True)
            ]
    return tuple(drawn)


def reduced(picture: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels of a picture whose longer side is SHOWN_PX at most, and its width and height before."""
    scale = min(1, SHOWN_PX / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture if scale == 1 else picture.resize((width, height))), picture.size
