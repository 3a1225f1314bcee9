"""Edge filters as weights of a convolution, and the arithmetic of padding and stride, as a first course has them.

What networks call a convolution is a cross-correlation: the filter is laid on the picture as it stands. Mathematics
turns it by 180° first, which makes the operation associative: two filters in a row are then one, `convolve`d with the
other. A network learns its weights, so it does not matter to it which of the two is computed.

Sources: Prewitt 1970 for the plain differences; Sobel and Feldman 1968; Scharr 2000, https://doi.org/10.11588/heidok.00000962.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["valid", "same"]


def _differences(weights: tuple[int, int, int]) -> Tensor:
    """Left minus right, the rows weighed: (3, 3); positive where it is bright on the left and dark on the right."""
    return torch.tensor(weights, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.0, -1.0])


FILTERS: dict[str, Tensor] = {
    "vertical": _differences((1, 1, 1)),
    "horizontal": _differences((1, 1, 1)).T,
    "sobel_vertical": _differences((1, 2, 1)),
    "sobel_horizontal": _differences((1, 2, 1)).T,
    "scharr_vertical": _differences((3, 10, 3)),
    "scharr_horizontal": _differences((3, 10, 3)).T,
}


def padding_px(filter_px: int, padding: Padding) -> int:
    """Pixels of zeros around a picture: none, or what makes the output as large as the input at stride 1."""
    if padding == "valid":
        return 0
    if filter_px % 2 == 0:
        raise ValueError(
            f"padding 'same' needs a filter of odd side, got {filter_px}: (side - 1) / 2 pixels go to each side"
        )
    return (filter_px - 1) // 2


def output_px(input_px: int, filter_px: int, padding: int, stride: int) -> int:
    """Side of a convolution's output, floor((n + 2p - f) / s) + 1; a ValueError where the filter does not fit once."""
    if stride < 1:
        raise ValueError(f"stride (={stride}) must be at least 1")
    if padding < 0:
        raise ValueError(f"padding (={padding}) must be at least 0")
    if input_px + 2 * padding < filter_px:
        raise ValueError(
            f"a filter of {filter_px} px does not fit into {input_px} px with {padding} px of padding on each side"
        )
    return (input_px + 2 * padding - filter_px) // stride + 1


def num_parameters(filter_px: int, in_channels: int, num_filters: int) -> int:
    """Weights and biases of a layer: (f · f · channels + 1) for each filter, whatever the picture's size."""
    return (filter_px * filter_px * in_channels + 1) * num_filters


def correlate(pictures: Tensor, filters: Tensor, padding: Padding = "valid", stride: int = 1) -> Tensor:
    """Lay each filter on each picture, and sum the products: (B, H, W), (K, f, f) → (B, K, H', W')."""
    border = padding_px(filters.shape[-1], padding)
    for side in pictures.shape[1:]:
        output_px(side, filters.shape[-1], border, stride)
    return F.conv2d(pictures[:, None], filters[:, None], stride=stride, padding=border)


def convolve(pictures: Tensor, filters: Tensor, padding: Padding = "valid", stride: int = 1) -> Tensor:
    """The convolution of mathematics: `correlate` with filters turned by 180°."""
    return correlate(pictures, filters.flip(-2, -1), padding, stride)
