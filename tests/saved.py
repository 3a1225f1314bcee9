"""Saved models of every family that were never trained: what reads and answers needs no more."""

from pathlib import Path

import numpy as np
import torch

from data.dataset import Dataset
from tasks.families import FAMILIES
from tasks.modelfile import save_model
from tasks.train import decode_here
from tests.tiny import tiny_config, tiny_weights


def save_untrained(family: str, dataset: Dataset, folder: Path, seed: int = 0) -> Path:
    """A model of random weights with the family's tiny parameters, for the tiny dataset."""
    torch.manual_seed(seed)
    entry, config = FAMILIES[family], tiny_config(family)
    records = decode_here(entry, dataset, "train", config)
    plain = entry.batch(records, np.arange(8), dataset.info, config, None)
    card = entry.card(config, dataset.info, "", "untrained")
    model = entry.rebuild(card, card.members[0])
    weights = tiny_weights(family, config)
    given = {} if weights is None else {"weights": weights}
    model.load_state_dict(
        entry.kept(entry.model(config, dataset.info, lambda: [plain], **given).state_dict())
    )
    save_model(folder, card, [model.eval()])
    return folder


def some_items(dataset: Dataset, num: int) -> list[bytes]:
    """Encoded items of its train split."""
    return dataset.rows("train", list(range(num)), ["image"])["image"].to_pylist()
