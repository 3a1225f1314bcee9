"""Batches of faces embedded side by side on Ray, for a gallery that gets a new embedder (tasks/reembedding.py)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks import calls
from tasks.facepredict import FacePredictor
from tasks.modelfile import SavedModel
from tasks.reembedding import Batch, Spread


def embed_batch(saved: SavedModel, faces: Sequence[bytes]) -> np.ndarray:
    """Vectors (N, D) of encoded faces, in whatever process; raises ValueError for one that cannot be read."""
    vectors, errors = FacePredictor(saved).embed(faces)
    for error in errors:
        if error is not None:
            raise ValueError(f"a face of the gallery cannot be read any more: {error}")
    return vectors


def on_ray(saved: SavedModel) -> Spread:
    """Embed as many batches at once as the cluster has GPUs, or else CPUs; `tasks.cluster.connect` comes before."""

    def spread(batches: Iterable[Batch]) -> Iterator[tuple[int, np.ndarray]]:
        shared = calls.share(saved)
        gpus = calls.gpus_of_call()
        yield from calls.call_each(embed_batch, ((shared, batch) for batch in batches), 1, gpus)

    return spread
