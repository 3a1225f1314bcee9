"""What training will see: a contact sheet of some pictures, as they are and as they come in the first epochs."""

from typing import Any

import numpy as np
import torch

from data.dataset import Dataset
from data.random import SampleGenerator
from tasks.families import FAMILIES
from tasks.figures import Figure, preview_figure
from tasks.inputs import as_pictures


def preview(family_name: str, config: Any, dataset: Dataset, *, num_pictures: int, num_epochs: int) -> Figure:
    """A row for each of `num_pictures` from all over the train split; a column for each epoch after the picture itself.

    The numbers that augment a picture are those of training with the same seed, so this is what it will see; only
    partners of mixed pictures differ, since they are the others of a batch.
    """
    dataset.require("train")
    family, num_images = FAMILIES[family_name], dataset.info.num_images("train")
    indices = np.unique(np.linspace(0, num_images - 1, min(num_pictures, num_images)).astype(np.int64))
    # these alone: the split may be far larger than memory
    arrays = family.decode(dataset.rows("train", indices.tolist(), family.columns), dataset.info, config)
    records = family.records({name: torch.from_numpy(array) for name, array in arrays.items()})
    rows = np.arange(len(indices))
    batches = [family.batch(records, indices, dataset.info, config, None, 0, rows)]
    for epoch in range(num_epochs):
        generator = SampleGenerator(config.train.seed, epoch)
        batches.append(family.batch(records, indices, dataset.info, config, generator, 0, rows))
    columns = [as_pictures(batch.images.numpy()).transpose(0, 2, 3, 1) for batch in batches]
    pictures = np.stack(columns, 1)  # (N, 1 + E, H, W, C)
    names = [dataset.info.classes[label] for label in batches[0].labels.tolist()]
    size = f", {config.input.crop_px} px" if batches[0].images.dtype == torch.uint8 else ""
    return preview_figure(pictures, names, f"{dataset.info.name}{size}, seed {config.train.seed}")
