"""Whether an exported program predicts what its model predicts: on real items, class by class.

Tensors that are close are not enough: the classes must be the same, and the probabilities to `TOLERANCE`. Items go in
as a decoder gives them, one at a time and several of one size at a time; pictures at the card's size, too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.dataset import Dataset, Split
from data.decode import decode_image
from data.fitting import ArrayPreprocessing, decode_as_it_came
from tasks.card import Preprocessing
from tasks.predict import Predictor

NUM_ITEMS = 200
NUM_WHOLE = 50  # of JPEGs that are decoded at their full size, which is slow
TOLERANCE = 1e-4  # of a probability
TIE = 1e-5  # classes whose probabilities are that close may change places
SPLIT: Split = "test"
Run = Callable[[np.ndarray], np.ndarray]  # items (B, …) → probabilities (B, K)
Items = Sequence[np.ndarray | None]  # one array an item, of any size; None: not to be had


@dataclass(frozen=True)
class Reference:
    """What the model itself makes of the items of a dataset."""

    predictor: Predictor
    ids: list[str]
    blobs: list[bytes]
    decoded: np.ndarray  # (N, C, T, T) uint8, or (N, C, *stored) float32
    probabilities: np.ndarray  # (N, K)


def check(predictor: Predictor, run: Run, dataset: Dataset) -> dict[str, Any]:
    """Compare on the first items of the test split (their order is random): what was seen, as plain values.

    Raises RuntimeError if the program predicts anything else, and ValueError for a dataset of no use here.
    """
    reference = predict(predictor, dataset)
    looks = []
    for name, items, size in ways(reference, dataset.info.name):
        places, found = outputs(run, items, size)
        looks.append({"items": name, "batch_size": size, **compare(reference, places, found)})
    require_equal(looks, dataset.info.name)
    seen = {
        "dataset": dataset.info.name, "split": SPLIT, "num_items": len(reference.ids), "view": predictor.view,
        "max_difference": max(look["max_difference"] for look in looks), "tolerance": TOLERANCE,
        "agreement": min(look["agreement"] for look in looks), "looks": looks,
        **speeds(reference, run),
    }  # fmt: skip
    whole = at_full_size(reference)
    if any(picture is not None for picture in whole):
        seen["jpegs_decoded_at_full_size"] = compare(reference, *outputs(run, whole, 1))
    return seen


def predict(predictor: Predictor, dataset: Dataset) -> Reference:
    """The model's own predictions; raises ValueError for a dataset of another family, or without test items."""
    dataset.require_family(predictor.card.family)
    dataset.require(SPLIT)
    num = min(NUM_ITEMS, dataset.info.num_images(SPLIT))
    rows = dataset.rows(SPLIT, range(num), ["id", "image"])
    blobs = rows["image"].to_pylist()
    decoded, errors = predictor.decode(blobs)
    fault = next((error for error in errors if error), None)
    if fault:
        raise ValueError(f"{dataset.path}: an item of it cannot be read: {fault}")
    probabilities = predictor.probabilities(torch.from_numpy(decoded)).numpy()
    return Reference(predictor, rows["id"].to_pylist(), blobs, decoded, probabilities)


def ways(reference: Reference, name: str) -> list[tuple[str, Items, int]]:
    """How the program is looked at: what goes in, in words and as arrays, and how many at a time at most."""
    want = reference.predictor.card.preprocessing
    full = full_batch(reference)
    sizes = sorted({1, min(3, full), full})
    if isinstance(want, Preprocessing):
        came = [picture_of(blob, want, want.stored_px) for blob in reference.blobs]
        at_size = f"pictures at {want.stored_px} px"
        return [
            ("pictures as they came", came, 1),
            *((at_size, stored_of(reference), size) for size in sizes[1:] or sizes),
        ]
    values = [decode_as_it_came(blob, want) for blob in reference.blobs]
    if all(value is None for value in values):
        raise ValueError(
            f"each item of {name!r} is normalised by itself and then resampled to {want.rate_hz or want.spacing_mm:g}: "
            "no input of the exported program says the same; check on items of that rate or spacing with --check-on, "
            "or train with input.normalise=dataset"
        )
    return [("arrays as they came", values, size) for size in sizes]


