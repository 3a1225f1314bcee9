"""Single units of a network: their activations as pictures pass, and how the prediction hangs on places of a picture.

A unit is a channel of a layer, a layer any module by its dotted name. What lies behind the layers asked for is not
run. Activations are taken as the module gives them: a ReLU that comes after it and works in place is not seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.stages import stages_of


class _Enough(Exception):
    """All layers asked for have been called."""


def activations(net: nn.Module, layers: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What each layer gives for a normalised batch: (B, C, h, w), or (B, C); nothing behind the last one is run.

    Of a module that is called again, as a ReLU may be, it is the first call.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if name not in found:
                found[name] = output.clone()  # what comes after may write over it
            if len(found) == len(set(layers)):
                raise _Enough

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in set(layers)]
    try:
        net(x)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in layers}


def named_layers(
    net: nn.Module, names: Sequence[str], known: Sequence[str], architecture: str
) -> dict[str, str]:
    """Modules by their own names or by those of stages (models.stages), which stand for their last module with units.

    To each module the name that it was asked for by, the first of several. `known`: modules that have units. Raises
    ValueError for other names, listing what there is of the `architecture`.
    """
    of_stage: dict[str, str] = {}
    for stage in stages_of(net):
        inside = [name for name in known if any(f"{name}.".startswith(f"{own}.") for own in stage.modules)]
        tops = [own for own in stage.modules if own in known]
        if inside:
            of_stage[stage.name] = tops[-1] if tops else inside[-1]
    unknown = [name for name in names if name not in known and name not in of_stage]
    if unknown or not names:
        raise ValueError(
            f"layer {', '.join(unknown) or 'to look at'} is not known: give one of the stages {', '.join(of_stage)}, "
            f"or a module such as {', '.join(_spread(known, 6))} (all: ./convoy models show {architecture})"
        )
    called: dict[str, str] = {}
    for name in names:
        called.setdefault(name if name in known else of_stage[name], name)
    return called


def _spread(names: Sequence[str], num: int) -> list[str]:
    step = max(1, len(names) // num)
    return list(names[step - 1 :: step][:num])


def strongest_places(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The highest value of each unit and the place of it, the first where several are equal: (B, C), (B, C) int64.

    `maps` (B, C, h, w), or (B, C), whose one place is 0; a place is row * w + column.
    """
    flat = maps.flatten(2) if maps.ndim == 4 else maps[..., None]
    places = flat.argmax(2)  # torch: of several, the first
    return flat.gather(2, places[..., None])[..., 0], places


@dataclass
class TopUnits:
    """The strongest pictures of each unit so far, from strongest to weakest; of equal ones the earlier is first.

    (U, K) each: `values`, `pictures` (indices of a split; -1: none yet), `places` in the layer's map. A picture counts
    once for a unit, by its strongest place.
    """

    values: Tensor
    pictures: Tensor
    places: Tensor

    @classmethod
    def empty(cls, num_units: int, num: int) -> "TopUnits":
        none = torch.full((num_units, num), -1)
        return cls(torch.full((num_units, num), -torch.inf), none, none.clone())

    def update(self, values: Tensor, pictures: Tensor, places: Tensor) -> None:
        """Take in more pictures: (B, U) values and places, (B,) indices that are not among those seen."""
        self._keep(values.T, pictures.expand(values.shape[1], -1), places.T)

    def merge(self, other: "TopUnits") -> None:
        """Take in what another saw of other pictures: the order of merging does not matter."""
        self._keep(other.values, other.pictures, other.places)

    def _keep(self, values: Tensor, pictures: Tensor, places: Tensor) -> None:
        num = self.values.shape[1]
        joined = [torch.cat(pair, 1) for pair in (
            (self.values, values), (self.pictures, pictures), (self.places, places)
        )]  # fmt: skip
        by_picture = joined[1].argsort(dim=1, stable=True)
        ordered = [each.gather(1, by_picture) for each in joined]
        best = ordered[0].argsort(dim=1, descending=True, stable=True)[:, :num]
        self.values, self.pictures, self.places = (each.gather(1, best) for each in ordered)


