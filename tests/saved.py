"""Saved models of every family that were never trained: what reads and answers needs no more."""

from pathlib import Path

import torch

from data.dataset import Dataset
from tasks.families import FAMILIES
from tasks.modelfile import save_model
from tests.tiny import tiny_config


def save_untrained(family: str, dataset: Dataset, folder: Path, seed: int = 0) -> Path:
    """A model of random weights with the family's tiny parameters, for the tiny dataset."""
    torch.manual_seed(seed)
    entry, config = FAMILIES[family], tiny_config(family)
    card = entry.card(config, dataset.info, "", "untrained")
    save_model(folder, card, [entry.rebuild(card, card.members[0]).eval()])
    return folder


def some_items(dataset: Dataset, num: int) -> list[bytes]:
    """Encoded items of its train split."""
    return dataset.rows("train", list(range(num)), ["image"])["image"].to_pylist()
