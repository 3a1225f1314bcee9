"""Faces of dots, drawn: two eyes, a nose, two corners of a mouth, and where they are."""

from pathlib import Path

import numpy as np
from PIL import Image

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
FACE = np.array([[-7, -6], [7, -6], [0, 0], [-5, 6], [5, 6]], float)  # pixels around its middle
LEVELS = np.array([220, 220, 120, 170, 170])


def write_faces(folder: Path, num: int = 400, side_px: int = 32) -> Path:
    """`num` grey pictures, turned and shifted at random, and `points.csv`; of every fifth, the nose is not given."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = [",".join(["path", *(f"{name}_{axis}" for name in POINTS for axis in "xy")])]
    y, x = np.mgrid[:side_px, :side_px]
    for number in range(num):
        angle, middle = rng.uniform(-0.4, 0.4), side_px / 2 + rng.uniform(-4, 4, 2)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = FACE @ turn * rng.uniform(0.8, 1.1) + middle
        away = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
        pixels = 20 + (LEVELS[:, None, None] * np.exp(-away / 4)).sum(0) + rng.uniform(0, 12, x.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"face{number:03d}.png")
        cells = [f"{value:.2f}" for value in points.ravel()]
        if number % 5 == 0:
            cells[4:6] = ["", ""]
        rows.append(",".join([f"face{number:03d}.png", *cells]))
    (folder / "points.csv").write_text("\n".join(rows) + "\n")
    return folder
