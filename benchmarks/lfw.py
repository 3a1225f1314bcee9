"""Which way of comparing faces tells people apart best? Labeled Faces in the Wild, and ORL from one picture each.

    PYTHONPATH=. .venv/bin/python benchmarks/lfw.py [--only NAME ...] [--seconds 1800 | --steps N] [--work FOLDER]

Trained on LFW's 1,062 people of train_ids.txt, less a tenth for validation; tested on the 1,000 pairs of
pairsDevTest.txt, of 963 other people. `accuracy` is that at the threshold which is best for the pairs of validation;
`ten-fold` cuts the 1,000 pairs into ten and takes each threshold from the other nine, as LFW's protocol does with its
own folds (here two folds may share people). Rank 1: tasks.facerecognition on the test people, and on ORL, of which
nothing is trained: each of the 40 enrolled from one picture, the other nine asked, the mean of all ten enrolments.

Every trained method has the same seconds (of this machine), or the same steps where --steps is given: what an idle
machine does in the time. Each row is written to WORK/rows/NAME.json as soon as it is done, and a row that is there is
not made again; one that was trained for another time, or by other --set, is an error. A training that was cut off goes
on from its checkpoint. The recipes are those of params.yaml.

Trained nets see a fixed box of each picture, tight around the face; the pretrained net, and the same fine-tuned, see
the face aligned by 68 landmarks as dlib aligns it. Its weights and the landmarks' are others' work on other people;
some of the test people may be among those. Needs lfw_deepfunneled_c128.tar.xz, orl_faces.tar.xz and weights/ of the
datasets' folder (CONVOY_DATASETS).
"""

import argparse
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from pipelines import environment

if "GOMP_SPINCOUNT" not in os.environ:  # OpenMP reads it when torch is imported
    environment.prepare()

from benchmarks.facerows import (
    Embed,
    Frame,
    Row,
    Trained,
    blobs_of,
    embedder,
    measured,
    pairs_in,
    table_of,
    with_head,
)
from data.aligned import FaceAlignment
from data.archive import open_tree
from data.dataset import Dataset
from data.decode import decode_image
from data.files import write_whole
from data.ingest import IngestConfig, ingest
from pipelines.configuration import configuration
from pipelines.parameters import merge, parse_changes
from tasks.facealign import Aligner, open_aligner
from tasks.faceevaluate import fit_thresholds
from tasks.facefolder import align_folder
from tasks.facepredict import FacePredictor
from tasks.faces import FaceConfig, build_model, card
from tasks.loop import Progress
from tasks.modelfile import SavedModel, load_model
from tasks.train import train
from tasks.verification import (
    accuracy_at,
    best_threshold,
    pair_distances,
)
from tasks.weights import read_weights
from tests.datasets import DATASETS

LFW, ORL = DATASETS / "lfw_deepfunneled_c128.tar.xz", DATASETS / "orl_faces.tar.xz"
NET, POINTS = (
    str(DATASETS / "weights" / f"{name}.safetensors")
    for name in ("face_resnet128_fp16", "face_landmark68_fp32")
)
INGEST = {"val_fraction": 0.1, "test_fraction": 0.2, "near_duplicate_distance": 0, "max_source_gb": 1}
# The same face in both: eyes 0.44 of the side apart, 0.35 below the upper edge.
TIGHT_BOX, TIGHT_PX, ORL_BOX = (12, 15, 116, 119), 104, (5, 13, 87, 95)
GREY_PX = 48  # of raw pixels and PCA
DIMS = (50, 100, 200, 400)  # of PCA; validation chooses
TELL_EVERY_S = 20


# --- what is compared ------------------------------------------------------------------------------------------


def aligner(name: str, **changes: Any) -> Aligner:
    tight = {"method": "crop", "crop_xyxy": TIGHT_BOX, "side_px": TIGHT_PX}
    chips = {
        "method": "landmarks68", "weights": POINTS, "template": "dlib", "margin": 0.25, "side_px": 150,
    }  # fmt: skip
    return open_aligner(FaceAlignment.parse({"tight": tight, "chips": chips}[name] | changes, ""))


