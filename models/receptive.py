"""Receptive fields, exactly: which pixels of the picture a unit of a network sees.

Field arithmetic (Dumoulin, Visin 2016, https://arxiv.org/abs/1603.07285, section 5; Araujo, Norris, Sim 2019,
https://distill.pub/2019/computing-receptive-fields) as it is carried along one forward pass without numbers (torch's
meta device): each operation moves the fields of its input. So it holds for whatever a network does: branches, sums,
padding that depends on the picture's side, pooling by functions. Each channel has a field of its own, since those of
an inception module's branches differ.

A field is the smallest rectangle that holds all pixels the unit depends on. Where a filter is split into a row and a
column side by side (Inception-v3's last modules), pixels in its corners are not seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
# start and end of what sees no pixel: channels that a shortcut fills with zeros
NOTHING = (math.inf, -math.inf)


@dataclass(frozen=True)
class Span:
    """Of one axis: the unit at place i sees the `side` pixels from `start` + `stride` * i on.

    `start` may lie before the picture's first pixel, 0, and the end behind its last: there the unit sees padding. Of a
    channel that a shortcut fills with zeros the side is 0.
    """

    start: int
    side: int
    stride: int

    def at(self, place: int) -> tuple[int, int]:
        """First pixel, and the one after the last, of the unit at `place`."""
        first = self.start + self.stride * place
        return first, first + self.side


@dataclass(frozen=True)
class Field:
    """What a unit sees, down the rows and along the columns; None: the whole picture, whatever its size."""

    rows: Span
    columns: Span


@dataclass(frozen=True)
class LayerFields:
    """A layer's units: one a channel, at each place of a map."""

    name: str
    shape: tuple[int, ...]  # (C, h, w), or (C,) where places are gone
    fields: tuple[Field | None, ...]  # (C,)

    @property
    def has_places(self) -> bool:
        return len(self.shape) == 3

    @property
    def widest(self) -> Field | None:
        """The field that holds those of all units at a place; None: the whole picture."""
        if None in self.fields:
            return None
        seen = [field for field in self.fields if field is not None and field.rows.side]
        return Field(_hull([field.rows for field in seen]), _hull([field.columns for field in seen]))


def _hull(spans: list[Span]) -> Span:
    start = min(span.start for span in spans)
    return Span(start, max(span.start + span.side for span in spans) - start, spans[0].stride)


@dataclass(frozen=True)
class _Axis:
    """Of a tensor: pixels between a place and the next, and (start, end) of each channel's field at place 0."""

    stride: int
    bounds: tuple[tuple[float, float], ...]

    def map(self, change: Callable[[float, float], tuple[float, float]], stride: int = 1) -> "_Axis":
        return _Axis(self.stride * stride, tuple(change(*each) for each in self.bounds))


_Axes = tuple[_Axis, _Axis] | None  # None: the whole picture


def receptive_fields(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, LayerFields]:
    """The fields of every module of a network on the meta device that gives maps or vectors, for a picture (C, H, W).

    In the order in which they are called; of a module that is called again, the first call. A network that cannot take
    such a picture to its end, for its dense layers want another, gives the layers up to there. Raises ValueError for
    an operation that is not known here.
    """
    found: dict[str, LayerFields] = {}
    names = {module: name for name, module in network.named_modules() if name}
    tracer = _Tracer()

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        # pooled to a given number of places, parts have different sides
        name = names[module]
        if (
            name not in found
            and isinstance(output, Tensor)
            and (tracer.axes[output] is not None or places_of(output) == 1)
        ):
            found[name] = _layer(name, output, tracer.axes[output])

    handles = [module.register_forward_hook(record) for module in names]
    training = network.training
    first = _Axis(1, ((0.0, 1.0),) * shape[0])
    try:
        network.eval()
        # in a caller's inference mode torch would not take its operations apart, and conv2d is not known here
        with torch.inference_mode(False), torch.no_grad(), tracer:
            picture = torch.empty(1, *shape, device="meta")
            tracer.axes[picture] = (first, first)
            network(picture)
    except RuntimeError as error:
        if not found:
            raise ValueError(
                f"the network cannot take a picture of {'x'.join(map(str, shape))}: {str(error).splitlines()[0]}"
            ) from None
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found


def places_of(output: Tensor) -> int:
    """Places of a batch of maps; of vectors one."""
    return math.prod(output.shape[2:])


def _layer(name: str, output: Tensor, axes: _Axes) -> LayerFields:
    shape = tuple(output.shape[1:])
    if axes is None:
        return LayerFields(name, shape, (None,) * shape[0])
    spans = [[_span(axis.stride, *bounds) for bounds in axis.bounds] for axis in axes]
    return LayerFields(name, shape, tuple(Field(*pair) for pair in zip(*spans, strict=True)))


def _span(stride: int, start: float, end: float) -> Span:
    return Span(0, 0, stride) if end < start else Span(int(start), int(end - start), stride)


