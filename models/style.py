"""The costs of neural style transfer: J(G) = α · J_content + β · J_style + γ · J_variation.

Gatys, Ecker, Bethge 2016 (https://arxiv.org/abs/1508.06576). With a layer's features a (n_C channels, n_H x n_W
places) and its Gram matrix G = a aᵀ, sums over all entries:

| by name | content | style, of a layer |
| --- | --- | --- |
| `course` | Σ (a_C − a_G)² / (4 n_H n_W n_C) | Σ (G_S − G_G)² / (2 n_H n_W n_C)² |
| `gatys` | Σ (a_C − a_G)² / 2 | the same: Gatys's 1 / (4 N² M²) |
| `relative` | Σ (a_C − a_G)² / Σ a_C² | Σ (G_S − G_G)² / Σ G_S² |

`relative` is ours: shares of what is there, so that one weight suits networks whose features differ by thousands.
A style picture may be of another size: each Gram matrix is taken as a mean over its own places, Ḡ = G / (n_H n_W), and
(G_S − G_G) / (n_H n_W) above is then Ḡ_S − Ḡ_G, the same number where the sizes agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.taps import FeatureNet

Normalisation = Literal["course", "gatys", "relative"]
PLACES_A_SUM = 4096  # of bfloat16 products that are summed before float32 takes over


class _Gram(torch.autograd.Function):
    """X (n, k, C) → Σ over n of XᵀX (C, C), with one product in its gradient where autograd would take two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.bmm(x.transpose(1, 2), x).sum(0, dtype=wide)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        [gradient] = gradients
        return x @ (gradient + gradient.T).to(x.dtype)


def gram_matrix(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over places of the products of channels: (1, C, h, w) → (C, C) float32 (or float64), symmetric.

    With a mask (1, 1, h, w) of shares, places count by its square, and the mean is over these. bfloat16 features are
    multiplied as they are and summed in float32, piece by piece.
    """
    B, C, H, W = features.shape
    if B != 1:
        raise ValueError(f"a Gram matrix is of one picture, got a batch of {B}")
    rows = features.permute(0, 2, 3, 1).reshape(H * W, C)
    num_places: Tensor | float = float(H * W)
    if mask is not None:
        weights = mask.reshape(H * W, 1)
        rows = rows * weights.to(rows.dtype)
        num_places = weights.square().sum().clamp(min=1e-12)
    num_pieces = H * W // PLACES_A_SUM
    whole = num_pieces * PLACES_A_SUM
    total: Tensor | float = 0.0
    if num_pieces:
        total = _Gram.apply(rows[:whole].view(num_pieces, PLACES_A_SUM, C))
    if whole < H * W:
        total = total + _Gram.apply(rows[None, whole:])
    return total / num_places  # type: ignore[return-value]


def content_cost(generated: Tensor, content: Tensor, normalisation: Normalisation) -> Tensor:
    """How far features are from the content's, (1, C, h, w) each: a scalar, see the module's table."""
    wide = torch.float64 if content.dtype == torch.float64 else torch.float32
    total = (generated.to(wide) - content.to(wide)).square().sum()
    if normalisation == "course":
        return total / (4 * content.numel())
    if normalisation == "gatys":
        return total / 2
    return total / content.to(wide).square().sum().clamp(min=1e-12)


def style_cost(generated: Tensor, style: Tensor, normalisation: Normalisation) -> Tensor:
    """How far a layer's Gram matrix is from the style's, (C, C) each, as means over places: a scalar."""
    total = (generated - style).square().sum()
    if normalisation == "relative":
        return total / style.square().sum().clamp(min=1e-12)
    return total / (4 * len(style) ** 2)


def total_variation(picture: Tensor) -> Tensor:
    """Σ of squared differences of neighbours, across and down, a value of (1, C, H, W): a scalar."""
    across = (picture[..., :, 1:] - picture[..., :, :-1]).square().sum()
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square().sum()
    return (across + down) / picture.numel()


@dataclass(frozen=True)
class Style:
    """A style picture (1, 3, H, W), how much it counts, and where: (1, 1, H, W) of shares, on the content picture."""

    picture: Tensor
    weight: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """What each part of J counts: α, β, γ, and λ of each style layer. Layers of weight 0 are not looked at."""

    content: float
    style: float
    variation: float
    content_layer: str
    style_layers: dict[str, float]

    @property
    def layers(self) -> list[str]:
        """The layers that are needed."""
        styles = [name for name, weight in self.style_layers.items() if weight and self.style]
        return [*styles, *([self.content_layer] if self.content else [])]


class Objective:
    """J of pictures of one size. The features of content and styles are computed once, here."""

    def __init__(
        self,
        net: FeatureNet,
        content: Tensor,
        styles: Sequence[Style],
        weights: Weights,
        normalisation: Normalisation,
    ) -> None:
        self.net, self.weights, self.normalisation = net, weights, normalisation
        self.style_layers = {
            name: value for name, value in weights.style_layers.items() if value and weights.style
        }
        self.has_unmasked = any(style.mask is None for style in styles)
        share = sum(style.weight for style in styles)
        self.shares = [style.weight / share for style in styles]
        with torch.no_grad():
            seen = net(content)
            self.content = seen.get(weights.content_layer) if weights.content else None
            sizes = {name: features.shape[2:] for name, features in seen.items()}
            self.masks = [
                {name: shrink(style.mask, sizes[name]) for name in self.style_layers} for style in styles
            ]
            self.targets = [self._grams(net(style.picture)) for style in styles]

    def _grams(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: gram_matrix(features[name]) for name in self.style_layers}

    def __call__(self, picture: Tensor) -> dict[str, Tensor]:
        """`content`, `style` and `variation`, without α, β and γ, and `total`, with them: scalars."""
        features = self.net(picture)
        costs = {"content": picture.new_zeros(()), "style": picture.new_zeros(())}
        if self.content is not None:
            costs["content"] = content_cost(
                features[self.weights.content_layer], self.content, self.normalisation
            )
        unmasked = self._grams(features) if self.has_unmasked else {}
        for share, target, masks in zip(self.shares, self.targets, self.masks, strict=True):
            for name, weight in self.style_layers.items():
                mask = masks[name]
                gram = unmasked[name] if mask is None else gram_matrix(features[name], mask)
                costs["style"] = costs["style"] + share * weight * style_cost(
                    gram, target[name], self.normalisation
                )
        costs["variation"] = total_variation(picture) if self.weights.variation else picture.new_zeros(())
        parts = (self.weights.content, self.weights.style, self.weights.variation)
        costs["total"] = sum(
            (part * cost for part, cost in zip(parts, costs.values(), strict=True)), picture.new_zeros(())
        )
        return costs


def shrink(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """A mask (1, 1, H, W) at a layer's size: each place's share of it."""
    return None if mask is None else F.adaptive_avg_pool2d(mask, (size[0], size[1]))