def frame(name: str, work: Path) -> Frame:
    """LFW's faces in one frame, ingested where they are not yet, and ORL's."""
    store, source = work / "store", work / f"faces-{name}"
    if not (store / f"lfw_{name}" / "dataset.json").is_file():
        if not source.exists():
            align_folder(LFW, source, aligner(name))
        ingest(
            source, name=f"lfw_{name}", family="faces", store=store, config=IngestConfig.parse(INGEST, "benchmark")
        )  # fmt: skip
    # of the chips ORL's central square, which shows as much around a face as LFW's pictures do
    like = aligner(name, crop_xyxy=ORL_BOX) if name == "tight" else aligner(name)
    return Frame(Dataset.open(store / f"lfw_{name}"), orl_faces(like))


def orl_faces(aligner: Aligner) -> list[bytes]:
    """The ten pictures of each of 40 people, one person after the other."""
    with (
        tempfile.TemporaryDirectory() as spool,
        open_tree(ORL, spool=Path(spool), max_total_bytes=1 << 30) as tree,
    ):
        names = {name.partition("/s")[2]: name for name in tree.sizes if name.endswith(".pgm")}
        order = sorted(names, key=lambda name: [int(part) for part in name.removesuffix(".pgm").split("/")])
        return [encoded(aligner.face(tree.read(names[name]))) for name in order]


