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
