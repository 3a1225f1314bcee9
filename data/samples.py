"""Small datasets for demonstrations without a download: real ones that a dependency ships, and drawn ones.

`sklearn:digits`: 1,797 handwritten digits of the UCI "Optical Recognition of Handwritten Digits" test set, 8×8,
as scikit-learn ships them (https://archive.ics.uci.edu/dataset/80, CC BY 4.0).
`sklearn:digit_scenes`: scenes composed of these digits, with a box around each (data.digitscenes).
`skimage:lfw_subset`: 100 faces and 100 patches of backgrounds, 25×25 grey, cut from Labeled Faces in the Wild, as
scikit-image ships them (https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.lfw_subset).
`convoy:synthetic_faces`: 80 people with 10 pictures each, drawn from parameters (data.syntheticfaces).
`convoy:face_points`: the same pictures with the places of eyes, nose and mouth.
`skimage:photos`: the photographs of scikit-image that show things and textures, as they are: content for style.
Beside them the photographs in `PHOTOS`, of scikit-image's too: one picture each, to look for something in,
and the style pictures of data.paintings.
"""

import gzip
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.archive import FileTree, memory_tree
from data.digitscenes import digit_scenes
from data.paintings import PAINTINGS, paint
from data.syntheticfaces import face_points, synthetic_faces


@dataclass(frozen=True, slots=True)
class Sample:
    """One built-in dataset: its files by name, as they would lie in a folder."""

    files: Callable[[], dict[str, bytes]]
    licence: str


def sample_digits() -> Iterator[tuple[str, bytes, str]]:
    """Yield (id, PNG bytes, "0" to "9") of the digits: 8×8 grey, the values 0 to 16 scaled to 0 to 255."""
    for i, (image, label) in enumerate(zip(*_digits(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield f"{label}/{i:04d}.png", buffer.getvalue(), str(label)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits (1797, 8, 8) uint8, and what they are (1797,) int64."""
    with gzip.open(_shipped("sklearn", "datasets/data/digits.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",")  # (1797, 65): 64 values and the label
    return np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, 64].astype(int)


def sample_digit_scenes() -> dict[str, bytes]:
    """Scenes of these digits with their boxes; see data.digitscenes."""
    return digit_scenes(*_digits())


def sample_lfw_subset() -> Iterator[tuple[str, bytes, str]]:
    """Yield (id, PNG bytes, "face" or "other") of the patches: 25×25 grey, the values 0 to 1 scaled to 0 to 255."""
    patches = np.load(_shipped("skimage", "data/lfw_subset.npy"))  # (200, 25, 25) float64, the faces first
    for i, patch in enumerate(np.rint(patches * 255).astype(np.uint8)):
        label = "face" if i < len(patches) // 2 else "other"
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "PNG")
        yield f"{label}/{i:03d}.png", buffer.getvalue(), label


def _shipped(package: str, file: str) -> Path:
    # the file itself: to import scikit-learn or scikit-image takes seconds, and the command line would wait for it
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{package} is not installed, and what was asked for is its own; run: make setup")
    return Path(spec.origin).parent / file


DRAWN_LICENCE = "synthetic: drawn by this project's code, as free as it is"
DIGITS_LICENCE = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
NO_SCENES = ("horse", "page", "text")  # of PHOTOS: silhouettes and letters
# of few, chance holds out none
HELD_OUT = {"astronaut": "test", "chelsea": "test", "coffee": "test", "rocket": "val"}
PHOTOS = {  # name → file in scikit-image
    f"skimage:{Path(file).stem}": f"data/{file}"
    for file in (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
        "page.png", "retina.jpg", "rocket.jpg", "text.png",
    )
}  # fmt: skip


def sample_photos() -> dict[str, bytes]:
    """The files of `PHOTOS` but NO_SCENES, as SPLIT/pictures/NAME."""
    files = [Path(file) for file in PHOTOS.values() if Path(file).stem not in NO_SCENES]
    return {
        f"{HELD_OUT.get(file.stem, 'train')}/pictures/{file.name}": _shipped(
            "skimage", str(file)
        ).read_bytes()
        for file in files
    }


SAMPLES: dict[str, Sample] = {
    "sklearn:digits": Sample(lambda: {id: data for id, data, _ in sample_digits()}, DIGITS_LICENCE),
    "sklearn:digit_scenes": Sample(sample_digit_scenes, DIGITS_LICENCE),
    "skimage:lfw_subset": Sample(
        lambda: {id: data for id, data, _ in sample_lfw_subset()},
        "not stated (Labeled Faces in the Wild: photographs from news sites)",
    ),
    "skimage:photos": Sample(
        sample_photos, "of each as https://scikit-image.org/docs/stable/api/skimage.data.html says"
    ),
    "convoy:synthetic_faces": Sample(synthetic_faces, DRAWN_LICENCE),
    "convoy:face_points": Sample(face_points, DRAWN_LICENCE),
}


def read_photo(photo: Path | str) -> bytes:
    """The bytes of a picture's file, or of one of `PHOTOS` or `PAINTINGS`; raises FileNotFoundError naming these."""
    name = str(photo)
    if name in PAINTINGS and not Path(name).exists():
        return paint(name)
    if name in PHOTOS and not Path(name).exists():
        return _shipped("skimage", PHOTOS[name]).read_bytes()
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no such picture: {name}; give a file, or {', '.join((*PHOTOS, *PAINTINGS))}"
        )
    return Path(name).read_bytes()


def sample_tree(name: str) -> FileTree:
    """A built-in dataset as a tree of its files; raises a ValueError naming the known ones."""
    if name not in SAMPLES:
        raise ValueError(f"no built-in dataset {name!r}; known: {', '.join(SAMPLES)}")
    return memory_tree(name, SAMPLES[name].files())
