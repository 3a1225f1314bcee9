"""airbench94's network for small pictures (https://arxiv.org/abs/2404.00498), 1,971,640 parameters at 10 classes.

A frozen 2x2 convolution whitens patches; three groups of two 3x3 convolutions follow, each with its pooling
before the first batch norm; the head takes the maximum over places. Convolutions start as partial identities
(`dirac_`), batch norms have a bias but no scale, logits are divided by nine.

Deviations: the widths are arguments, and a single input channel is allowed, for narrower presets and grey
pictures.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_SCALE = 1 / 9
# torch's convention: the share of the new statistics; the paper's 0.6 is the share kept
BATCH_NORM_MOMENTUM = 0.4
WHITENING_EPS = 5e-4


class BiasBatchNorm(nn.BatchNorm2d):
    """Batch norm with a bias and no scale."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-12, momentum=BATCH_NORM_MOMENTUM, affine=False)
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda:
            return super().forward(input)
        # cuDNN's backward pass gives no gradient of a bias without a scale
        scale, seen = torch.ones_like(self.bias), (self.running_mean, self.running_var)
        return F.batch_norm(input, *seen, scale, self.bias, self.training, BATCH_NORM_MOMENTUM, self.eps)


def identity_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution without bias whose first `in_channels` filters pass their channel through."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


class Group(nn.Module):
    """conv, pool, norm, GELU, conv, norm, GELU: (B, C, H, W) → (B, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = identity_conv(in_channels, out_channels)
        self.norm1 = BiasBatchNorm(out_channels)
        self.conv2 = identity_conv(out_channels, out_channels)
        self.norm2 = BiasBatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class AirNet(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; H and W at least 9."""

    def __init__(
        self, num_classes: int, channels: int, widths: tuple[int, int, int] = (64, 256, 256)
    ) -> None:
        super().__init__()
        num_whitened = 2 * channels * 2 * 2  # every eigenvector and its negative
        self.whiten = nn.Conv2d(channels, num_whitened, 2)
        self.whiten.weight.requires_grad = False
        ins = (num_whitened, *widths[:-1])
        self.groups = nn.Sequential(*(Group(i, o) for i, o in zip(ins, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        return self.head(x.amax(dim=(2, 3))) * LOGIT_SCALE

    @torch.no_grad()
    def fit_whitening(self, images: Tensor) -> None:
        """Set the first convolution to the eigenvectors of 2x2 patches over √(eigenvalue + 5e-4), with both signs.

        `images` (N, C, H, W) float, normalised as in training; 5,000 are enough.
        """
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, images.shape[1] * 4)  # (N * places, 4C)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + WHITENING_EPS)).T.reshape(-1, images.shape[1], 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