class _Tracer(TorchDispatchMode):
    """Carries the fields of tensors through each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.axes: Any = WeakIdKeyDictionary()  # tensor → _Axes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [each for each in _tensors(args) if each in self.axes]
        if inputs:
            output = result[0] if isinstance(result, tuple) else result
            self.axes[output] = self._moved(func.overloadpacket, args, inputs, output)
        return result

    def _moved(self, operation: Any, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> _Axes:
        own = [self.axes[each] for each in inputs]
        if any(axes is None for axes in own) or output.ndim != 4:
            return None
        if operation in MOVES:
            return MOVES[operation](own[0], *args[1:])
        if operation == aten.cat and args[1:] == (1,):
            return _joined(own)
        if operation in BY_PLACE and all(each.shape == output.shape for each in inputs):
            return _united(own)
        if operation in OVER_PLACES:  # of as many places as before it changes nothing
            return own[0] if inputs[0].shape == output.shape else None
        raise ValueError(
            f"what {operation} does to receptive fields is not known: add it in models/receptive.py"
        )


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [each for value in values for each in _tensors(value)] if isinstance(values, list | tuple) else []


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _window(axis: _Axis, side: int, stride: int, padding: int, dilation: int) -> _Axis:
    """Windows of each channel by itself; the first lies `padding` places before the map."""
    before, after = padding * axis.stride, (dilation * (side - 1) - padding) * axis.stride
    return axis.map(lambda start, end: (start - before, end + after), stride)


def _mixed(axis: _Axis, num_groups: int, num_outputs: int) -> _Axis:
    """Each output channel sees what the input channels of its group see together."""
    size = len(axis.bounds) // num_groups
    groups = [axis.bounds[first : first + size] for first in range(0, len(axis.bounds), size)]
    hulls = [(min(start for start, _ in group), max(end for _, end in group)) for group in groups]
    return _Axis(axis.stride, tuple(hull for hull in hulls for _ in range(num_outputs // num_groups)))


def _convolved(
    axes: Any, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    _output_padding: Any, groups: int,
) -> _Axes:  # fmt: skip
    if transposed:
        raise ValueError(
            "receptive fields of transposed convolutions are not known: add them in models/receptive.py"
        )
    sides = weight.shape[2:]
    rows, columns = (_mixed(axis, groups, len(weight)) for axis in axes)
    values = list(zip(sides, _pair(stride), _pair(padding), _pair(dilation), strict=True))
    return _window(rows, *values[0]), _window(columns, *values[1])


def _max_pooled(
    axes: Any, side: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_rest: Any
) -> _Axes:
    values = list(zip(_pair(side), _pair(stride or side), _pair(padding), _pair(dilation), strict=True))
    return _window(axes[0], *values[0]), _window(axes[1], *values[1])


def _mean_pooled(axes: Any, side: Any, stride: Any = (), padding: Any = 0, *_rest: Any) -> _Axes:
    return _max_pooled(axes, side, stride, padding)


def _padded(axes: Any, pads: list[int], *_value: Any) -> _Axes:
    """`pads` as F.pad has them: of the last axis first."""
    left, _, top, _, before, behind = [*pads, 0, 0, 0, 0][:6]

    def shifted(axis: _Axis, places: int) -> _Axis:
        bounds = tuple(
            (start - places * axis.stride, end - places * axis.stride) for start, end in axis.bounds
        )
        return _Axis(axis.stride, ((NOTHING,) * before + bounds + (NOTHING,) * behind))

    return shifted(axes[0], top), shifted(axes[1], left)


def _sliced(axes: Any, dim: int, start: int | None = None, end: int | None = None, step: int = 1) -> _Axes:
    first = start or 0
    if dim == 1:
        rows, columns = (_Axis(axis.stride, axis.bounds[first:end:step]) for axis in axes)
        return rows, columns
    moved = list(axes)
    if dim > 1:
        axis = moved[dim - 2]
        moved[dim - 2] = axis.map(lambda s, e: (s + first * axis.stride, e + first * axis.stride), step)
    return moved[0], moved[1]


def _joined(parts: list[Any]) -> _Axes:
    """Channels one behind the other."""
    rows, columns = (
        _Axis(own[0].stride, tuple(bounds for axis in own for bounds in axis.bounds))
        for own in zip(*parts, strict=True)
    )
    return rows, columns


def _united(parts: list[Any]) -> _Axes:
    """Channel by channel what any of them sees."""
    rows, columns = (
        _Axis(
            own[0].stride,
            tuple(
                (min(start for start, _ in each), max(end for _, end in each))
                for each in zip(*(axis.bounds for axis in own), strict=True)
            ),
        )
        for own in zip(*parts, strict=True)
    )
    return rows, columns


# operation → (axes of its input, its other arguments) → axes of its output
MOVES: dict[Any, Callable[..., _Axes]] = {
    aten.convolution: _convolved,
    aten.max_pool2d_with_indices: _max_pooled,
    aten.avg_pool2d: _mean_pooled,
    aten.constant_pad_nd: _padded,
    aten.slice: _sliced,
}
BY_PLACE = (
    aten.add, aten.add_, aten.mul, aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.gelu,
    aten.native_batch_norm, aten.clone,
)  # fmt: skip
OVER_PLACES = (aten.mean, aten.amax, aten._adaptive_avg_pool2d)
