"""The colours of a picture taken over by another: what style transfer keeps of the content.

Gatys et al. 2016, Preserving Color in Neural Artistic Style Transfer (https://arxiv.org/abs/1606.05897). Pictures are
(1, 3, H, W) float32 of red, green and blue, 0 to 1.
"""

import torch
from torch import Tensor

TO_YIQ = (
    (0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135),
)  # fmt: skip
LEAST_VARIANCE = 1e-6


def to_yiq(picture: Tensor) -> Tensor:
    """Luminance and two of colour, as NTSC has them."""
    return torch.einsum("ij,bjhw->bihw", picture.new_tensor(TO_YIQ), picture)


def from_yiq(picture: Tensor) -> Tensor:
    """The inverse of `to_yiq`; values may lie outside 0 to 1."""
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(picture.new_tensor(TO_YIQ)), picture)


def luminance(picture: Tensor) -> Tensor:
    """The picture in grey, of three equal channels."""
    return to_yiq(picture)[:, :1].expand_as(picture).contiguous()


def with_colours_of(picture: Tensor, colours: Tensor) -> Tensor:
    """The luminance of `picture` with the colours of another one of its size, cut to 0 to 1."""
    return from_yiq(torch.cat([to_yiq(picture)[:, :1], to_yiq(colours)[:, 1:]], 1)).clamp(0, 1)


def match_luminance(picture: Tensor, other: Tensor) -> Tensor:
    """A grey picture with the mean and the deviation of another one's levels, cut to 0 to 1."""
    deviation = picture.std().clamp(min=LEAST_VARIANCE**0.5)
    return ((picture - picture.mean()) * (other.std() / deviation) + other.mean()).clamp(0, 1)


def match_colours(picture: Tensor, other: Tensor) -> Tensor:
    """A picture moved linearly to the mean and the covariance of another one's colours, cut to 0 to 1.

    A = √Σ_other · √Σ_picture⁻¹ with symmetric roots (image analogies' way, equation 3 of the paper).
    """
    own, theirs = picture[0].flatten(1).double(), other[0].flatten(1).double()  # (3, N)
    matrix = root(torch.cov(theirs), 0.5) @ root(torch.cov(own), -0.5)
    moved = matrix @ (own - own.mean(1, keepdim=True)) + theirs.mean(1, keepdim=True)
    return moved.to(picture.dtype).view_as(picture).clamp(0, 1)


def root(covariance: Tensor, power: float) -> Tensor:
    """A power of a symmetric matrix (3, 3); eigenvalues of nearly nothing count as a little."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=LEAST_VARIANCE) ** power) @ vectors.T
