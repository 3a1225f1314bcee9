"""The classification family: what its parameters refuse, and what its batches and cards hold."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.random import SampleGenerator
from data.records import Batch
from models.sides import WithSides
from tasks import classification
from tasks.classification import ClassificationConfig
from tests.handmade import write_dataset
from tests.tiny import TINY, tiny_config


def test_growth_beyond_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sides \(=\[24\]\) must not exceed input.crop_px \(=16\)"):
        tiny_config("classification", train__growth=[[24, 0.5]])


def test_growth_with_dense_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="one size only"):
        tiny_config("classification", train__growth=[[16, 0.5]])


def test_crop_larger_than_the_padded_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_px \(=32\) must not exceed stored_px \+ 2 \* pad_px \(=18\)"):
        tiny_config("classification", input__crop_px=32)


def test_every_value_must_be_given() -> None:
    values = {name: part for name, part in TINY["classification"].items() if name != "optim"}
    with pytest.raises(ValueError, match=r"recipe.optim is required"):
        ClassificationConfig.parse(values, "recipe")


def test_growing_pictures_reach_the_network_small(tmp_path: Path) -> None:
    info = write_dataset(tmp_path / "x", [np.zeros((16, 16, 3), np.uint8)], [0], ["a", "b"]).info
    config = tiny_config("classification", model__name="airnet_narrow", train__growth=[[12, 0.5]])
    samples = classification.records(
        {"images": torch.zeros((4, 3, 16, 16), dtype=torch.uint8), "labels": torch.tensor([0, 1, 0, 1])}
    )
    batch = classification.batch(samples, np.arange(4), info, config, SampleGenerator(0, 0), shrink_px=12)
    assert batch.images.shape == (4, 3, 12, 12) and batch.labels.tolist() == [0, 1, 0, 1]


def test_pictures_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be at least 9 for airnet_narrow \(got 8\)"):
        tiny_config("classification", model__name="airnet_narrow", train__growth=[[8, 0.5]])


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixed_pictures_have_the_loss_of_both_their_labels(kind: str, tmp_path: Path) -> None:
    """Where each class is one flat level, the levels seen tell what the labels must weigh."""
    info = write_dataset(tmp_path / "x", [np.zeros((16, 16), np.uint8)], [0], ["dark", "light"]).info
    config = tiny_config(
        "classification", **{f"augment__{kind}": 1.0, "augment__cutout_px": 0, "augment__colour_shift": 0}
    )
    labels = torch.tensor([0, 1] * 16)
    images = (labels * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    samples = classification.records({"images": images, "labels": labels})
    batch = classification.batch(samples, np.arange(32), info, config, SampleGenerator(0, 0))
    assert batch.weights is not None and batch.partner_labels is not None
    light = batch.weights * batch.labels + (1 - batch.weights) * batch.partner_labels  # share of "light"
    torch.testing.assert_close(batch.images.float().mean((1, 2, 3)) / 200, light, atol=0.01, rtol=0)
    assert (light - light.round()).abs().max() > 0.1  # something was mixed

    logits = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))

    class Fixed(torch.nn.Module):
        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            return logits

    value, _logged = classification.loss(Fixed(), batch, config)
    targets = torch.stack([1 - light, light], 1)
    torch.testing.assert_close(value, -(targets * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize(("done", "mixed"), [(0.0, True), (0.79, True), (0.8, False), (1.0, False)])
def test_pictures_are_mixed_no_more_at_the_end_of_training(done: float, mixed: bool, tmp_path: Path) -> None:
    info = write_dataset(tmp_path / "x", [np.zeros((16, 16), np.uint8)], [0], ["dark", "light"]).info
    config = tiny_config(
        "classification", augment__mixup_alpha=0.5, augment__cutmix_alpha=0.5, augment__mixing_until=0.8
    )
    labels = torch.tensor([0, 1] * 16)
    samples = classification.records(
        {"images": torch.zeros(32, 1, 16, 16, dtype=torch.uint8), "labels": labels}
    )
    batch = classification.batch(samples, np.arange(32), info, config, SampleGenerator(0, 0, done))
    assert (batch.weights is not None) == mixed


def test_a_rebuilt_model_takes_the_weights_of_the_trained_one(tmp_path: Path) -> None:
    info = write_dataset(tmp_path / "x", [np.zeros((8, 8), np.uint8)], [0], ["a", "b", "c"]).info
    config = tiny_config("classification")
    model = classification.build_model(config, info, torch.zeros((2, 1, 16, 16), dtype=torch.uint8)).eval()
    card = classification.card(config, info, "d", "run")
    other = classification.rebuild(card, card.members[0]).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), other(images))
    assert card.classes == ("a", "b", "c") and card.preprocessing.stored_px == 16


class Fixed(nn.Module):
    """Gives logits of two classes, 0 and log 3, and two side branches without a preference."""

    def forward(self, images: torch.Tensor) -> WithSides:
        even = torch.zeros(len(images), 2)
        return WithSides(torch.tensor([[0.0, math.log(3)]]).repeat(len(images), 1), (even, even), (0.3, 0.4))


def test_side_branches_count_by_their_weights() -> None:
    config = tiny_config("classification", optim__label_smoothing=0.0)
    batch = Batch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 1]), np.arange(2))
    value, logged = classification.loss(Fixed(), batch, config)
    assert value.item() == pytest.approx(math.log(4 / 3) + 0.7 * math.log(2))
    assert logged["accuracy"] == 1  # of the main logits
