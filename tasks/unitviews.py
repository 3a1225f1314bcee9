"""What units of chosen layers answer to most: the nine patches of a dataset's split, found in one streaming pass.

Pieces of the split are looked at on Ray or here, each by all networks and layers at once; of a piece come the strongest
pictures of each unit, and the pieces' are merged in their order. Memory does not grow with the split, whichever piece
stalls. Pieces and batches are cut alike wherever it runs, so that the numbers do not depend on the cluster. Only the
pictures that are shown are read again; the network is not run again. What was found is kept as it comes
(tasks.unitstate): a pass that was stopped goes on behind the last piece that was merged, and ends with the same bits.

Of two networks the correlations of their units over the pictures are summed on the way: trained anew, a network has
its units in another order, and the one most alike is found by them (Li et al. 2016, https://arxiv.org/abs/1511.07543).
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.dataset import Dataset, Split
from data.decode import decode_many
from data.evidence import pictures_at
from data.files import whole
from data.letterbox import out_of_square, placement
from data.stream import RowReader, layout_of
from models.receptive import Field, LayerFields
from models.synthesis import SynthesisConfig, ascend, of_units
from models.units import Moments, TopUnits, activations, strongest_places
from tasks.card import Preprocessing
from tasks.curvedata import Place
from tasks.inputs import crop_values
from tasks.predict import PASS_MB, default_device
from tasks.subject import Subject
from tasks.unitstate import NUM_PATCHES, Seen, empty_seen, keep_seen, kept_seen, merge
from tasks.views import single

PIECE_ROWS, PIECE_BYTES = 256, 2**25  # looked at by one call, at most: photographs have megabytes each
UNITS_PER_CALL = 4  # synthesised together
KEEP_EVERY_S = 5.0  # at most so much of a pass is lost when it is stopped, but for the pieces under way


@dataclass(frozen=True)
class Patch:
    """A part of a picture, as the network saw it."""

    id: str
    label: str
    activation: float
    row: int  # of the layer's map
    column: int
    pixels: np.ndarray  # (C, h, w) uint8


def network_input(blobs: Sequence[bytes], subject: Subject) -> Tensor:
    """Encoded pictures as prediction shows them by the view `single`: (B, C, c, c) uint8."""
    own = subject.preprocessing
    images = decode_many(list(blobs), own.stored_px, own.channels, own.resize)
    return single(torch.from_numpy(images), own)[0][0]


@torch.no_grad()  # not inference_mode: a network that is moved to a GPU in it has no gradients afterwards
def look(
    rows: pa.Table, first: int, subjects: Sequence[Subject], layers: Sequence[dict[str, LayerFields]]
) -> Seen:
    """The strongest of these rows (column `image`), the first of which is picture `first` of its split."""
    seen, device = empty_seen(layers), default_device()
    blobs = rows["image"].to_pylist()
    size = max(1, min(int(PASS_MB * 2**18 / crop_values(each.preprocessing)) for each in subjects))
    networks = [subject.classifier.to(device) for subject in subjects]
    for start in range(0, len(blobs), size):
        part = blobs[start : start + size]
        indices = torch.arange(first + start, first + start + len(part))
        strongest: list[dict[str, Tensor]] = []
        for subject, network, own, tops in zip(subjects, networks, layers, seen.tops, strict=True):
            x = network.normalise(network_input(part, subject).to(device))
            values = {}
            for name, maps in activations(network.net, list(own), x).items():
                values[name], places = (each.cpu() for each in strongest_places(maps.float()))
                tops[name].update(values[name], indices, places)
            strongest.append(values)
        for name, moments in seen.moments.items():
            moments.update(strongest[0][name], strongest[1][name])
    return seen


def look_at_split(
    dataset: Dataset,
    split: Split,
    subjects: Sequence[Subject],
    layers: Sequence[dict[str, LayerFields]],
    where: Place,
    file: Path,
    on_progress: Callable[[int, int], None],
) -> Seen:
    """The strongest patches of a whole split, in one pass over it; `on_progress` hears pictures done, and of how many.

    `file` keeps what was found so far, and is where a pass that was stopped goes on. Raises ValueError for a split
    without pictures.
    """
    dataset.require(split)
    num = dataset.info.num_images(split)
    begun, total = kept_seen(file) or (0, empty_seen(layers))
    on_progress(begun, num)
    reader = RowReader(dataset, split, ["image"], cache_bytes=0)
    piece_rows = min(PIECE_ROWS, layout_of(dataset, split).rows_within(PIECE_BYTES))
    starts = range(begun, num, piece_rows)
    pieces = zip(starts, reader.pieces(np.arange(begun, num), piece_rows), strict=True)
    shared = where.share(tuple(subjects))
    calls = ((rows, first, shared, layers) for first, rows in pieces)
    kept_at = time.monotonic()
    # sums of floating-point numbers depend on their order
    for place, seen in where.each(look, calls, 1, where.gpus, in_order=True):
        merge(total, seen)
        done = min(num, starts[place] + piece_rows)
        if done == num or time.monotonic() - kept_at > KEEP_EVERY_S:
            keep_seen(file, done, total)
            kept_at = time.monotonic()
        on_progress(done, num)
    return total


def window_of(field: Field | None, row: int, column: int, side_px: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of what is cropped for a unit's place: its field; where that is larger than the picture
    along an axis, all of the picture."""
    if field is None:
        return 0, side_px, 0, side_px
    spans = ((field.rows, row), (field.columns, column))
    top_bottom, left_right = (
        (0, side_px) if span.side >= side_px else span.at(place) for span, place in spans
    )
    return (*top_bottom, *left_right)


