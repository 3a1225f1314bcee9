"""The weights of style transfer's feature network, read: a file, a URL, a package, a trained classifier of ours."""

from collections.abc import Callable
from pathlib import Path

from tasks.featurenet import CHANNELS, StyleNet
from tasks.styleconfig import RANDOM, StyleNetConfig
from tasks.weights import normalisation_of, read_weights


def read_style_net(config: StyleNetConfig, resolve_model: Callable[[str], Path]) -> StyleNet:
    """The weights that `net.weights` names. Raises ValueError, FileNotFoundError or OSError of one line."""
    if config.weights == RANDOM:
        mean, std = normalisation_of(config.name, CHANNELS)
        return StyleNet(config, {}, mean, std, "")
    found = read_weights(config.weights, config.name, CHANNELS, resolve_model, setting="net.weights")
    if len(found.mean) != CHANNELS:
        raise ValueError(
            f"net.weights (={config.weights}): that model takes {len(found.mean)} channel(s); a feature network for "
            "style takes colour pictures"
        )
    return StyleNet(config, found.state, found.mean, found.std, found.sha256)
