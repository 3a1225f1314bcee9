"""The catalogue of networks for signals: convolutions along time, and a mean over time, so that any length fits.

- `resnet_ts`: the residual network of Wang, Yan, Oates 2017 (https://arxiv.org/abs/1611.06455), at full resolution
  throughout: for series of up to some hundred samples. On 1 channel and 2 classes: 504,258 parameters, to which
  the authors' Keras code adds 2,560 running statistics.
- `m5`: Dai, Dai, Qu, Li, Das 2016 (https://arxiv.org/abs/1610.00087), for sound: a long first filter with a stride,
  then poolings by four. With 32 filters, as torchaudio's tutorial has it, on 35 classes: 26,915 parameters.
- `m5_wide`: the same with the paper's 128 filters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data.parameters import Parameters
from models.catalogue import make_network
from models.standardised import Standardised, initialise

Architecture = Literal["resnet_ts", "m5", "m5_wide"]


class Same(nn.Module):
    """Convolution, norm, and ReLU if wished, of unchanged length: (B, C, L) → (B, C', L)."""

    def __init__(self, in_channels: int, channels: int, width: int, activate: bool = True) -> None:
        super().__init__()
        self.padding = ((width - 1) // 2, width // 2)
        self.conv = nn.Conv1d(in_channels, channels, width)
        self.norm = nn.BatchNorm1d(channels)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(F.pad(x, self.padding)))
        return y.relu() if self.activate else y


class SeriesBlock(nn.Module):
    """Three convolutions of 8, 5 and 3 samples around a shortcut."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Same(in_channels, channels, 8), Same(channels, channels, 5), Same(channels, channels, 3, False)
        )
        self.shortcut: nn.Module = nn.BatchNorm1d(channels)
        if in_channels != channels:
            self.shortcut = Same(in_channels, channels, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x) + self.shortcut(x)).relu()


class SeriesResNet(nn.Module):
    """(B, channels, L) → (B, num_classes) logits."""

    def __init__(
        self, num_classes: int, channels: int, widths: tuple[int, int, int] = (64, 128, 128)
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.blocks = nn.Sequential(
            SeriesBlock(channels, first), SeriesBlock(first, second), SeriesBlock(second, third)
        )
        self.head = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(2))


class M5(nn.Module):
    """(B, channels, L) → (B, num_classes) logits."""

    def __init__(self, num_classes: int, channels: int, width: int = 32, stride: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, filters, step = channels, 80, stride
        for after in (width, width, 2 * width, 2 * width):
            layers += [
                nn.Conv1d(before, after, filters, step),
                nn.BatchNorm1d(after),
                nn.ReLU(),
                nn.MaxPool1d(4),
            ]
            before, filters, step = after, 3, 1
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(2))


# name → builder(num_classes, channels) of the bare network
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet_ts": SeriesResNet,
    "m5": M5,
    "m5_wide": partial(M5, width=128),
}
assert set(ARCHITECTURES) == set(get_args(Architecture))


class SignalModel(Parameters):
    """Which network."""

    name: Architecture = Field(description="a network of the catalogue: ./convoy models list --catalogue")


def least_length(name: str) -> int:
    """The shortest signal that a network takes: what is left after its poolings is one sample."""
    if name == "resnet_ts":
        return 1
    length = 1
    for filters, step in ((3, 1), (3, 1), (3, 1), (80, 4)):  # M5's layers from the last: each pooled by four
        length = (4 * length - 1) * step + filters
    return length


def require_fit(name: str, length: int) -> None:
    """Raise a ValueError if signals of this length are too short for a network."""
    if length < least_length(name):
        raise ValueError(
            f"input.length (={length}) is too short for {name}: it must be at least {least_length(name)}"
        )


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Standardised:
    """A fresh network by its catalogue name; raises ValueError for a name that is not known."""
    net = make_network(ARCHITECTURES, name, num_classes=num_classes, channels=channels, **arguments)
    return Standardised(net, mean, std, 1)
