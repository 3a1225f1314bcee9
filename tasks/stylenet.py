"""The feature network of style transfer, with its weights: a file, a URL, a package, a trained classifier of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.catalogue import make_network
from models.classification import ARCHITECTURES, arguments_of
from models.stages import parameters_of, stages_of
from models.taps import (
    CAFFE_MEAN,
    CAFFE_STD,
    FeatureNet,
    convolutions_alone,
    from_caffe,
    is_caffe,
    random_filters,
)
from models.vgg import VGG
from tasks.precision import resolve_precision
from tasks.styleconfig import RANDOM, StyleNetConfig
from tasks.weights import normalisation_of, read_weights

CHANNELS, SIDE_PX = 3, 224
LEAST_CLASSES = 1  # of a network whose head is thrown away


@dataclass(frozen=True)
class StyleNet:
    """What a feature network is made of: read on the driver, made where it is used."""

    config: StyleNetConfig
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def build(self, names: list[str], seed: int) -> FeatureNet:
        """The network up to the deepest of these layers; raises ValueError for weights of another one."""
        name = self.config.name
        made = {"num_classes": LEAST_CLASSES, "channels": CHANNELS, **arguments_of(name, SIDE_PX)}
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
            net = make_network(
                ARCHITECTURES, name, **made, **({"dense": 1} if name.startswith("vgg") else {})
            )
        state, caffe = self.state, False
        if isinstance(net, VGG):
            caffe = is_caffe(state)
            net = convolutions_alone(net)
            state = from_caffe(state, net) if caffe else state
        if self.config.weights == RANDOM:
            random_filters(net, seed)
        else:
            load_body(net, state, self.config)
        dtype = resolve_precision(self.config.precision, torch.device("cpu"))
        mean, std = (CAFFE_MEAN, CAFFE_STD) if caffe else (self.mean, self.std)
        return FeatureNet(net, names, mean, std, dtype=dtype, pooling=self.config.pooling, ceil_mode=caffe)


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


def load_body(net: torch.nn.Module, state: dict[str, Tensor], config: StyleNetConfig) -> None:
    """Load all but the head, which depends on the classes; raises ValueError where something else is missing."""
    own = net.state_dict()
    body = set(own) if isinstance(net, VGG) else parameters_of(net, stages_of(net)[:-1])
    fitting = {name: state[name] for name in body if name in state and state[name].shape == own[name].shape}
    missing = sorted(body - set(fitting))
    if missing:
        raise ValueError(
            f"net.weights (={config.weights}) are not of {config.name}: {len(missing)} of its {len(body)} tensors are "
            f"not there, as {missing[0]}; set net.name to the network that they are of"
        )
    net.load_state_dict(fitting, strict=False)
