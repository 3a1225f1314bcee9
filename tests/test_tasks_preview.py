"""The contact sheet shows exactly what training will see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from data.random import SampleGenerator
from tasks import preview as module
from tasks.families import FAMILIES
from tasks.figures import Figure, preview_figure, save_figure
from tasks.train import decode_here
from tests.tiny import tiny_config, tiny_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("classification", tmp_path_factory.mktemp("store"))


def test_the_pictures_are_those_of_training(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("classification", augment__rotation_deg=20.0, augment__mirror=True, train__seed=4)
    seen: list[np.ndarray] = []

    def draw(pictures: np.ndarray, names: list[str], what: str) -> Figure:
        seen.append(pictures)
        return preview_figure(pictures, names, what)

    monkeypatch.setattr(module, "preview_figure", draw)
    module.preview("classification", config, digits, num_pictures=5, num_epochs=3)
    family = FAMILIES["classification"]
    records = decode_here(family, digits, "train", config)
    indices = np.linspace(0, len(records) - 1, 5).astype(np.int64)
    assert seen[0].shape == (5, 4, 16, 16, 1)
    for epoch in range(3):
        batch = family.batch(records, indices, digits.info, config, SampleGenerator(4, epoch))
        assert torch.equal(torch.from_numpy(seen[0][:, 1 + epoch]).permute(0, 3, 1, 2), batch.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_is_drawn(channels: int, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, channels)).astype(np.uint8)
    save_figure(preview_figure(pictures, ["a $ name", "ß"], "x"), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
