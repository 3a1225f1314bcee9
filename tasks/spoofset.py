"""A folder of people made a folder of real faces and simulated attacks, for training and testing liveness.

`SPLIT/real/PERSON/…`, `SPLIT/simulated_print/PERSON/…`, `SPLIT/simulated_replay/PERSON/…`: what `./convoy data add`
reads as classification with the splits kept. All pictures of a person, real and attacked, stand on one side. A real
face goes through the same simulated camera and the same JPEG encoder as an attack, so that these tell nothing.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.archive import FileTree, open_tree
from data.augment import Draws
from data.dataset import SPLITS, Split
from data.decode import DecodeError
from data.files import whole_folder
from data.formats.identities import list_identities
from data.formats.listing import RawItem
from data.parameters import Parameters
from data.random import SampleGenerator
from data.splits import assign_splits
from data.spoofs import ATTACKS, captured
from tasks.facealign import Aligner, FaceError
from tasks.liveness import REAL

BATCH = 16
JPEG_QUALITY = 92
Tell = Callable[[int, int], None]
README = """Faces of {source}, taken again by a simulated camera (real/), and simulated presentation attacks of them
(simulated_print/, simulated_replay/). No attack here was recorded: how well a detector does on them says little about
real prints and screens.
"""


class PeopleSplit(Parameters):
    """Shares of the people, where the source does not say who is on which side."""

    val_fraction: float = 0.15
    test_fraction: float = 0.25


@dataclass(frozen=True)
class SpoofSet:
    """What was written: pictures by split and class, and why others were left out."""

    counts: dict[Split, dict[str, int]]
    people: dict[Split, int]
    left_out: dict[str, str]  # picture -> reason


def write_spoof_set(
    source: Path,
    out: Path,
    aligner: Aligner,
    seed: int,
    people: PeopleSplit,
    max_source_gb: float = 10,
    on_progress: Tell | None = None,
) -> SpoofSet:
    """Write the folder `out` from a folder or archive of people, whole or not at all.

    A picture's attacks depend on `seed` and its place among the source's pictures alone. `on_progress` is called with
    how many pictures are done, and how many there are. Raises ValueError where
    something is at `out`, FileNotFoundError or ValueError for a source that cannot be read or has no face.
    """
    with whole_folder(out) as folder:
        with open_tree(source, spool=folder, max_total_bytes=int(max_source_gb * 10**9)) as tree:
            written = _write(tree, folder, aligner, seed, people, on_progress)
        folder.joinpath("README.txt").write_text(README.format(source=source.name))
        document = {"simulated": True, "seed": seed, "alignment": aligner.config.model_dump()}
        folder.joinpath("simulated.json").write_text(json.dumps(document, indent=2) + "\n")
    return written


def _write(
    tree: FileTree, folder: Path, aligner: Aligner, seed: int, people: PeopleSplit, tell: Tell | None
) -> SpoofSet:
    items = sorted(list_identities(tree).items, key=lambda item: item.id)
    persons = [item.targets["label"] for item in items]
    splits = assign_splits([item.split for item in items], persons, people)
    split_of = dict(zip([item.id for item in items], splits, strict=True))
    person_of = dict(zip([item.id for item in items], persons, strict=True))
    left_out: dict[str, str] = {}
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    seen: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for batch in _batches(tree, items, aligner, left_out, tell):
        names, places, faces = zip(*batch, strict=True)
        for kind, pictures in presentations(torch.stack(faces), np.array(places), seed).items():
            for name, picture in zip(names, pictures, strict=True):
                file = folder / split_of[name] / kind / PurePosixPath(name).with_suffix(".jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(picture))
                counts[split_of[name]][kind] += 1
                seen[split_of[name]].add(person_of[name])
    if not any(counts.values()):
        raise ValueError(
            f"{tree.name}: no face in {len(items)} pictures: {next(iter(left_out.values()), 'none')}"
        )
    return SpoofSet(
        {split: dict(counts[split]) for split in SPLITS},
        {split: len(seen[split]) for split in SPLITS},
        left_out,
    )


def _batches(
    tree: FileTree, items: list[RawItem], aligner: Aligner, left_out: dict[str, str], tell: Tell | None
) -> Iterator[list[tuple[str, int, Tensor]]]:
    """Names, places and faces (3, S, S) uint8, some at a time; what has no face goes to `left_out`.

    `tell` hears of pictures whose batch has been taken, and of those without a face.
    """
    batch: list[tuple[str, int, Tensor]] = []
    for place, item in enumerate(items):
        try:
            batch.append((item.id, place, aligner.face(tree.read(item.path))))
        except (DecodeError, FaceError) as error:
            left_out[item.id] = str(error)
        if len(batch) == BATCH:
            yield batch
            batch = []
        if tell is not None:
            tell(place + 1 - len(batch), len(items))
    if batch:
        yield batch
        if tell is not None:
            tell(len(items), len(items))


def presentations(faces: Tensor, indices: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Faces (B, 3, S, S) uint8 as the camera takes them, real and attacked, by class."""
    ways = {REAL: captured, **ATTACKS}
    return {
        kind: way(faces, Draws(indices, SampleGenerator(seed, number), faces.device))
        for number, (kind, way) in enumerate(ways.items())
    }


def encoded(picture: Tensor) -> bytes:
    """(3, S, S) uint8 as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
