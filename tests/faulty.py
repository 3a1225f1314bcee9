"""Sources that no check finds anything in, one a family, and a fault for each check to find in one of them."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.annotated import coco_json, pts, voc_xml
from tests.pictures import encode, picture, png, png_bomb
from tests.test_data_decode import with_orientation
from tests.waves import tone, wav

Files = dict[str, bytes]
TRAIN, VAL, TEST = 22, 3, 52  # pictures a class: enough that no check finds few
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


@cache
def stock(seed: int) -> bytes:
    """A PNG that is like no other; many sources are made of the same few hundred."""
    return png(seed)


def classification() -> Files:
    """Two classes, split."""
    files: Files = {}
    for number, label in enumerate("ab"):
        for start, (split, count) in zip((0, 100, 200), SPLITS.items(), strict=True):
            files |= {f"{split}/{label}/{i}.png": stock(1000 * number + start + i) for i in range(count)}
    return files


def class_c(train: int, test: int, val: int = 1) -> Files:
    """A third class."""
    numbers = {"train": (2000, train), "test": (2200, test), "val": (2400, val)}
    return {
        f"{split}/c/{i}.png": stock(start + i) for split, (start, num) in numbers.items() for i in range(num)
    }


def detection(
    *more: dict[str, Any],
    categories: tuple[str, ...] = ("cat", "dog"),
    image: dict[str, Any] | None = None,
    lost: bool = False,
) -> Files:
    """COCO: a cat and a dog on each picture; `more` annotations and an `image`'s own keys are of the first of train."""
    files: Files = {}
    for start, (split, count) in zip((0, 100, 200), {**SPLITS, "test": 2 * TEST}.items(), strict=True):
        images = [{"file_name": f"{i}.png"} for i in range(count)]
        boxes = [
            {"image_id": i, "category_id": label, "bbox": bbox}
            for i in range(count)
            for label, bbox in ((1, [2, 2, 20, 20]), (2, [25, 5, 15, 30]))
        ]
        if split == "train":
            boxes += [{"image_id": 0, **annotation} for annotation in more]
            images[0] |= image or {}
            images += [{"file_name": "lost.png"}] if lost else []
        files[f"instances_{split}.json"] = coco_json(images, boxes, categories)
        files |= {f"{split}/{i}.png": stock(start + i) for i in range(count)}
    return files


def box(*bbox: float, label: int = 1) -> dict[str, Any]:
    return {"category_id": label, "bbox": list(bbox)}


def voc() -> Files:
    """Pascal VOC, which alone has a file of annotations for each picture."""
    files: Files = {}
    for start, (split, count) in zip((0, 100, 200), {**SPLITS, "test": 2 * TEST}.items(), strict=True):
        for i in range(count):
            files[f"{split}/{i}.png"] = stock(start + i)
            files[f"{split}/{i}.xml"] = voc_xml(("cat", 3, 3, 20, 20), ("dog", 25, 5, 40, 35))
    return files


def faces() -> Files:
    """Six people of four pictures, split by lists, and a pair."""
    files = {
        f"{name}/{i}.png": stock(100 * number + i) for number, name in enumerate("abcdef") for i in range(4)
    }
    lists = {"train_ids.txt": b"a\nb\n", "val_ids.txt": b"c\nd\n", "test_ids.txt": b"e\nf\n"}
    return files | lists | {"pairs.csv": b"path_a,path_b,same\ne/1.png,e/2.png,1\n"}


def landmarks() -> Files:
    """Two points on each picture."""
    files: Files = {}
    for start, (split, count) in zip((0, 100, 200), SPLITS.items(), strict=True):
        for i in range(count):
            files |= {f"{split}/{i}.png": stock(start + i), f"{split}/{i}.pts": pts((5, 5), (9, 9))}
    return files


def style() -> Files:
    """Pictures of two folders."""
    return {
        f"{top}/{i}.png": stock(100 * j + i) for j, top in enumerate(("content", "style")) for i in range(40)
    }


