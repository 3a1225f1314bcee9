"""Simulated attacks: seeded, of each sample alone, and with the physics that they claim."""

import numpy as np
import pytest
import torch
from skimage.transform import ProjectiveTransform

from data.augment import Draws
from data.random import SampleGenerator
from data.spoofs import (
    ATTACKS,
    captured,
    halftone_threshold,
    homography,
    medium_places,
    perspectives,
    simulated_print,
    simulated_replay,
)
from tests.pictures import picture

WAYS = {"real": captured, **ATTACKS}


def faces(num: int, side: int = 48) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(np.array(picture(i, side, side))).permute(2, 0, 1) for i in range(num)]
    )


def draws(*indices: int, seed: int = 0) -> Draws:
    return Draws(np.array(indices), SampleGenerator(seed, 0), torch.device("cpu"))


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_and_an_index_give_the_same_attack_beside_any_neighbours(way: str) -> None:
    pictures = faces(3)
    together = WAYS[way](pictures, draws(4, 9, 2))
    assert together.shape == pictures.shape and together.dtype == torch.uint8
    alone = WAYS[way](pictures[1:2], draws(9))
    # sums of another batch are rounded otherwise
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert torch.equal(WAYS[way](pictures, draws(4, 9, 2)), together)
    other = WAYS[way](pictures, draws(4, 9, 2, seed=1))
    assert (other.float() - together.float()).abs().mean() > 2


def test_every_attack_is_called_simulated() -> None:
    assert all(name.startswith("simulated_") for name in ATTACKS)


def test_a_homography_is_that_of_scikit_image() -> None:
    generator = np.random.default_rng(0)
    new = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    old = new + generator.uniform(-0.2, 0.2, (3, 4, 2))
    got = homography(torch.from_numpy(old), torch.from_numpy(new))
    for each, places in zip(got.numpy(), old, strict=True):
        wanted = ProjectiveTransform.from_estimate(places, new).params
        np.testing.assert_allclose(each, wanted / wanted[2, 2], atol=1e-6)


def test_the_medium_s_corners_are_where_the_map_says() -> None:
    maps = perspectives(draws(*range(50)))
    places = medium_places(maps, 64)
    assert torch.isfinite(places).all()
    middle = places[:, 31:33, 31:33].mean((1, 2))
    assert ((middle - 0.5).abs() < 0.4).all()  # the face is in the picture
    assert places.std() > 0.2
    still = medium_places(torch.eye(3)[None], 4)[0]
    assert still[0, 0].tolist() == [0.125, 0.125] and still[0, 3].tolist() == [0.875, 0.125]


@pytest.mark.parametrize("ink", [0.1, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_the_inked_share_of_a_halftone_is_the_ink(ink: float, angle: float) -> None:
    places = medium_places(torch.eye(3)[None], 600).permute(0, 3, 1, 2)
    threshold = halftone_threshold(places, torch.full((1, 1, 1), 1 / 7), torch.full((1, 1, 1), angle))
    assert threshold.min() >= 0 and threshold.max() <= 1
    assert (threshold < ink).float().mean() == pytest.approx(ink, abs=0.01)


def test_paper_has_less_range_than_a_screen_and_both_less_than_the_face() -> None:
    """Black and white halves: how far apart they are in the middle of what the camera sees."""
    halves = torch.zeros(40, 3, 48, 48, dtype=torch.uint8)
    halves[20:] = 255
    printed, shown = (
        way(halves, draws(*range(20), *range(20))).float() for way in (simulated_print, simulated_replay)
    )
    reach = [float((each[20:] - each[:20])[:, :, 16:32, 16:32].mean()) for each in (printed, shown)]
    assert 40 < reach[0] < reach[1] < 255


def test_a_screen_is_bluer_than_paper() -> None:
    grey = torch.full((30, 3, 48, 48), 128, dtype=torch.uint8)
    tone = [
        float(each[:, 2].float().mean() - each[:, 0].float().mean())
        for each in (simulated_print(grey, draws(*range(30))), simulated_replay(grey, draws(*range(30))))
    ]
    assert tone[1] > tone[0] + 2


def test_a_flat_face_gets_dots_on_paper_and_bands_on_a_screen_but_not_from_the_camera() -> None:
    """Grain beyond the camera's noise, in the middle of the picture."""
    grey = torch.full((12, 3, 96, 96), 140, dtype=torch.uint8)
    grain = {}
    for name, way in WAYS.items():
        middle = way(grey, draws(*range(12))).float()[:, :, 32:64, 32:64]
        smooth = torch.nn.functional.avg_pool2d(middle, 5, 1, 2, count_include_pad=False)
        grain[name] = float((middle - smooth).std((2, 3)).mean())
    assert grain["simulated_print"] > grain["real"] + 2
    assert grain["simulated_replay"] > grain["real"] + 2
