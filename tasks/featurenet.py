"""A feature network of style transfer, made of weights that were read: where it is used, or where a model is loaded."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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

    @property
    def caffe(self) -> bool:
        """Whether the weights are Caffe's VGG."""
        return self.config.name.startswith("vgg") and is_caffe(self.state)

    def build(self, names: list[str], seed: int) -> FeatureNet:
        """The network up to the deepest of these layers; raises ValueError for weights of another one."""
        net, state = bare(self.config.name), self.state
        if self.caffe:
            assert isinstance(net, VGG)
            state = from_caffe(state, net)
        if self.config.weights == RANDOM:
            random_filters(net, seed)
        else:
            load_body(net, state, self.config)
        mean, std = (CAFFE_MEAN, CAFFE_STD) if self.caffe else (self.mean, self.std)
        return tapped(net, names, mean, std, self.config, self.caffe)


def bare(name: str) -> nn.Module:
    """A network of the catalogue without what features do not need; torch's random state stays as it is."""
    made = {"num_classes": LEAST_CLASSES, "channels": CHANNELS, **arguments_of(name, SIDE_PX)}
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        net = make_network(ARCHITECTURES, name, **made, **({"dense": 1} if name.startswith("vgg") else {}))
    return convolutions_alone(net) if isinstance(net, VGG) else net


def tapped(
    net: nn.Module, names: list[str], mean: tuple[float, ...], std: tuple[float, ...], config: StyleNetConfig,
    caffe: bool,
) -> FeatureNet:  # fmt: skip
    """The features of a network at these layers, in the precision of the parameters."""
    dtype = resolve_precision(config.precision, torch.device("cpu"))
    return FeatureNet(net, names, mean, std, dtype=dtype, pooling=config.pooling, ceil_mode=caffe)


def load_body(net: nn.Module, state: dict[str, Tensor], config: StyleNetConfig) -> None:
    """Load all but the head, which depends on the classes; raises ValueError where something else is missing."""
    own = net.state_dict()
    body = set(own) if isinstance(net, VGG) else parameters_of(net, stages_of(net)[:-1])
    # files of before torch 0.4.1 lack these, and nothing that is frozen needs them
    body = {name for name in body if not name.endswith("num_batches_tracked")}
    fitting = {name: state[name] for name in body if name in state and state[name].shape == own[name].shape}
    missing = sorted(body - set(fitting))
    if missing:
        raise ValueError(
            f"net.weights (={config.weights}) are not of {config.name}: {len(missing)} of its {len(body)} tensors are "
            f"not there, as {missing[0]}; set net.name to the network that they are of"
        )
    net.load_state_dict(fitting, strict=False)
