"""Five-point alignment: the similarity is scikit-image's, the resampling its warp's, and bad points are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import EuclideanTransform, SimilarityTransform, warp

from data.alignment import TEMPLATES_XY, align, five_of_68, resample, similarity, template
from data.geometry import invert, warp_points
from tests.pictures import picture

TEMPLATE_XY = np.array(TEMPLATES_XY["arcface"]) * 112


def jittered(seed: int, num: int = 3) -> torch.Tensor:
    """Templates turned, moved, scaled and disturbed: (num, 5, 2) float64."""
    generator = np.random.default_rng(seed)
    faces = []
    for _ in range(num):
        moved = SimilarityTransform(
            scale=generator.uniform(0.2, 5),
            rotation=generator.uniform(-3, 3),
            translation=generator.uniform(-300, 300, 2),
        )
        faces.append(moved(TEMPLATE_XY) + generator.normal(0, 2, (5, 2)))
    return torch.from_numpy(np.stack(faces))


@pytest.mark.parametrize("seed", range(5))
def test_the_similarity_is_that_of_scikit_image(seed: int) -> None:
    faces, new = jittered(seed), template(112).double()
    for face, got in zip(faces.numpy(), similarity(faces, new).numpy(), strict=True):
        wanted = SimilarityTransform.from_estimate(face, new.numpy())
        np.testing.assert_allclose(got, wanted.params[:2], atol=1e-9)


def test_a_mirrored_face_is_turned_and_never_mirrored() -> None:
    mirrored = template(112).double() * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    [got] = similarity(mirrored[None], template(112).double())
    assert torch.linalg.det(got[:, :2]) > 0
    wanted = SimilarityTransform.from_estimate(mirrored.numpy(), template(112).double().numpy())
    np.testing.assert_allclose(got.numpy(), wanted.params[:2], atol=1e-9)


@given(st.floats(-3, 3), st.floats(0.1, 20), st.floats(-500, 500), st.floats(-500, 500))
def test_an_exact_similarity_is_found_again(turn: float, scale: float, x: float, y: float) -> None:
    moved = SimilarityTransform(scale=scale, rotation=turn, translation=(x, y))
    old = torch.from_numpy(moved(TEMPLATE_XY))[None]
    [got] = similarity(old, torch.from_numpy(TEMPLATE_XY))
    np.testing.assert_allclose(got.numpy(), moved.inverse.params[:2], atol=1e-6)


def test_a_batch_is_aligned_as_each_of_it_alone() -> None:
    faces = jittered(9, 4).float()
    together = similarity(faces, template(112))
    alone = torch.cat([similarity(face[None], template(112)) for face in faces])
    torch.testing.assert_close(together, alone)


def test_the_template_is_that_of_arcface_and_grows_with_its_square() -> None:
    from_centres = template(112) - 0.5
    assert from_centres[0].tolist() == pytest.approx([38.2946, 51.6963], abs=1e-4)
    torch.testing.assert_close(template(224), 2 * template(112))
    # with half as much again around it, the template's square is the middle half of the new one
    torch.testing.assert_close(template(112, 0.5), template(112) / 2 + 28)


@pytest.mark.parametrize(
    "points",
    [
        torch.full((5, 2), 7.0),
        torch.tensor([[float("nan"), 0], [1, 0], [2, 2], [0, 3], [1, 3]]),
        torch.tensor([[float("inf"), 0], [1, 0], [2, 2], [0, 3], [1, 3]]),
    ],
)
def test_points_that_have_no_direction_are_one_clear_error(points: torch.Tensor) -> None:
    faces = torch.stack([template(112), points])
    with pytest.raises(ValueError, match="1 of 2 faces cannot be aligned: the points of face 1 are"):
        similarity(faces, template(112))


def test_the_square_is_what_scikit_image_warps() -> None:
    pixels = np.asarray(picture(3, 160, 140))
    # enlarged, so that one bilinear sample is a pixel
    points = SimilarityTransform(scale=0.6, rotation=0.4, translation=(40, 10))(TEMPLATE_XY)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    [got] = align(image, torch.from_numpy(points).float()[None], 112)
    to_new = SimilarityTransform.from_estimate(points - 0.5, TEMPLATE_XY - 0.5)
    wanted = warp(pixels.astype(float), to_new.inverse, output_shape=(112, 112), order=1, cval=0)
    assert np.abs(got.permute(1, 2, 0).numpy() - wanted).max() <= 0.51


def test_beyond_the_picture_lies_black() -> None:
    white = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    far = template(112)[None] + 1000
    assert align(white, far, 32).max() == 0


def test_a_large_face_is_made_small_without_aliasing() -> None:
    """Stripes of a pixel are grey where each new pixel covers eight."""
    stripes = torch.zeros(1, 1, 896, 896, dtype=torch.uint8)
    stripes[..., ::2] = 255
    [small] = align(stripes, template(896)[None], 112)
    assert small.float().mean() == pytest.approx(127.5, abs=1)
    assert small.float().std() < 2


def test_a_part_of_the_picture_gives_what_the_whole_gives() -> None:
    pixels = torch.from_numpy(np.array(picture(4, 300, 200))).permute(2, 0, 1)[None]
    turn = EuclideanTransform(rotation=0.3, translation=(150, 60)).params[:2]
    to_old = torch.from_numpy(turn).float()[None]
    small = resample(pixels, to_old, 40)
    large = resample(pixels, to_old, 80)  # reaches further, so another part is cut
    assert (small.int() - large[:, :, :40, :40].int()).abs().max() <= 1


def test_aligned_points_stand_at_the_template() -> None:
    faces = jittered(2, 2)
    exact = torch.stack([template(112).double() * 3 + 20, template(112).double() / 2])
    to_old = invert(similarity(exact, template(112).double()))
    torch.testing.assert_close(warp_points(exact, to_old), template(112).double().expand(2, 5, 2))
    moved = warp_points(faces, invert(similarity(faces, template(112).double())))
    assert (moved - template(112).double()).norm(dim=2).max() < 25


def test_five_of_the_68_points_are_eyes_nose_and_mouth() -> None:
    points = torch.arange(136, dtype=torch.float64).view(68, 2)
    got = five_of_68(points)[:, 0] / 2  # x of point i is 2 i
    assert got.tolist() == [38.5, 44.5, 30, 48, 54]


def test_dlib_s_chip_has_its_eyes_in_the_upper_third_and_a_quarter_around_the_face() -> None:
    chip = template(150, 0.25, "dlib") / 150
    assert chip[:2, 1].tolist() == pytest.approx([0.3107] * 2, abs=1e-4)  # (0.21599 + 0.25) / 1.5
    assert chip[1, 0] - chip[0, 0] == pytest.approx(0.529269 / 1.5)
    assert chip[2, 0] == pytest.approx((chip[3, 0] + chip[4, 0]) / 2)
