"""What exports do to decoded items is what decoding does, bit for bit, at any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.fitting import ArrayPreprocessing, Normalise, decode_as_it_came, decode_fitted
from data.npy import write_npy
from data.squares import to_square
from data.traceable import to_squares, to_stored
from tests.waves import wav

SIDES = st.integers(1, 100)


@given(SIDES, SIDES, st.integers(1, 60), st.sampled_from(["crop", "squash"]), st.integers(0, 9))
def test_pictures_are_scaled_as_pillow_scales_them(
    height: int, width: int, side_px: int, resize: str, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = to_square(Image.fromarray(picture), side_px, resize)  # type: ignore[arg-type]
    found = to_squares(torch.from_numpy(picture)[None], side_px, resize)  # type: ignore[arg-type]
    assert np.array_equal(found[0].numpy(), expected)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1500, 200), (224, 224), (225, 224), (224, 640)])
def test_photos_are_scaled_as_pillow_scales_them(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)
    expected = to_square(Image.fromarray(picture[..., 0]), 224, "crop")
    assert np.array_equal(to_squares(torch.from_numpy(picture)[None], 224, "crop")[0].numpy(), expected)


def want(stored: tuple[int, ...], normalise: Normalise, rate_hz: float = 0.0) -> ArrayPreprocessing:
    return ArrayPreprocessing(
        channels=2, stored=stored, crop=stored, rate_hz=rate_hz, spacing_mm=0, normalise=normalise, fill=(0.25, -3.0)
    )  # fmt: skip


@pytest.mark.parametrize("normalise", ["dataset", "item"])
@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (12,), (13,), (7, 8, 9), (12, 5, 8)])
def test_arrays_are_normalised_and_fitted_as_decoding_does(
    shape: tuple[int, ...], normalise: Normalise
) -> None:
    values = np.random.default_rng(1).normal(3, 2, (2, *shape)).astype(np.float32)
    values[1] = 5  # a constant channel has no deviation to divide by
    how, blob = want((8,) * len(shape), normalise), write_npy(values)
    came = decode_as_it_came(blob, how)
    assert came is not None and np.array_equal(came, values)
    found = to_stored(torch.from_numpy(came[None].copy()), how)[0].numpy()
    np.testing.assert_allclose(found, decode_fitted(blob, how), rtol=1e-6, atol=1e-7)


def test_what_is_resampled_after_it_was_normalised_cannot_be_given_as_it_came() -> None:
    blob = wav(np.zeros((2, 40)), rate_hz=8000)
    assert decode_as_it_came(blob, want((8,), "item", 4000)) is None
    resampled = decode_as_it_came(blob, want((8,), "dataset", 4000))
    assert resampled is not None and resampled.shape == (2, 20)
    assert decode_as_it_came(blob, want((8,), "item", 8000)) is not None
