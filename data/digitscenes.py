"""Scenes composed of scikit-learn's handwritten digits, in COCO's form: `sklearn:digit_scenes`.

Real digits at several sizes, some of them overlapping a little, on smooth backgrounds made by chance: a detection
dataset that needs no download. A digit stands in scenes of one split only. Each call gives the same bytes.
"""

import io
import json

import numpy as np
from PIL import Image

SIDE_PX = 96
NUM_SCENES = {"train": 400, "val": 80, "test": 120}
MOST_DIGITS = 5  # of a scene; some have none
SIDES_PX = (14, 40)  # of a digit's square, before it is cut to its ink
INK = 0.3  # of the strongest: what belongs to a digit
MOST_COVERED = 0.15  # of a digit, by another
TRIES = 20


def digit_scenes(digits: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """Files by name: PNGs of grey, and a JSON for each split. `digits` (N, 8, 8) uint8, `labels` (N,) 0…9."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(digits))
    total = sum(NUM_SCENES.values())
    files: dict[str, bytes] = {}
    start = 0
    for split, num in NUM_SCENES.items():
        end = start + len(digits) * num // total
        own = order[start:end]
        start = end
        images, annotations = [], []
        for number in range(num):
            scene, found = compose(digits[own], labels[own], generator)
            name = f"{split}/{number:04d}.png"
            buffer = io.BytesIO()
            Image.fromarray(scene).save(buffer, "PNG")
            files[name] = buffer.getvalue()
            images.append({"id": number, "file_name": name, "width": SIDE_PX, "height": SIDE_PX})
            annotations += [{"image_id": number, "iscrowd": 0, **each} for each in found]
        numbered = [{"id": i, **each} for i, each in enumerate(annotations)]
        categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
        document = {"images": images, "annotations": numbered, "categories": categories}
        files[f"annotations/instances_{split}.json"] = json.dumps(document).encode()
    return files


def compose(
    digits: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, object]]]:
    """One scene (SIDE_PX, SIDE_PX) uint8, and its boxes: `category_id`, `bbox` (x, y, w, h), `area`."""
    mesh = generator.uniform(0, 110, (4, 4)).astype(np.uint8)
    ground = np.asarray(Image.fromarray(mesh).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC), float)
    scene = ground + generator.normal(0, 4, ground.shape)
    taken = np.zeros(scene.shape, bool)
    boxes: list[dict[str, object]] = []
    for _ in range(int(generator.integers(0, MOST_DIGITS + 1))):
        chosen, side = int(generator.integers(len(digits))), int(generator.integers(*SIDES_PX))
        large = Image.fromarray(digits[chosen]).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(large, float) / 255
        rows, cols = np.flatnonzero((ink > INK).any(1)), np.flatnonzero((ink > INK).any(0))
        ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        height, width = ink.shape
        for _ in range(TRIES):
            y = int(generator.integers(0, SIDE_PX - height + 1))
            x = int(generator.integers(0, SIDE_PX - width + 1))
            part = (slice(y, y + height), slice(x, x + width))
            if taken[part].mean() <= MOST_COVERED:
                break
        else:
            continue
        scene[part] = scene[part] * (1 - ink) + generator.uniform(190, 255) * ink
        taken[part] = True
        boxes.append(
            {"category_id": int(labels[chosen]), "bbox": [x, y, width, height], "area": width * height}
        )
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8), boxes
