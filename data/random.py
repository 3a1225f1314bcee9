"""Randomness that belongs to a sample, not to a process.

A batch may be made in the training loop, in a Ray worker, or again after a crash, beside any neighbours. So the
numbers that augment a picture are a pure function of (seed, epoch, index of the sample, name of the draw):
SplitMix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195) applied to a counter, vectorised
over the samples of a batch. No state is kept, so nothing has to be restored.
"""

import zlib
from dataclasses import dataclass

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Mix 64-bit counters into 64 uniform bits each; uint64 in, uint64 of the same shape out."""
    with np.errstate(over="ignore"):  # wrap-around modulo 2^64 is the algorithm
        x = x + _GAMMA
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class SampleGenerator:
    """The source of every random choice made for the samples of one epoch, and how far the training is.

    `done` is the share of the training that is over, in [0, 1]: augmentation that ends before training does looks at
    it. No draw depends on it.
    """

    seed: int
    epoch: int
    done: float = 0.0

    def uniform(self, indices: np.ndarray, name: str, num: int = 1) -> np.ndarray:
        """Draw `num` float64 in [0, 1) for each sample.

        `indices` (B,) are the samples' places in the split; the same (seed, epoch, index, name) always gives the
        same numbers. Returns (B, num).
        """
        key = np.array([self.seed, self.epoch, zlib.crc32(name.encode())], dtype=np.uint64)
        state = np.uint64(0)
        for part in key:
            state = splitmix64(np.atleast_1d(state ^ part))[0]
        counter = splitmix64(indices.astype(np.uint64)[:, None] ^ state)  # (B, 1)
        bits = splitmix64(counter + np.arange(num, dtype=np.uint64))  # (B, num)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, indices: np.ndarray, name: str, high: int) -> np.ndarray:
        """Draw one integer in [0, high) for each sample: (B,) int64."""
        return (self.uniform(indices, name)[:, 0] * high).astype(np.int64)

    def permutation(self, num_samples: int) -> np.ndarray:
        """The epoch's order: (num_samples,) int64, a permutation."""
        return np.argsort(self.uniform(np.arange(num_samples), "order")[:, 0], kind="stable")
