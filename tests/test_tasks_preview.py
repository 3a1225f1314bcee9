"""The contact sheet shows exactly what training will see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from data.detection import Truths
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


def test_channels_of_any_range_fill_lanes_of_one_height_with_their_ends_beside_them(tmp_path: Path) -> None:
    wave = np.sin(np.linspace(0, 20, 50))
    scales = np.array([1.0, 1e6, 1e-6, 0.0])  # the last is flat
    signals = np.broadcast_to(scales[:, None] * wave, (2, 3, 4, 50))
    figure = module.signals_figure(signals, ["a $ name", "b"], 100.0, "x")
    for axes in figure.axes:
        heights = [np.ptp(np.asarray(line.get_ydata())) for line in axes.lines]
        assert heights == pytest.approx([module.LANE_SHARE] * 3 + [0])
        lanes = [np.floor(np.asarray(line.get_ydata())) for line in axes.lines]
        assert [set(lane.tolist()) for lane in lanes] == [{3.0}, {2.0}, {1.0}, {0.0}]
        assert axes.get_xlim() == (0, 0.49)
    ends = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert ends[1] == f"{wave.min() * 1e6:.3g} to {wave.max() * 1e6:.3g}" and ends[3] == "0 to 0"
    save_figure(figure, tmp_path / "sheet.png")


def test_amplitudes_of_a_channel_can_be_compared_along_a_row() -> None:
    wave = np.sin(np.linspace(0, 20, 50))
    signals = np.stack([wave, 0.5 * wave])[None, :, None]  # (1, 2, 1, 50)
    figure = module.signals_figure(signals, ["a"], 0.0, "x")
    whole, half = (np.ptp(np.asarray(axes.lines[0].get_ydata())) for axes in figure.axes)
    assert half / whole == pytest.approx(0.5)


def test_of_many_channels_the_first_are_drawn_and_the_title_says_so() -> None:
    figure = module.signals_figure(np.zeros((1, 1, 40, 8)), ["a"], 0.0, "x")
    assert len(figure.axes[0].lines) == module.MAX_LANES
    assert f"the first {module.MAX_LANES} of 40 channels" in figure.get_suptitle()


def test_boxes_are_drawn_where_training_has_them_and_dashed_where_they_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = tiny_dataset("detection", tmp_path)
    config = tiny_config("detection", augment__mosaic=1.0, augment__least_seen=0.9, input__train_px=[32, 96])
    seen: list[Any] = []

    def draw(pictures: np.ndarray, names: list[str], what: str, cell_in: float) -> Figure:
        seen.extend([pictures, names])
        return preview_figure(pictures, names, what, cell_in)

    monkeypatch.setattr(module, "preview_figure", draw)
    module.preview("detection", config, scenes, num_pictures=6, num_epochs=3)
    family = FAMILIES["detection"]
    records = decode_here(family, scenes, "train", config)
    indices = np.linspace(0, len(records) - 1, 6).astype(np.int64)
    pictures, names = seen
    side = pictures.shape[2]
    assert pictures.shape == (6, 4, side, side, 3)
    plain = family.batch(records, indices, scenes.info, config, None)
    counts = np.bincount(plain.truths.image, minlength=6)
    assert names == [f"{num} box" if num == 1 else f"{num} boxes" for num in counts]
    coloured = (np.ptp(pictures.astype(int), axis=4) > 60).any((2, 3))  # the pictures themselves are grey
    assert (coloured[:, 0] == (counts > 0)).all()


def test_a_box_of_a_preview_lies_on_its_object_at_any_size() -> None:
    picture = np.zeros((1, 50, 50), np.uint8)
    boxes = torch.tensor([[10.0, 20, 30, 40], [0.0, 0, 50, 50]])
    truths = Truths(boxes, torch.tensor([2, 0]), torch.tensor([0, 1]), torch.tensor([False, False]))
    drawn = module.with_boxes(picture, truths, 0, ["a", "b", ""], 200)
    rows, columns = np.nonzero((drawn != 0).any(2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (40, 80, 119, 159)
    ignored = Truths(boxes, truths.labels, truths.image, torch.tensor([True, False]))
    dashed = module.with_boxes(picture, ignored, 0, ["a", "b", ""], 200)
    edge = slice(80, 82), slice(40, 120)
    assert (drawn[edge] != 0).any(2).all() and not (dashed[edge] != 0).any(2).all()