def full_batch(reference: Reference) -> int:
    """Items that share a forward pass at most."""
    return min(len(reference.ids), reference.predictor.images_per_pass(reference.predictor.view))


def stored_of(reference: Reference) -> list[np.ndarray]:
    """Decoded pictures, at the card's size, as the program takes them: (T, T, C) uint8 each."""
    return list(np.ascontiguousarray(reference.decoded.transpose(0, 2, 3, 1)))


def picture_of(blob: bytes, want: Preprocessing, draft_px: int | None) -> np.ndarray:
    """A decoded picture: (H, W, C) uint8."""
    pixels = np.asarray(decode_image(blob, channels=want.channels, draft_px=draft_px))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def at_full_size(reference: Reference) -> Items:
    """Pictures as a decoder gives them that cannot scale while it decodes; None where prediction sees the same."""
    want = reference.predictor.card.preprocessing
    if isinstance(want, ArrayPreprocessing):
        return []
    pictures: list[np.ndarray | None] = []
    for blob in reference.blobs[:NUM_WHOLE]:
        whole = picture_of(blob, want, None)
        pictures.append(None if whole.shape == picture_of(blob, want, want.stored_px).shape else whole)
    return pictures


def outputs(run: Run, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Run the program on items of equal shape together, at most `size`: places (M,) in `items`, outputs (M, K)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(items):
        if item is not None:
            groups.setdefault(item.shape, []).append(place)
    places, found = [], []
    for group in groups.values():
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            places += batch
            found.append(run(np.stack([item for place in batch if (item := items[place]) is not None])))
    return np.array(places), np.concatenate(found)


def compare(reference: Reference, places: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """How far outputs (M, K) of the items at `places` (M,) are from the model's; `first_other`: of another class."""
    expected, rows = reference.probabilities[places], np.arange(len(places))
    best, ours = found.argmax(1), expected.argmax(1)
    other = expected[rows, ours] - expected[rows, best] > TIE
    differences = np.abs(found - expected).max(1)
    seen: dict[str, Any] = {
        "num_items": len(places),
        "max_difference": float(differences.max()) if np.isfinite(found).all() else float("inf"),
        "agreement": float(1 - other.mean()),
    }
    if other.any():
        row, classes = int(other.argmax()), reference.predictor.card.classes
        seen["first_other"] = f"{reference.ids[places[row]]}: {classes[best[row]]}, not {classes[ours[row]]}"
    return seen


def require_equal(looks: Sequence[dict[str, Any]], name: str) -> None:
    """Raise a RuntimeError that says what differed, if anything did."""
    for look in looks:
        if look["agreement"] == 1 and look["max_difference"] <= TOLERANCE:
            continue
        others = round((1 - look["agreement"]) * look["num_items"])
        first = f" ({look['first_other']})" if others else ""
        where = f"{name!r} ({look['items']}, {look['batch_size']} at a time)"
        raise RuntimeError(
            "the exported program does not predict what the model predicts, so nothing was kept: of "
            f"{look['num_items']} test items of {where} {others} have another class{first}; the largest difference of "
            f"a probability is {look['max_difference']:.2g}, allowed is {TOLERANCE:g}"
        )


def speeds(reference: Reference, run: Run) -> dict[str, float]:
    """Items a second of model and program, at the stored size and the full batch, after a warm-up."""
    predictor, size = reference.predictor, full_batch(reference)
    isarray = isinstance(predictor.card.preprocessing, ArrayPreprocessing)
    items = list(reference.decoded) if isarray else stored_of(reference)
    tensors = torch.from_numpy(reference.decoded)
    rates = {}
    for name, work in (
        ("model_items_per_s", lambda num: predictor.probabilities(tensors[:num])),
        ("program_items_per_s", lambda num: outputs(run, items[:num], size)),
    ):
        work(size)
        began = time.perf_counter()
        work(len(items))
        rates[name] = round(len(items) / (time.perf_counter() - began), 1)
    return rates
