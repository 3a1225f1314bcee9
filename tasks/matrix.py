"""The rows that a gallery is searched by: unit vectors, and coarse ones of 8 bits beside them; see tasks/nearest.py."""

from dataclasses import dataclass

import numpy as np

LARGEST = 127  # of a coarse number


@dataclass(frozen=True)
class Matrix:
    """N unit vectors of D dimensions, and their coarse rows."""

    exact: np.ndarray  # (N, D) float32
    coarse: np.ndarray  # (N, D) int8
    # (N, 2) float32: the value of one coarse step, and the row's distance from its coarse one
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)


def matrix_of(vectors: np.ndarray) -> Matrix:
    """The matrix of float32 (N, D), any numbers that are finite."""
    exact = np.ascontiguousarray(vectors, np.float32)
    step = np.abs(exact).max(axis=1, initial=0) / LARGEST
    step = np.maximum(step, np.finfo(np.float32).tiny).astype(np.float32)
    wide = exact.astype(np.float64)
    coarse = np.rint(wide / step[:, None].astype(np.float64)).clip(-LARGEST, LARGEST)
    away = np.linalg.norm(wide - coarse * step[:, None].astype(np.float64), axis=1)
    away = np.nextafter((away * (1 + 1e-9)).astype(np.float32), np.float32(np.inf))  # never below the truth
    return Matrix(exact, coarse.astype(np.int8), np.stack([step, away], axis=1))
