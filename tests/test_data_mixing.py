"""Mixed samples: weights that say exactly what is seen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data import mixing
from data.random import SampleGenerator

INDICES = np.arange(4000)
GENERATOR = SampleGenerator(3, 1)


def test_nobody_is_their_own_partner_and_everybody_may_be_anyones() -> None:
    other = mixing.partners(np.arange(5), GENERATOR)
    assert (other != torch.arange(5)).all()
    seen = {
        (i, int(j))
        for epoch in range(60)
        for i, j in enumerate(mixing.partners(np.arange(3), SampleGenerator(0, epoch)))
    }
    assert seen == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert mixing.partners(np.array([7]), GENERATOR).tolist() == [0]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0])
def test_beta_draws_are_beta_distributed(alpha: float) -> None:
    draws = mixing.beta(INDICES, "x", alpha, GENERATOR)
    assert ((draws >= 0) & (draws <= 1)).all()
    # numbers that underflow to 0 or 1 are ties, which the test's continuous null does not know
    inner = np.clip(draws, 1e-12, 1 - 1e-12)
    grid = np.linspace(0.01, 0.99, 25)
    observed = np.array([(inner <= x).mean() for x in grid])
    assert np.abs(observed - stats.beta(alpha, alpha).cdf(grid)).max() < 0.03


def test_beta_belongs_to_the_sample() -> None:
    alone = mixing.beta(INDICES[7:8], "x", 0.4, GENERATOR)
    assert alone[0] == mixing.beta(INDICES, "x", 0.4, GENERATOR)[7]


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5])
def test_beta_refuses_what_the_method_cannot_draw(alpha: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        mixing.beta(INDICES, "x", alpha, GENERATOR)


def test_mixup_is_the_weighted_mean() -> None:
    images = torch.tensor([10, 110], dtype=torch.uint8).view(2, 1, 1, 1)
    mixed = mixing.mixup(images, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    assert mixed.flatten().tolist() == [35, 110]


def test_cutmix_labels_weigh_exactly_the_pixels_that_are_seen() -> None:
    images = torch.zeros(64, 1, 9, 13, dtype=torch.uint8)
    images[::2] = 1
    other = torch.arange(64) ^ 1
    generator = torch.Generator().manual_seed(2)
    weight, centre = torch.rand(64, generator=generator), torch.rand(64, 2, generator=generator)
    mixed, kept = mixing.cutmix(images, other, weight, centre)
    own = (mixed == images).flatten(1).float().mean(1)
    torch.testing.assert_close(kept, own)
    assert kept.min() < 0.5 and kept.max() > 0.9


def test_cutmix_in_the_middle_cuts_a_centred_square() -> None:
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).to(torch.uint8)
    mixed, kept = mixing.cutmix(
        images, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]), torch.full((2, 2), 0.5)
    )
    assert mixed[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(mixed[1], images[1])
    assert kept.tolist() == [0.75, 1.0]


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_mosaic_equals_pasting_quarter_by_quarter(y: int, x: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8))
    low = rng.uniform(0, 7, (4, 2, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(0.1, 1, (4, 2, 2))], 2)).float()
    others = torch.tensor([[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]])
    mixed, moved, seen, owners = mixing.mosaic(images, boxes, others, torch.tensor([[y, x]] * 4))
    assert owners[2].tolist() == [2, 3, 0, 1]
    naive = torch.empty_like(images[0])
    naive[:, :y, :x] = images[0][:, 8 - y :, 8 - x :]
    naive[:, :y, x:] = images[1][:, 8 - y :, : 8 - x]
    naive[:, y:, :x] = images[2][:, : 8 - y, 8 - x :]
    naive[:, y:, x:] = images[3][:, : 8 - y, : 8 - x]
    assert torch.equal(mixed[0], naive)
    assert moved.shape == (4, 8, 4) and seen.shape == (4, 8)
    limits = torch.tensor([[0, 0, x, y], [x, 0, 8, y], [0, y, x, 8], [x, y, 8, 8]]).repeat_interleave(2, 0)
    visible = seen[0] > 0
    assert (moved[0, visible, :2] >= limits[visible, :2] - 1e-5).all()
    assert (moved[0, visible, 2:] <= limits[visible, 2:] + 1e-5).all()
    assert ((seen >= 0) & (seen <= 1 + 1e-5)).all()


def test_a_box_follows_its_picture_into_the_mosaic() -> None:
    """A bright rectangle fills its box before and after, cut where its quarter ends."""
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    images[0, 0, 5:8, 4:8] = 255
    boxes = torch.tensor([[[4.0, 5.0, 8.0, 8.0]]]).repeat(4, 1, 1)
    others = torch.tensor([[1, 2, 3]] * 4)
    mixed, moved, seen, _owners = mixing.mosaic(images, boxes, others, torch.tensor([[2, 6]] * 4))
    assert moved[0, 0].tolist() == [2.0, 0.0, 6.0, 2.0]  # moved by (-2, -6): its upper row is cut off
    assert seen[0, 0].item() == pytest.approx(2 / 3)
    assert mixed[0, 0].nonzero().amin(0).tolist() == [0, 2] and mixed[0, 0].nonzero().amax(0).tolist() == [
        1,
        5,
    ]
