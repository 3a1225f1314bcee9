"""What a stylizer is trained with beside its dataset: the feature network's weights and the style pictures, read."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import DatasetInfo
from data.decode import DecodeError, decode_image
from data.samples import read_photo
from data.squares import to_square
from tasks.style import StyleSources, StylizerConfig
from tasks.stylenet import read_style_net


def read_sources(
    config: StylizerConfig,
    info: DatasetInfo | None,  # noqa: ARG001 - style pictures are not of the dataset
    resolve_model: Callable[[str], Path],
) -> StyleSources:
    """Read what `net.weights` and `styles` name. Raises ValueError, FileNotFoundError or OSError of one line."""
    net = read_style_net(config.net, resolve_model)
    styles, hashes = read_styles(config.styles, config.style_px)
    both = hashlib.sha256("\n".join((net.sha256, *hashes.values())).encode()).hexdigest()
    about = {"net_sha256": net.sha256, "styles_sha256": hashes, "caffe": net.caffe}
    return StyleSources(
        source=config.net.weights, sha256=both, state={}, mean=net.mean, std=net.std, about=about, net=net,
        styles=styles,
    )  # fmt: skip


def read_styles(styles: Sequence[tuple[str, str]], side_px: int) -> tuple[Tensor, dict[str, str]]:
    """The middle of each picture (S, 3, side, side) uint8, and the sha256 of each file by the style's name."""
    squares, hashes = [], {}
    for name, photo in styles:
        blob = read_photo(photo)
        try:
            square = to_square(decode_image(blob, channels=3), side_px, "crop")
        except DecodeError as error:
            raise DecodeError(f"styles: {name} (={photo}): {error}") from None
        squares.append(torch.from_numpy(square))
        hashes[name] = hashlib.sha256(blob).hexdigest()
    return torch.stack(squares), hashes
