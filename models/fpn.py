"""Feature pyramids (Lin et al. 2016, https://arxiv.org/abs/1612.03144), with torchvision's layout and keys.

A body gives maps at rising strides; the pyramid brings them to one width and adds to each what the coarser ones know.
Bodies are the ResNets of the catalogue, at strides 4 to 32, and those of models.bodies, at strides 8 to 32. Batch
norms can be frozen, as where a detector starts from a classifier: batches of a few pictures have no good statistics.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.bodies import STRIDES, make_body
from models.classification import ARCHITECTURES
from models.resnet import ResNet

Norm = Literal["frozen", "batch"]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RESNET_STRIDES = (4, 8, 16, 32)
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class FrozenBatchNorm2d(nn.Module):
    """Batch norm by statistics and a scale that are buffers: they are loaded, and never change."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, eps: float) -> None:
        """From the norm whose place it takes."""
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            assert isinstance(value, Tensor)
            self.register_buffer(name, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def freeze_norms(module: nn.Module, eps: float) -> None:
    """Put `FrozenBatchNorm2d` in the place of every batch norm below `module`."""
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.BatchNorm2d):
            module.set_submodule(path, FrozenBatchNorm2d(child, eps))


class ResNetBody(nn.Module):
    """A ResNet of the catalogue without its head: (B, channels, H, W) → maps at the first `num_maps` of strides 4, 8,
    16 and 32."""

    def __init__(self, name: str, channels: int, num_maps: int = 4) -> None:
        super().__init__()
        net = ARCHITECTURES[name](num_classes=1, channels=channels)
        assert isinstance(net, ResNet)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layers = STAGES[1 : 1 + num_maps]
        for layer in self.layers:
            self.add_module(layer, net.get_submodule(layer))
        self.widths = tuple(net.fc.in_features >> i for i in (3, 2, 1, 0))[:num_maps]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
            maps.append(x)
        return maps

    def freeze(self, num_stages: int) -> None:
        """Do not train the first of `STAGES`: no gradient."""
        for stage in STAGES[:num_stages]:
            for name in ("conv1", "bn1") if stage == "stem" else (stage,):
                self.get_submodule(name).requires_grad_(False)


class FeaturePyramid(nn.Module):
    """Maps (B, C_i, H_i, W_i) at rising strides → as many (B, width, H_i, W_i), and one more: every second pixel of the
    last."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        # each in a sequence of its own: torchvision's keys
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(each, width, 1)) for each in widths)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1)) for _ in widths
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        inner = [block(each) for block, each in zip(self.inner_blocks, maps, strict=True)]
        for i in range(len(inner) - 2, -1, -1):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[2:], mode="nearest")
        outputs = [block(each) for block, each in zip(self.layer_blocks, inner, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]


class Backbone(nn.Module):
    """A body and its pyramid: (B, channels, H, W) → maps (B, width, H / s, W / s) at `strides`, and at twice the last.

    `num_frozen` stages of a ResNet (`STAGES`) are not trained. Raises ValueError for strides that the body has not.
    """

    def __init__(
        self,
        body: str,
        channels: int,
        strides: Sequence[int],
        width: int,
        norm: Norm,
        norm_eps: float,
        num_frozen: int,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        there = RESNET_STRIDES if body in RESNETS else STRIDES
        if not strides or list(strides) != sorted(set(strides) & set(there)):
            raise ValueError(f"strides (={list(strides)}) must be some of {body}'s {list(there)}, rising")
        self.taken = [there.index(stride) for stride in strides]
        make = ResNetBody if body in RESNETS else make_body
        self.body = make(body, channels, self.taken[-1] + 1)
        if norm == "frozen":
            freeze_norms(self.body, norm_eps)
        if num_frozen:
            if (
                not isinstance(self.body, ResNetBody)
                or norm != "frozen"
                or num_frozen > 1 + len(self.body.layers)
            ):
                raise ValueError(
                    f"num_frozen (={num_frozen}) is of the stages of a ResNet with norm=frozen, {', '.join(STAGES)}; "
                    f"the body is {body} with norm={norm}"
                )
            self.body.freeze(num_frozen)
        self.fpn = FeaturePyramid([self.body.widths[i] for i in self.taken], width)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return self.fpn([maps[i] for i in self.taken])