@dataclass
class Moments:
    """Running sums from which the correlations of the units of two networks follow: float64, (U,), (V,), (U, V)."""

    num: int
    first: Tensor
    first_squared: Tensor
    second: Tensor
    second_squared: Tensor
    product: Tensor

    @classmethod
    def empty(cls, num_first: int, num_second: int) -> "Moments":
        one, other = torch.zeros(num_first).double(), torch.zeros(num_second).double()
        return cls(0, one, one.clone(), other, other.clone(), torch.zeros(num_first, num_second).double())

    def update(self, first: Tensor, second: Tensor) -> None:
        """Take in values of the same pictures: (B, U) and (B, V)."""
        a, b = first.double(), second.double()
        self.merge(Moments(len(a), a.sum(0), a.square().sum(0), b.sum(0), b.square().sum(0), a.T @ b))

    def merge(self, other: "Moments") -> None:
        self.num += other.num
        for name in ("first", "first_squared", "second", "second_squared", "product"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def correlations(self) -> Tensor:
        """Pearson's, (U, V); 0 with a unit that never changed."""
        apart = self.num * self.product - self.first[:, None] * self.second
        one = (self.num * self.first_squared - self.first.square()).clamp_min(0).sqrt()
        other = (self.num * self.second_squared - self.second.square()).clamp_min(0).sqrt()
        scale = one[:, None] * other
        still = scale <= 1e-9 * self.num * (
            self.first_squared.sqrt()[:, None] * self.second_squared.sqrt() + 1e-30
        )
        return (apart / scale.clamp_min(1e-30)).clamp(-1, 1).masked_fill(still, 0.0)


class _LastMap(TorchFunctionMode):
    """Keeps the last map with more places than one, whichever function made it: often no module's output.

    Not one that is averaged to a given number of places: VGG's 7x7 are one place, repeated, of a picture of 32 px.
    """

    maps: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_map = isinstance(result, Tensor) and result.ndim == 4 and result.shape[2:].numel() > 1
        if is_map and func is not F.adaptive_avg_pool2d:
            self.maps = result
        return result


def grad_cam(net: nn.Module, layer: str | None, x: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391): (B, h, w), none below 0, of a layer's map.

    The maps of the layer, each weighted by the mean gradient of the class's logit over its places, added and rectified;
    without a layer those of the last maps that have more places than one, activation included, before they are averaged
    to a given number of places. `x` (B, C, H, W) normalised, `classes` (B,). Raises ValueError for a network without
    such maps.
    """
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what comes after may write over it

    handle = net.get_submodule(layer).register_forward_hook(hook) if layer else None
    x = x.detach().requires_grad_()  # not below: it would count as a map
    try:
        with torch.enable_grad(), _LastMap() as last:
            logits = net(x)
    finally:
        if handle:
            handle.remove()
    maps = kept[0] if layer else last.maps
    if maps is None:
        raise ValueError(
            "the network has no maps with more places than one: Grad-CAM has nothing to show; try occlusion"
        )
    [gradient] = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), [maps])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return F.relu((weights * maps.detach()).sum(1))


def occlusion(
    score: Callable[[Tensor], Tensor],
    picture: Tensor,
    fill: Tensor,
    window_px: int,
    stride_px: int,
    batch_size: int,
) -> Tensor:
    """Occlusion (Zeiler, Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2): how far the score falls, (H, W).

    A square of `window_px` filled with `fill` (C,) is laid over the picture (C, H, W) at each `stride_px`, at the far
    borders too; a pixel has the mean fall over the squares that covered it. `score`: (B, C, H, W) → (B,).
    """
    _, H, W = picture.shape
    rows, columns = (_starts(side, window_px, stride_px) for side in (H, W))
    places = [(row, column) for row in rows for column in columns]
    whole = score(picture[None])[0]
    falls, covered = torch.zeros(H, W), torch.zeros(H, W)
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        hidden = picture.repeat(len(part), 1, 1, 1)
        for copy, (row, column) in zip(hidden, part, strict=True):
            copy[:, row : row + window_px, column : column + window_px] = fill[:, None, None].to(copy.dtype)
        for (row, column), value in zip(part, (whole - score(hidden)).tolist(), strict=True):
            falls[row : row + window_px, column : column + window_px] += value
            covered[row : row + window_px, column : column + window_px] += 1
    return falls / covered


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Of windows along an axis, the last one at its end."""
    if not 1 <= window <= side or not 1 <= stride <= window:
        raise ValueError(
            f"occlusion's window (={window}) must lie in 1…{side}, the picture's side, and its stride (={stride}) in "
            f"1…{window}, so that every pixel is covered"
        )
    return sorted({*range(0, side - window + 1, stride), side - window})
