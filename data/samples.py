"""Small real datasets that a dependency ships, so that a demonstration needs no download.

`sklearn:digits`: 1,797 handwritten digits of the UCI "Optical Recognition of Handwritten Digits" test set, 8×8,
as scikit-learn ships them (https://archive.ics.uci.edu/dataset/80, CC BY 4.0).
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One built-in dataset: `images` yields (id, encoded image, label)."""

    images: Callable[[], Iterator[tuple[str, bytes, str]]]
    licence: str


def sample_digits() -> Iterator[tuple[str, bytes, str]]:
    """Yield (id, PNG bytes, "0" to "9") of the digits: 8×8 grey, the values 0 to 16 scaled to 0 to 255."""
    with gzip.open(_sklearn_data("digits.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",")  # (1797, 65): 64 values and the label
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for i, (image, label) in enumerate(zip(pixels, table[:, 64].astype(int).tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield f"{label}/{i:04d}.png", buffer.getvalue(), str(label)


def _sklearn_data(file: str) -> Path:
    # the file itself: `import sklearn.datasets` takes seconds, and the command line would wait for it
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError(
            "scikit-learn is not installed, and the built-in digits are its own; run: make setup"
        )
    return Path(spec.origin).parent / "datasets" / "data" / file


SAMPLES: dict[str, Sample] = {
    "sklearn:digits": Sample(sample_digits, "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"),
}


def sample_tree(name: str) -> FileTree:
    """A built-in dataset as a tree of one folder per class; raises a ValueError naming the known ones."""
    if name not in SAMPLES:
        raise ValueError(f"no built-in dataset {name!r}; known: {', '.join(SAMPLES)}")
    return memory_tree(name, {id: data for id, data, _ in SAMPLES[name].images()})
