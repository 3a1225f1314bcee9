"""Faces in pictures: models/mtcnn.py against facenet-pytorch's own code, with the same weights, in turn.

    .venv/bin/pip download --no-deps facenet-pytorch -d /tmp/fp && unzip -o /tmp/fp/*.whl -d /tmp/fp
    PYTHONPATH=.:/tmp/fp .venv/bin/python benchmarks/facedetect.py [facial_keypoints_112.tar]

The package imports two functions of torchvision, one of which it calls: our own NMS stands in for it, so both sides
have the same. Scikit-image's astronaut at three sizes, faces of 20 pixels and more; given the archive, also how far the
five points are from those of its 68, as a share of the distance between the eyes.
"""

import csv
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data as photographs

from benchmarks.timing import milliseconds
from data.alignment import five_of_68
from models.boxes import nms
from models.mtcnn import Search
from tasks.faceweights import load_mtcnn

ROUNDS, NUM_FACES = 5, 174
SIZES = ((320, 240), (640, 480), (1280, 960))


def theirs() -> Any:
    """facenet-pytorch's detector, keeping all faces, on the CPU."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops")
    stand_ins = {name: ModuleType(name) for name in (*names, "torchvision.ops.boxes")}
    stand_ins["torchvision.transforms"].functional = stand_ins[names[2]]  # type: ignore[attr-defined]
    stand_ins["torchvision.ops.boxes"].batched_nms = (  # type: ignore[attr-defined]
        lambda boxes, scores, image, iou: nms(boxes, scores, iou, labels=image)
    )
    sys.modules.update(stand_ins)
    from facenet_pytorch.models.mtcnn import MTCNN

    return MTCNN(keep_all=True, device="cpu")


def main(archive: Path | None) -> None:
    net, peer, search = load_mtcnn("package:facenet_pytorch")[0], theirs(), Search()
    view = Table(
        "picture",
        "facenet-pytorch ms",
        "ours ms",
        "ratio",
        "faces",
        title=f"{torch.get_num_threads()} threads",
    )
    astronaut = Image.fromarray(photographs.astronaut())
    for size in SIZES:
        picture = astronaut.resize(size)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        times = milliseconds(ROUNDS, lambda p=picture: peer.detect(p), lambda p=pixels: net(p, search))
        faces = f"{len(peer.detect(picture)[1])} and {len(net(pixels, search).scores)}"
        cells = [f"{time:,.0f}" for time in times]
        view.add_row(f"{size[0]} x {size[1]}", *cells, f"{times[1] / times[0]:.2f}", faces)
    Console().print(view)
    if archive is not None:
        Console().print(accuracy(archive, net, peer, search))


def accuracy(archive: Path, net: Any, peer: Any, search: Search) -> Table:
    """Mean error of the five points on the archive's test faces."""
    errors: tuple[list[float], list[float]] = ([], [])
    with tarfile.open(archive) as tar:
        rows = list(csv.reader(io.TextIOWrapper(tar.extractfile("test_keypoints.csv"))))[1 : NUM_FACES + 1]  # type: ignore[arg-type]
        for name, *values in rows:
            picture = Image.open(tar.extractfile(f"test/{name}")).convert("RGB")  # type: ignore[arg-type]
            wanted = five_of_68(torch.tensor([float(value) for value in values]).view(68, 2))
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
            said = peer.detect(picture, landmarks=True)[2]
            for each, points in zip(errors, (said, net(pixels, search).points_xy), strict=True):
                if points is not None and len(points):
                    near = torch.as_tensor(np.asarray(points, np.float32)) - wanted
                    each.append(float(near.norm(dim=2).mean(1).min() / (wanted[1] - wanted[0]).norm()))
    view = Table("points", "facenet-pytorch", "ours", title=f"{len(rows)} faces with 68 landmarks")
    view.add_row("faces found", *(str(len(each)) for each in errors))
    view.add_row("mean error, of the eyes' distance", *(f"{np.mean(each):.1%}" for each in errors))
    return view


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
