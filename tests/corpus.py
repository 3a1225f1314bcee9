"""Sound files to damage: real ones, and pictures in every format and variant of it that is read."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

SIDE_PX = 96  # of conversions


@dataclass(frozen=True)
class Sound:
    """A file that is as it should be, and the source that it is part of."""

    kind: str  # the format, and behind a comma which variant of it
    name: str
    data: bytes
    family: str = "classification"
    files: dict[str, bytes] = field(default_factory=dict)  # of the source, this one among them


@dataclass(frozen=True)
class Corpus:
    """What cases are drawn from."""

    images: list[Sound]
    sources: list[Sound]  # annotations
    archives: list[Sound]
    arrays: list[Sound]  # signals and volumes


def load_corpus(datasets: Path) -> Corpus:
    """Read a few files of each kind; the same ones each time."""
    real = _real_images(datasets)
    small = {
        f"{'ab'[i % 2]}/{i}.jpg": data
        for i, data in enumerate(read_tar(datasets / "cifar10_mini.tar", ".jpg", 8, 97).values())
    }
    images = [Sound(f"{kind}, real", name, data, files=small) for kind, name, data in real]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for _, _, data in real[::7]]
    for i, picture in enumerate(pictures):
        picture.thumbnail((SIDE_PX, SIDE_PX + 16 * i))
        images += [
            Sound(kind, f"{i}", convert(picture), files=small) for kind, convert in CONVERSIONS.items()
        ]
    archives = [Sound(f"archive, {kind}", kind, pack(small, kind), files=small) for kind in PACKINGS]
    return Corpus(images, _sources(datasets, small), archives, _arrays(datasets))


def read_tar(path: Path, ending: str, number: int, step: int = 1) -> dict[str, bytes]:
    """Every `step`-th file whose name ends so, until there are `number`."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        seen = 0
        for member in tar:
            if member.isfile() and member.name.endswith(ending):
                if seen % step == 0:
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name] = file.read()
                seen += 1
            if len(found) == number:
                break
    return found


def _real_images(datasets: Path) -> list[tuple[str, str, bytes]]:
    wanted = (
        ("JPEG", "voc40.tar", ".jpg", 4), ("JPEG", "coco128_yolo.tar", ".jpg", 4), ("JPEG", "bccd.tar", ".jpg", 2),
        ("JPEG", "trashnet_150.tar.xz", ".jpg", 4), ("JPEG", "hymenoptera_240.tar", ".jpg", 4),
        ("JPEG", "cifar10_mini.tar", ".jpg", 6), ("JPEG", "style_transfer.tar", ".jpg", 2),
        ("PNG", "facial_keypoints_112.tar", ".jpg", 10), ("PGM", "orl_faces.tar.xz", ".pgm", 10),
    )  # fmt: skip
    return [
        (kind, name, data)
        for kind, file, ending, number in wanted
        for name, data in read_tar(datasets / file, ending, number, 7).items()
    ]


