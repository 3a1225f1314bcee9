"""Small colour pictures drawn by chance: smooth smears, and squares on them. What a stylizer is tried on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smear(seed: int, side_px: int = 24) -> bytes:
    """A PNG: four by four colours smoothly enlarged, and a square of another."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    pixels = np.array(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC))
    top, left = generator.integers(0, side_px // 2, 2)
    pixels[top : top + side_px // 3, left : left + side_px // 3] = generator.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_smears(folder: Path, num: int = 160, side_px: int = 24) -> Path:
    """So many of them in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(num):
        (folder / f"{seed:03d}.png").write_bytes(smear(seed, side_px))
    return folder
