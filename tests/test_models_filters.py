"""Edge filters and the arithmetic of convolutions: the numbers of the course, scipy, and a filter that is learnt."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, signal
from sklearn.datasets import load_sample_image

from models.filters import FILTERS, convolve, correlate, num_parameters, output_px, padding_px


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A grey photograph (H, W) of levels 0 to 255."""
    return torch.from_numpy(load_sample_image("china.jpg").mean(2).astype(np.float32))


def test_the_vertical_filter_finds_the_edge_of_the_course() -> None:
    """Bright on the left, dark on the right, 6x6: a stripe of 30 in the middle of 4x4; the other way round, of -30."""
    picture = torch.tensor([[10.0] * 3 + [0.0] * 3] * 6)
    stripe = torch.tensor([[0.0, 30.0, 30.0, 0.0]] * 4)
    both = correlate(torch.stack([picture, picture.flip(1)]), FILTERS["vertical"][None])
    assert torch.equal(both[0, 0], stripe)
    assert torch.equal(both[1, 0], -stripe)
    assert not correlate(picture[None], FILTERS["horizontal"][None]).any()


def test_the_filters_are_those_of_the_course() -> None:
    assert FILTERS["vertical"].tolist() == [[1, 0, -1]] * 3
    assert FILTERS["sobel_vertical"].tolist() == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert FILTERS["scharr_vertical"].tolist() == [[3, 0, -3], [10, 0, -10], [3, 0, -3]]
    for name in ("", "sobel_", "scharr_"):
        assert torch.equal(FILTERS[f"{name}horizontal"], FILTERS[f"{name}vertical"].T)


@pytest.mark.parametrize(
    ("input_px", "filter_px", "padding", "stride", "expected"),
    [
        (6, 3, 0, 1, 4),
        (7, 3, 0, 2, 3),
        (6, 3, 1, 1, 6),
        (8, 3, 0, 2, 3),
        (227, 11, 0, 4, 55),
        (3, 3, 0, 5, 1),
    ],
)
def test_output_sides_are_those_of_the_course(
    input_px: int, filter_px: int, padding: int, stride: int, expected: int
) -> None:
    assert output_px(input_px, filter_px, padding, stride) == expected


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.sampled_from(["valid", "same"]))
def test_the_arithmetic_is_what_torch_does(input_px: int, filter_px: int, stride: int, padding: str) -> None:
    if padding == "same" and filter_px % 2 == 0:
        with pytest.raises(ValueError, match="odd side"):
            padding_px(filter_px, "same")
        return
    border = padding_px(filter_px, padding)  # type: ignore[arg-type]
    picture, weights = torch.zeros(1, input_px, input_px), torch.zeros(1, filter_px, filter_px)
    if input_px + 2 * border < filter_px:
        with pytest.raises(ValueError, match="does not fit into"):
            correlate(picture, weights, padding, stride)  # type: ignore[arg-type]
        return
    side = correlate(picture, weights, padding, stride).shape[-1]  # type: ignore[arg-type]
    assert side == output_px(input_px, filter_px, border, stride)
    assert padding == "valid" or stride > 1 or side == input_px


def test_ten_filters_over_three_channels_have_280_parameters() -> None:
    assert num_parameters(3, 3, 10) == 280
    assert num_parameters(3, 3, 10) == sum(p.numel() for p in torch.nn.Conv2d(3, 10, 3).parameters())


@pytest.mark.parametrize("name", FILTERS)
def test_responses_are_scipys(photo: torch.Tensor, name: str) -> None:
    weights = FILTERS[name]
    expected = signal.correlate2d(photo.numpy(), weights.numpy(), mode="valid")
    assert np.allclose(correlate(photo[None], weights[None])[0, 0], expected, atol=1e-2)
    turned = signal.convolve2d(photo.numpy(), weights.numpy(), mode="same")
    assert np.allclose(convolve(photo[None], weights[None], "same")[0, 0], turned, atol=1e-2)


def test_sobel_is_scipys(photo: torch.Tensor) -> None:
    """Inside the border; scipy's filter is right minus left."""
    ours = correlate(photo[None], FILTERS["sobel_vertical"][None])[0, 0]
    assert np.allclose(ours, -ndimage.sobel(photo.numpy(), axis=1)[1:-1, 1:-1], atol=1e-2)


def test_only_the_true_convolution_is_associative() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 12, 12, generator=generator, dtype=torch.float64)
    first, second = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    for apply, holds in ((convolve, True), (correlate, False)):
        after_each_other = apply(apply(picture, first)[0], second)
        both = torch.nn.functional.pad(first, (2, 2, 2, 2))
        in_one = apply(picture, apply(both, second)[0])
        assert torch.allclose(after_each_other, in_one) == holds


def test_a_filter_that_is_learnt_from_examples_becomes_sobels(photo: torch.Tensor) -> None:
    """Nine weights, from random ones, by gradients of the error to what Sobel's filter makes of a photo."""
    picture = (photo[100:228, 200:328] / 255)[None]
    target = correlate(picture, FILTERS["sobel_vertical"][None])
    weights = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (correlate(picture, weights) - target).square().mean()
        value.backward()
        return value

    assert loss().item() > 0.1
    optimizer.step(loss)
    assert torch.allclose(weights.detach()[0], FILTERS["sobel_vertical"], atol=0.01)