def seen_in_picture(
    field: Field | None, row: int, column: int, want: Preprocessing, size_px: tuple[int, int]
) -> tuple[float, ...]:
    """What a unit's place sees of a picture as it lies in the dataset: left, top, right, bottom in its upright pixels.

    `size_px` is its width and height. Cut at its edges, also where the network sees it reflected beyond them.
    """
    side = want.crop_px
    spans = [(0, side)] * 2 if field is None else [field.columns.at(column), field.rows.at(row)]
    box = np.clip([start for start, _ in spans] + [end for _, end in spans], 0, side)
    box += (want.stored_px - side) // 2  # as tasks.views.centre lies
    placed = placement(*size_px, want.stored_px, want.resize)
    [seen] = out_of_square(box[None], np.array([placed]), np.array([size_px])).tolist()
    return tuple(seen)


def crop_padded(picture: np.ndarray, window: tuple[int, int, int, int], fill: Sequence[float]) -> np.ndarray:
    """A window of a picture (C, H, W) uint8; what lies outside has the colour `fill` (C,), in shares of 255."""
    top, bottom, left, right = window
    C, H, W = picture.shape
    if window == (0, H, 0, W):
        return picture  # no copy: of a deep layer thousands of units share it
    colour = np.round(255 * np.asarray(fill)).astype(np.uint8)[:, None, None]
    patch = np.broadcast_to(colour, (C, bottom - top, right - left)).copy()
    rows, columns = (max(top, 0), min(bottom, H)), (max(left, 0), min(right, W))
    patch[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = picture[
        :, slice(*rows), slice(*columns)
    ]
    return patch


def patches_of(
    dataset: Dataset, split: Split, subject: Subject, layer: LayerFields, tops: TopUnits, units: Sequence[int]
) -> dict[int, list[Patch]]:
    """The patches of some units, cut out of the pictures as the network sees them; padded with the mean colour."""
    rows = torch.tensor(list(units))
    shown = sorted(set(tops.pictures[rows].flatten().tolist()) - {-1})
    table = dataset.table(split, ["id", "label"]).take(shown).to_pylist()
    about = dict(zip(shown, table, strict=True))
    blobs = pictures_at(dataset, split, shown)
    pictures = {index: network_input([blob], subject)[0].numpy() for index, blob in blobs.items()}
    side_px, width = subject.preprocessing.crop_px, layer.shape[-1] if layer.has_places else 1
    found: dict[int, list[Patch]] = {}
    for unit in units:
        found[unit] = []
        ranked = zip(
            *(each[unit].tolist() for each in (tops.values, tops.pictures, tops.places)), strict=True
        )
        for value, index, place in ranked:
            if index < 0:
                continue
            row, column = divmod(place, width)
            window = window_of(layer.fields[unit], row, column, side_px)
            pixels = crop_padded(pictures[index], window, subject.classifier.mean.flatten().tolist())
            label = dataset.info.classes[about[index]["label"]]
            found[unit].append(Patch(about[index]["id"], label, value, row, column, pixels))
    return found


def synthesis_px(subject: Subject, layer: LayerFields, config: SynthesisConfig) -> int:
    """Side of a layer's synthesised pictures: units without places need the network's own."""
    own = subject.preprocessing.crop_px
    return min(own, config.side_px) if layer.has_places else own


def synthesise(
    subject: Subject, layer: LayerFields, units: Sequence[int], config: SynthesisConfig
) -> np.ndarray:
    """A picture each unit answers strongly to: (U, C, s, s) uint8."""
    device = default_device()
    network = subject.classifier.to(device)
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def objective(pictures: Tensor) -> Tensor:
        x = network.normalise(255 * pictures.to(device))
        maps = activations(network.net, [layer.name], x)[layer.name]
        return of_units(maps, units, config.objective).cpu()

    side, channels = synthesis_px(subject, layer, config), subject.preprocessing.channels
    pictures = ascend(objective, len(units), channels, side, config)
    return (255 * pictures).round().to(torch.uint8).numpy()


def synthesise_each(
    wanted: Sequence[tuple[Subject, LayerFields, Sequence[int]]],
    config: SynthesisConfig,
    where: Place,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> list[dict[int, np.ndarray]]:
    """Pictures (C, s, s) uint8 of the units of each of these layers, a few at a time in parallel.

    `folder` keeps those that are done, by their place in this order: they are not made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = {id(subject): subject for subject, _, _ in wanted}  # each once, of however many layers
    shared = {key: where.share(subject) for key, subject in networks.items()}
    jobs = [
        (number, list(units[first : first + UNITS_PER_CALL]))
        for number, (_, _, units) in enumerate(wanted)
        for first in range(0, len(units), UNITS_PER_CALL)
    ]
    files = [folder / f"{place:05d}.npy" for place in range(len(jobs))]
    left = [place for place, file in enumerate(files) if not file.is_file()]
    calls: Iterator[tuple[Any, ...]] = (
        (shared[id(wanted[number][0])], wanted[number][1], units, config)
        for number, units in (jobs[place] for place in left)
    )
    total = sum(len(units) for _, units in jobs)
    done = total - sum(len(jobs[place][1]) for place in left)
    on_progress(done, total)
    for turn, pictures in where.each(synthesise, calls, 1, where.gpus):
        with whole(files[left[turn]]) as stream:
            np.save(stream, pictures)
        done += len(pictures)
        on_progress(done, total)
    found: list[dict[int, np.ndarray]] = [{} for _ in wanted]
    for (number, units), file in zip(jobs, files, strict=True):
        found[number] |= dict(zip(units, np.load(file), strict=True))
    return found


def most_alike(moments: Moments, units: Sequence[int]) -> dict[int, tuple[int, float]]:
    """To units of the first network the most correlated one of the second, with the correlation."""
    correlations = moments.correlations()[torch.tensor(list(units))]
    best = correlations.argmax(1)
    values = correlations.gather(1, best[:, None])[:, 0]
    return dict(zip(units, zip(best.tolist(), values.tolist(), strict=True), strict=True))


def rows_of(
    dataset: Dataset, split: Split, want: Preprocessing, layer: LayerFields, tops: TopUnits
) -> Iterator[dict[str, Any]]:
    """The patches of all units of a layer as rows, for a table; left … bottom in pixels of the dataset's picture."""
    table = dataset.table(split, ["id", "label", "width", "height"])
    ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
    sizes_px = list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    width = layer.shape[-1] if layer.has_places else 1
    for unit, rank in itertools.product(range(len(tops.pictures)), range(NUM_PATCHES)):
        index, place = int(tops.pictures[unit, rank]), int(tops.places[unit, rank])
        if index < 0:
            continue
        row, column = divmod(place, width)
        box = seen_in_picture(layer.fields[unit], row, column, want, sizes_px[index])
        yield {
            "unit": unit, "rank": rank + 1, "id": ids[index],
            "label": dataset.info.classes[labels[index]], "activation": float(tops.values[unit, rank]),
            "row": row, "column": column,
            **dict(zip(("left", "top", "right", "bottom"), (round(edge, 2) for edge in box), strict=True)),
        }  # fmt: skip