def encoded(face: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(face.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
    return stream.getvalue()


def grey(blobs: Sequence[bytes]) -> np.ndarray:
    """Faces as unit vectors of levels less their mean: (N, GREY_PX²)."""
    size = (GREY_PX, GREY_PX)
    rows = [
        np.asarray(decode_image(blob, channels=1).resize(size, Image.Resampling.BOX), np.float64).ravel()
        for blob in blobs
    ]
    return unit(np.stack(rows) - np.mean(rows, axis=1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pca(seen: Frame) -> tuple[Embed, str]:
    """Whitened eigenfaces of the training pictures; how many is chosen on the pairs of validation."""
    faces = grey(blobs_of(seen.dataset, "train")).astype(np.float64)
    mean = faces.mean(0)
    _, lengths, axes = np.linalg.svd(faces - mean, full_matrices=False)
    whitening = axes.T / lengths

    def embed(blobs: Sequence[bytes], num: int) -> np.ndarray:
        return unit((grey(blobs) - mean) @ whitening[:, :num])

    blobs, (pairs, _) = blobs_of(seen.dataset, "val"), pairs_in(seen.dataset, "val")
    right = {}
    for num in DIMS:
        distances = pair_distances(embed(blobs, num), pairs.places)
        right[num] = accuracy_at(distances, pairs.same, best_threshold(distances, pairs.same))
    best = max(right, key=lambda num: right[num])
    return lambda blobs: embed(blobs, best), f"{best} components, whitened"


def pretrained(seen: Frame) -> Embed:
    """The published face ResNet as it comes, by the view mirror."""
    config = recipe_config(seen, "lfw_finetune", {"transfer": {"weights": NET}})
    weights = read_weights(NET, "face_resnet128", 3, Path)
    model = build_model(config, seen.dataset.info, lambda: [], weights).eval()
    own = card(config, seen.dataset.info, "", "published")
    return embedder(FacePredictor(SavedModel(own, (model,))))


# --- training --------------------------------------------------------------------------------------------------


def recipe_config(seen: Frame, recipe: str, changes: dict[str, Any]) -> FaceConfig:
    config = configuration("faces", seen.dataset.info.name, recipe, changes)
    assert isinstance(config, FaceConfig)
    return config


def trained(seen: Frame, recipe: str, work: Path, budget: "Budget", changes: dict[str, Any]) -> Trained:
    """Train by a recipe for the budget, going on where an earlier call was cut off, and fit thresholds and heads."""
    num = seen.dataset.info.num_images("train")
    config = recipe_config(seen, recipe, changes)
    settings = budget.settings(num // config.train.batch_size)
    config = recipe_config(seen, recipe, merge(changes, {"train": settings}))
    weights = read_weights(NET, "face_resnet128", 3, Path) if config.transfer.weights else None
    folder, began = work / "runs" / f"{recipe}-{budget.key}", time.process_time()

    told_s = 0.0

    def hear(progress: Progress) -> None:
        nonlocal told_s
        if progress.time_s - told_s > TELL_EVERY_S:
            told_s = progress.time_s
            values = ", ".join(f"{name} {value:.4f}" for name, value in progress.metrics.items())
            print(
                f"{recipe}: {progress.step} steps, {told_s:.0f} s, {progress.images_per_s:.0f} images/s, {values}"
            )

    result = train(
        "faces", config, seen.dataset, folder=folder, key=folder.name, digest="", executor="in_process",
        on_progress=hear, weights=weights,
    )  # fmt: skip
    cpu_s = time.process_time() - began
    fit_thresholds(result.model_folder, seen.dataset, batch_size=64)
    return Trained(result.model_folder, result.num_steps, result.train_time_s, cpu_s)


@dataclass(frozen=True)
class Budget:
    """How long a method is trained, and by which changes of its recipe."""

    seconds: float
    steps: int
    changes: tuple[str, ...] = ()  # KEY=VALUE

    @property
    def length(self) -> str:
        return f"{self.steps}steps" if self.steps else f"{self.seconds:g}s"

    @property
    def name(self) -> str:
        return " ".join((self.length, *self.changes))

    @property
    def key(self) -> str:
        """Of folders: what was trained by other changes is no checkpoint to go on from."""
        made = hashlib.sha256("\n".join(self.changes).encode()).hexdigest()[:8]
        return f"{self.length}-{made}" if self.changes else self.length

    def settings(self, steps_per_epoch: int) -> dict[str, Any]:
        if self.steps:
            return {"epochs": self.steps / steps_per_epoch, "time_budget_s": 0.0}
        return {"epochs": 10_000.0, "time_budget_s": self.seconds}


# --- the table -------------------------------------------------------------------------------------------------

TRAINED = {"cosface": "lfw", "triplet": "triplet", "contrastive": "contrastive", "finetuned": "lfw_finetune"}
NAMES = ("raw", "pca", "contrastive", "triplet", "cosface", "head", "pretrained", "finetuned")
CHIPS = ("pretrained", "finetuned")


def make(name: str, work: Path, budget: Budget, changes: dict[str, Any]) -> Row:
    """One row, trained and measured."""
    seen = frame("chips" if name in CHIPS else "tight", work)
    if name == "raw":
        return measured(name, seen, grey, f"{GREY_PX} px, grey")
    if name == "pca":
        embed, note = pca(seen)
        return measured(name, seen, embed, note)
    if name == "pretrained":
        return measured(name, seen, pretrained(seen))
    base = "cosface" if name == "head" else name
    if base in CHIPS:
        changes = merge(changes, {"transfer": {"weights": NET}})
    took = trained(seen, TRAINED[base], work, budget, changes)
    row = measured(base, seen, embedder(FacePredictor(load_model(took.folder))), "", took, budget.name)
    return with_head(seen, row, took.folder) if name == "head" else row


def is_made(file: Path, budget: Budget) -> bool:
    """Whether there is a row; ends the program for one of another budget, which would pass for this one's."""
    if not file.is_file():
        return False
    made = json.loads(file.read_text())["budget"]
    if made not in ("", budget.name):  # "": nothing was trained
        raise SystemExit(
            f"{file} was trained for {made!r}, not {budget.name!r}: remove it, or give another --work"
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--seconds", type=float, default=1800, help="of training, for each trained method")
    parser.add_argument("--steps", type=int, default=0, help="in place of the seconds")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipes, to try some"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "convoy-lfw")
    options = parser.parse_args()
    budget = Budget(options.seconds, options.steps, tuple(options.set))
    folder = options.work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        file = folder / f"{name}.json"
        if not is_made(file, budget):
            row = make(name, options.work, budget, parse_changes(options.set))
            write_whole(file, json.dumps(asdict(row), indent=2) + "\n")
        print(f"{name}: {file}", flush=True)
    files = [folder / f"{name}.json" for name in NAMES]
    rows = [Row(**json.loads(file.read_text())) for file in files if file.is_file()]
    Console(width=200).print(table_of(rows))


if __name__ == "__main__":
    main()