def signals() -> Files:
    """Two classes of tones, split."""
    return {
        f"{split}/{label}/{i}.wav": wav(tone(1000 * number + start + i, 2 + 3 * number))
        for number, label in enumerate(("high", "low"))
        for start, (split, count) in zip((0, 100, 200), SPLITS.items(), strict=True)
        for i in range(count)
    }


def volumes() -> Files:
    """Two classes of noise, split."""
    return {
        f"{split}/{label}/{i}.npy": noise(1000 * number + start + i)
        for number, label in enumerate("ab")
        for start, (split, count) in zip((0, 100, 200), SPLITS.items(), strict=True)
        for i in range(count)
    }


def noise(seed: int, *shape: int) -> bytes:
    """A volume of 6x6x6, or of a shape."""
    return npy(np.random.default_rng(seed).normal(size=shape or (6, 6, 6)).astype(np.float32))


def npy(values: np.ndarray) -> bytes:
    """As NumPy writes it, objects pickled."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def gap(*places: int, value: float = np.nan) -> np.ndarray:
    """A tone that has `value` at some places."""
    values = tone(5000, 2)
    values[list(places)] = value
    return values


SOUND: dict[str, tuple[str, Callable[[], Files]]] = {  # name: family and source
    "classification": ("classification", classification),
    "detection": ("detection", detection),
    "voc": ("detection", voc),
    "faces": ("faces", faces),
    "landmarks": ("landmarks", landmarks),
    "style": ("style", style),
    "signals": ("signals", signals),
    "volumes": ("volumes", volumes),
}


@dataclass(frozen=True)
class Planted:
    """A fault: what is added to a sound source, or what takes its place, and what the check is to say."""

    count: int
    severity: str
    sound: str = "classification"
    add: Files = field(default_factory=dict)
    instead: Callable[[], Files] | None = None
    drop: str = ""  # files whose names start so are left out
    ingest: dict[str, Any] = field(default_factory=dict)

    def files(self) -> Files:
        base = self.instead() if self.instead else SOUND[self.sound][1]()
        return {
            name: data for name, data in base.items() if not self.drop or not name.startswith(self.drop)
        } | self.add


def jpeg(seed: int) -> bytes:
    """What `stock(seed)` shows, in other bytes."""
    return encode(picture(seed), "JPEG", quality=80)


def damaged() -> bytes:
    """A PNG with wrong bytes in its middle."""
    data = bytearray(png(1))
    data[400:420] = bytes(20)
    return bytes(data)


def animated() -> bytes:
    frames = [picture(seed).convert("P") for seed in (61, 62)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def deep() -> bytes:
    return encode(Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30))


def pairs(*rows: str) -> Files:
    return {"pairs.csv": "\n".join(["path_a,path_b,same", *rows, ""]).encode()}


def patients() -> Files:
    """A table in which the patient `d` stands in train and in test, with two pictures in each."""
    files: Files = {}
    rows = ["path,x0,y0,x1,y1,split,group"]
    for j, (split, names) in enumerate({"train": "abcd", "test": "defg"}.items()):
        for k, name in enumerate(names):
            for i in range(2):
                path = f"{split}-{name}-{i}.png"
                files[path] = stock(1000 * j + 100 * k + i)
                rows.append(f"{path},5,5,9,9,{split},{name}")
    return {**files, "points.csv": "\n".join([*rows, ""]).encode()}


PLANTED: dict[str, Planted] = {
    "unreadable": Planted(1, "warning", add={"train/a/x.png": damaged()}),
    "truncated": Planted(1, "warning", add={"train/a/x.png": png(5000)[:900]}),
    "not-an-image": Planted(2, "warning", add={"train/a/x.jpg": b"text", "train/b/x.png": b""}),
    "decompression-bomb": Planted(1, "warning", add={"train/a/x.png": png_bomb(30_000, 30_000)}),
    "annotation-unreadable": Planted(1, "warning", "voc", add={"train/0.xml": b"<annotation><object>"}),
    "wrong-extension": Planted(1, "info", add={"train/a/y.jpg": png(5001)}),
    "cmyk": Planted(1, "warning", add={"train/a/x.jpg": encode(picture(5000).convert("CMYK"), "JPEG")}),
    "deep": Planted(1, "info", add={"train/a/x.png": deep()}),
    "alpha": Planted(1, "info", add={"train/a/x.png": encode(picture(5000).convert("RGBA"))}),
    "animated": Planted(1, "warning", add={"train/a/x.gif": animated()}),
    "exif-rotated": Planted(1, "info", add={"train/a/x.jpg": with_orientation(picture(5000), 6, "JPEG")}),
    "tiny-pictures": Planted(1, "warning", add={"train/a/x.png": png(5000, 6, 40)}),
    "extreme-aspect": Planted(1, "info", add={"train/a/x.png": png(5000, 161, 40)}),
    "duplicates": Planted(2, "warning", add={"train/a/x.png": stock(0), "train/a/y.png": stock(0)}),
    "near-duplicates": Planted(1, "info", add={"train/a/x.jpg": jpeg(0)}),
    "duplicates-across-splits": Planted(1, "warning", add={"test/a/x.png": stock(0)}),
    "near-duplicates-across-splits": Planted(1, "warning", add={"test/a/x.jpg": jpeg(0)}),
    "groups-across-splits": Planted(2, "warning", "landmarks", instead=lambda: patients()),
    "conflicting-labels": Planted(2, "warning", add={"train/b/x.png": stock(0)}),
    "conflicting-near-duplicates": Planted(2, "warning", add={"train/b/x.jpg": jpeg(0)}),
    "class-missing": Planted(1, "error", add=class_c(train=0, test=4)),
    "no-training-boxes": Planted(
        1, "error", "detection",
        add={"instances_train.json": coco_json([{"file_name": f"{i}.png"} for i in range(TRAIN)], [], ("cat", "dog"))},
    ),
    "class-untrained": Planted(
        1, "warning", "detection",
        add={
            "instances_test.json": coco_json(
                [{"file_name": f"{i}.png"} for i in range(2 * TEST)],
                [{"image_id": i, "category_id": 1 + i % 2, "bbox": [2, 2, 20, 20]} for i in range(2 * TEST)]
                + [{"image_id": 0, "category_id": 3, "bbox": [2, 2, 30, 30]}],
                ("cat", "dog", "bird"),
            )
        },
        instead=lambda: detection(categories=("cat", "dog", "bird")),
    ),
    "class-unused": Planted(1, "info", "detection", instead=lambda: detection(categories=("cat", "dog", "bird"))),
    "class-untested": Planted(1, "warning", add=class_c(train=TRAIN, test=0)),
    "class-unvalidated": Planted(1, "warning", add=class_c(train=TRAIN, test=4, val=0)),
    "class-imbalance": Planted(1, "warning", add=class_c(train=2, test=4)),
    "few-pictures": Planted(1, "warning", add=class_c(train=19, test=4)),
    "single-picture-identities": Planted(1, "info", "faces", add={"g/0.png": stock(900)}),
    "no-test-split": Planted(1, "error", drop="test/", ingest={"test_fraction": 0.0}),
    "no-validation-split": Planted(1, "info", drop="val/", ingest={"val_fraction": 0.0}),
    "few-test-pictures": Planted(
        99, "warning", drop="test/a/", add={f"test/a/{i}.png": stock(200 + i) for i in range(47)}
    ),
    "label-unknown": Planted(1, "warning", "detection", instead=lambda: detection(box(2, 2, 9, 9, label=7))),
    "box-outside": Planted(1, "warning", "detection", instead=lambda: detection(box(60, 60, 5, 5))),
    "box-clipped": Planted(1, "info", "detection", instead=lambda: detection(box(30, 30, 30, 30))),
    "box-empty": Planted(1, "warning", "detection", instead=lambda: detection(box(5, 5, 0, 5))),
    "box-inverted": Planted(1, "warning", "detection", instead=lambda: detection(box(9, 9, -5, 5))),
    "box-not-finite": Planted(1, "warning", "detection", instead=lambda: detection(box(float("nan"), 1, 5, 5))),
    "box-duplicated": Planted(1, "warning", "detection", instead=lambda: detection(box(2, 2, 20, 20))),
    "box-area-unusable": Planted(
        1, "warning", "detection", instead=lambda: detection(box(5, 5, 9, 9) | {"area": -1})
    ),
    "tiny-boxes": Planted(1, "info", "detection", instead=lambda: detection(box(5, 5, 0.4, 9))),
    "pictures-without-boxes": Planted(
        1, "info", "detection",
        add={
            "instances_val.json": coco_json(
                [{"file_name": f"{i}.png"} for i in range(VAL)],
                [{"image_id": i, "category_id": 1 + i, "bbox": [2, 2, 20, 20]} for i in range(2)],
            )
        },
    ),
    "annotation-size-differs": Planted(
        1, "warning", "detection", instead=lambda: detection(image={"width": 99, "height": 40})
    ),
    "annotations-unmatched": Planted(1, "warning", "detection", instead=lambda: detection(lost=True)),
    "pictures-unannotated": Planted(1, "info", "voc", add={"train/x.png": stock(5000)}),
    "point-outside": Planted(1, "warning", "landmarks", add={"train/0.pts": pts((5, 5), (99, 9))}),
    "point-missing": Planted(1, "info", "landmarks", instead=lambda: points_csv("train/a/0.png,5,5,,")),
    "pair-unusable": Planted(1, "warning", "faces", add=pairs("e/1.png,e/2.png,1", "e/1.png,e/9.png,1")),
    "not-numeric": Planted(
        3, "warning", "signals",
        add={
            "train/low/x.npy": npy(np.array([{}, 1.5], object)),
            "train/low/y.npy": npy(np.array(["1", "2"])),
            "train/low/z.npy": npy(tone(5000, 2).astype(np.complex64)),
        },
    ),
    "not-finite": Planted(
        2, "warning", "signals",
        add={"train/low/x.npy": npy(gap(3, value=np.inf)), "train/low/y.npy": npy(gap(*range(64)))},
    ),
    "no-values": Planted(
        2, "warning", "signals",
        add={"train/low/x.npy": npy(np.zeros((1, 0), np.float32)), "train/low/y.wav": wav(np.zeros(0))},
    ),
    "wrong-shape": Planted(
        3, "warning", "volumes",
        add={
            "train/a/x.npy": noise(5000, 6, 6),
            "train/a/y.npy": noise(5000, 2, 6, 6, 6),
            "train/a/z.npy": noise(5000, 1, 1, 6, 6, 6),
        },
    ),
    "values-filled": Planted(1, "warning", "signals", add={"train/low/x.npy": npy(gap(3, 4, 5))}),
    "constant": Planted(1, "warning", "signals", add={"train/low/x.wav": wav(np.full(64, 0.5))}),
    "uneven-lengths": Planted(
        2, "info", "signals",
        add={"train/low/x.wav": wav(tone(5000, 2, 64 * 9)), "train/low/y.wav": wav(tone(5000, 2, 7))},
    ),
    "pair-trained": Planted(1, "warning", "faces", add=pairs("e/1.png,e/2.png,1", "a/1.png,e/1.png,0")),
}  # fmt: skip


def points_csv(first: str) -> Files:
    """A table of landmarks whose first row is `first`."""
    rows = [f"train/a/{i}.png,5,5,9,9" for i in range(1, TRAIN)]
    pictures = {f"train/a/{i}.png": stock(i) for i in range(TRAIN)}
    return pictures | {"points.csv": "\n".join(["path,x0,y0,x1,y1", first, *rows, ""]).encode()}