def _save(kind: str, mode: str = "RGB", **options: Any) -> Callable[[Image.Image], bytes]:
    def convert(picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        picture.convert(mode).save(stream, kind, **options)
        return stream.getvalue()

    return convert


def _turned(kind: str) -> Callable[[Image.Image], bytes]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    return _save(kind, exif=exif)


def _deep(kind: str) -> Callable[[Image.Image], bytes]:
    def convert(picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(stream, kind)
        return stream.getvalue()

    return convert


def _moving(kind: str) -> Callable[[Image.Image], bytes]:
    def convert(picture: Image.Image) -> bytes:
        frames = [picture, picture.rotate(90), picture.rotate(180)]
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        return stream.getvalue()

    return convert


def _see_through(kind: str) -> Callable[[Image.Image], bytes]:
    def convert(picture: Image.Image) -> bytes:
        clear = picture.convert("RGBA")
        clear.putalpha(picture.convert("L"))
        return _save(kind, "RGBA")(clear)

    return convert


def _plain_ppm(magic: str, mode: str) -> Callable[[Image.Image], bytes]:
    def convert(picture: Image.Image) -> bytes:
        values = np.asarray(picture.convert(mode)).ravel()
        top = "" if mode == "1" else "255\n"
        numbers = " ".join(str(int(value)) for value in values)
        return f"{magic}\n# plain\n{picture.width} {picture.height}\n{top}{numbers}\n".encode()

    return convert


CONVERSIONS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, progressive": _save("JPEG", progressive=True),
    "JPEG, CMYK": _save("JPEG", "CMYK"),
    "JPEG, grey": _save("JPEG", "L"),
    "JPEG, EXIF": _turned("JPEG"),
    "JPEG, restarts": _save("JPEG", restart_marker_blocks=4, subsampling="4:4:4"),
    "PNG, RGB": _save("PNG"),
    "PNG, palette": _save("PNG", "P", transparency=b"\0\x80" * 8),
    "PNG, alpha": _see_through("PNG"),
    "PNG, 16-bit": _deep("PNG"),
    "PNG, EXIF": _turned("PNG"),
    "PNG, animated": _moving("PNG"),
    "PNG, 1-bit": _save("PNG", "1"),
    "GIF": _save("GIF", "P"),
    "GIF, animated": _moving("GIF"),
    "BMP": _save("BMP"),
    "BMP, palette": _save("BMP", "P"),
    "WEBP": _save("WEBP"),
    "WEBP, lossless": _see_through("WEBP"),
    "WEBP, animated": _moving("WEBP"),
    "WEBP, EXIF": _turned("WEBP"),
    "TIFF": _save("TIFF"),
    "TIFF, LZW": _save("TIFF", compression="tiff_lzw"),
    "TIFF, deflate": _save("TIFF", compression="tiff_adobe_deflate"),
    "TIFF, JPEG": _save("TIFF", compression="jpeg"),
    "TIFF, fax": _save("TIFF", "1", compression="group4"),
    "TIFF, CMYK": _save("TIFF", "CMYK"),
    "TIFF, 16-bit": _deep("TIFF"),
    "TIFF, pages": _moving("TIFF"),
    "TIFF, EXIF": _turned("TIFF"),
    "PPM": _save("PPM"),
    "PPM, plain": _plain_ppm("P3", "RGB"),
    "PBM": _save("PPM", "1"),
    "PBM, plain": _plain_ppm("P1", "1"),
    "PGM, plain": _plain_ppm("P2", "L"),
    "PGM, 16-bit": _deep("PPM"),
}


def pack(files: dict[str, bytes], kind: str) -> bytes:
    """An archive of these files."""
    stream = io.BytesIO()
    if kind.startswith("zip"):
        with zipfile.ZipFile(stream, "w", PACKINGS[kind]) as packed:
            for name, data in files.items():
                packed.writestr(zipfile.ZipInfo(name), data, PACKINGS[kind])
        return stream.getvalue()
    with tarfile.open(
        fileobj=stream, mode=PACKINGS[kind], format=tarfile.PAX_FORMAT if kind == "tar pax" else None
    ) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if kind == "tar pax":
                member.pax_headers = {"comment": "é" * 40}
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


PACKINGS: dict[str, Any] = {
    "tar": "w", "tar pax": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz",
    "zip": zipfile.ZIP_DEFLATED, "zip stored": zipfile.ZIP_STORED,
}  # fmt: skip


SPLIT_LISTS = {"train.txt": b"a/2.jpg\nb/3.jpg\n", "test.txt": b"a/0.jpg\nb/1.jpg\n"}


def _sources(datasets: Path, small: dict[str, bytes]) -> list[Sound]:
    """Annotations of every format, each with its images."""
    sources = [
        ("Pascal VOC", "detection", ".xml", _voc(datasets)),
        ("COCO", "detection", ".json", _coco(datasets)),
        ("YOLO, text", "detection", ".txt", _yolo(datasets)),
        ("YOLO, data.yaml", "detection", ".yaml", _yolo(datasets)),
        ("landmarks, CSV", "landmarks", ".csv", (points := _landmarks(datasets))),
        ("landmarks, .pts", "landmarks", ".pts", _pts(points)),
        ("faces, lists", "faces", ".txt", (people := _people(datasets))),
        ("faces, pairs.csv", "faces", ".csv", _pairs_csv(people)),
        ("classes, CSV", "classification", ".csv", small | {"table.csv": _table(small)}),
        ("classes, lists of splits", "classification", ".txt", small | SPLIT_LISTS),
    ]  # fmt: skip
    return [
        Sound(kind, name, data, family, files)
        for kind, family, ending, files in sources
        for name, data in files.items()
        if name.endswith(ending)
    ]


def _table(small: dict[str, bytes]) -> bytes:
    rows = [f"{name},{name[0]},{'train' if i else 'test'},group{i}" for i, name in enumerate(small)]
    return "\n".join(["path,label,split,group", *rows]).encode()


def _voc(datasets: Path) -> dict[str, bytes]:
    notes = read_tar(datasets / "voc40.tar", ".xml", 4)
    stems = [Path(name).stem for name in notes]
    images = read_tar(datasets / "voc40.tar", ".jpg", 40)
    lists = {"ImageSets/Main/train.txt": "\n".join(stems).encode()}
    return notes | {name: data for name, data in images.items() if Path(name).stem in stems} | lists


def _coco(datasets: Path) -> dict[str, bytes]:
    images = read_tar(datasets / "street_voc5.tar", ".jpg", 4)
    (text,) = read_tar(datasets / "street_voc5.tar", "instances_train.json", 1).values()
    document = json.loads(text)
    names = {Path(name).name for name in images}
    document["images"] = [image for image in document["images"] if image["file_name"] in names]
    ids = {image["id"] for image in document["images"]}
    document["annotations"] = [note for note in document["annotations"] if note["image_id"] in ids]
    return images | {"annotations/instances_train.json": json.dumps(document).encode()}


def _yolo(datasets: Path) -> dict[str, bytes]:
    path = datasets / "coco128_yolo.tar"
    images = read_tar(path, ".jpg", 4)
    labels = read_tar(path, ".txt", 200)
    stems = {Path(name).stem for name in images}
    return images | read_tar(path, ".yaml", 1) | {k: v for k, v in labels.items() if Path(k).stem in stems}


def _landmarks(datasets: Path) -> dict[str, bytes]:
    images = read_tar(datasets / "facial_keypoints_112.tar", ".jpg", 5)
    (table,) = read_tar(datasets / "facial_keypoints_112.tar", "test_keypoints.csv", 1).values()
    lines = table.decode().splitlines()
    names = {Path(name).name for name in images}
    rows = [line for line in lines[1:] if line.split(",")[0] in names]
    return images | {"test_keypoints.csv": "\n".join([lines[0], *rows]).encode()}


def _pts(source: dict[str, bytes]) -> dict[str, bytes]:
    images = {name: data for name, data in source.items() if name.endswith(".jpg")}
    rows = csv.reader(io.StringIO(source["test_keypoints.csv"].decode()))
    points = {row[0]: [f"{x} {y}" for x, y in zip(row[1::2], row[2::2], strict=True)] for row in rows}
    notes = {
        f"{name.rpartition('.')[0]}.pts": "\n".join(
            ["version: 1", f"n_points: {len(points[Path(name).name])}", "{", *points[Path(name).name], "}"]
        ).encode()
        for name in images
        if Path(name).name in points
    }
    return images | notes


def _people(datasets: Path) -> dict[str, bytes]:
    path = datasets / "lfw_deepfunneled_c128.tar.xz"
    files = read_tar(path, ".jpg", 12)
    names = sorted({Path(name).parent.name for name in files})
    people = {f"{Path(name).parent.name}/{Path(name).name}": data for name, data in files.items()}
    (pairs,) = read_tar(path, "pairsDevTest.txt", 1).values()
    wanted = [f"{names[0]}\t1\t{names[1]}\t1", f"{names[1]}\t1\t{names[2]}\t1"]
    head = pairs.decode().splitlines()[0]
    lists = {"train_ids.txt": "\n".join(names[3:]), "test_ids.txt": "\n".join(names[:3])}
    lists["pairsDevTest.txt"] = "\n".join([head, *wanted])
    return people | {name: text.encode() for name, text in lists.items()}


def _pairs_csv(people: dict[str, bytes]) -> dict[str, bytes]:
    images = {name: data for name, data in people.items() if name.endswith(".jpg")}
    names = sorted(images)
    rows = [
        f"{a},{b},{int(a.split('/')[0] == b.split('/')[0])},{i}" for i, (a, b) in enumerate(pairwise(names))
    ]
    return images | {"pairs.csv": "\n".join(["path_a,path_b,same,fold", *rows]).encode()}


def _arrays(datasets: Path) -> list[Sound]:
    """Signals and volumes of every format, each with the others of its source."""
    spoken = read_tar(datasets / "fsdd_20.tar.xz", ".wav", 6, 60)
    waves = {f"{Path(name).name[0]}/{Path(name).name}": data for name, data in spoken.items()}
    scans = read_tar(datasets / "hippocampus_100.tar", ".nii.gz", 4)
    brains = {f"{'ab'[i % 2]}/{Path(name).name}": data for i, (name, data) in enumerate(scans.items())}
    series = read_tar(datasets / "ucr_uea_ts.tar.xz", ".ts", 1)
    (lines,) = (data.decode().splitlines() for data in series.values())
    begin = next(i for i, line in enumerate(lines) if line.lower().startswith("@data"))
    few = "\n".join([*lines[: begin + 1], *lines[begin + 1 :: 20]]).encode()
    rows = [np.array(line.rpartition(":")[0].split(","), float) for line in lines[begin + 1 : begin + 5]]
    tables = {f"{'ab'[i % 2]}/{i}.csv": "\n".join(map(str, row)).encode() for i, row in enumerate(rows)}
    lines_of_table = [f"{'ab'[i % 2]},{','.join(map(str, row))}" for i, row in enumerate(rows)]
    head = ",".join(["label", *map(str, range(len(rows[0])))])
    table = {"rows.csv": "\n".join([head, *lines_of_table]).encode()}
    plain = {f"{'ab'[i % 2]}/{i}.npy": _saved(np.save, row) for i, row in enumerate(rows)}
    with np.load(datasets / "modelnet10_chair_monitor_vox32.npz") as file:
        part = {name: file[name][::200] for name in ("x_packed", "y", "is_test")} | {
            "classes": file["classes"]
        }
    solids = {"solids.npz": _saved(lambda target, **arrays: np.savez(target, **arrays), **part)}
    sources = [
        ("WAV", "signals", waves), ("signals, .ts", "signals", {"few.ts": few}), ("signals, CSV", "signals", tables),
        ("signals, table", "signals", table),
        ("npy", "signals", plain), ("NIfTI", "volumes", brains), ("npz", "volumes", solids),
    ]  # fmt: skip
    return [
        Sound(kind, name, data, family, files)
        for kind, family, files in sources
        for name, data in files.items()
    ]


def _saved(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()
