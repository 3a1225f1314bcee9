"""R-CNN (Girshick et al. 2013, https://arxiv.org/abs/1311.2524) and Fast R-CNN (Girshick 2015,
https://arxiv.org/abs/1504.08083): detectors that look at proposals which they are given.

`propose` is what gives them: any callable, pictures (B, C, S, S) uint8 and whether they may be seen again →
`Proposals`, in training and after it. By default it is selective search, which takes a second or two of a photo, with a
cache by the pictures' bytes; where augmentation makes pictures new each time, each is searched anew and not kept.

R-CNN cuts each proposal out of the picture, warps it to a square and runs the whole body on it. Fast R-CNN runs the
body once and cuts from its maps. Heads and losses are the same (models.roiheads). R-CNN here differs from its paper in
that class and box are learnt together with the body, not by support vector machines and regressions after it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.bodies import make_body
from models.detector import Finding
from models.fasterrcnn import Pooling, PyramidRcnn
from models.fpn import Norm
from models.roiheads import RegionDetector, RoiHeads
from models.rpn import Proposals

CONTEXT = 16 / 224  # of a warped square's side, on each side: what is around the proposal
CROPS_PER_PASS = 64


@dataclass
class SelectiveSearch:
    """Selective search of a batch; the boxes of the last `cache_size` different pictures are kept."""

    most: int = 2000
    least_side_px: int = 10
    cache_size: int = 10_000
    cache: OrderedDict[bytes, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, images: Tensor, keep: bool = True) -> Proposals:
        """Pictures (B, C, S, S) uint8 → what may hold an object in them; `keep` where they may be asked for again."""
        look = self._kept if keep else self._search
        boxes = [look(picture) for picture in images.permute(0, 2, 3, 1).cpu().contiguous().numpy()]
        image = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(each) for each in boxes]))
        return Proposals(torch.from_numpy(np.concatenate(boxes)).to(images.device), image.to(images.device))

    def _search(self, picture: np.ndarray) -> np.ndarray:
        from data.proposals import selective_search  # only now: scikit-image takes a second to import

        return selective_search(picture, self.most, self.least_side_px)

    def _kept(self, picture: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(repr(picture.shape).encode() + picture.tobytes(), digest_size=16).digest()
        boxes = self.cache.pop(key, None)
        if boxes is None:
            boxes = self._search(picture)
        self.cache[key] = boxes  # the last used comes last
        while len(self.cache) > self.cache_size:
            self.cache.popitem(last=False)
        return boxes


class FastRcnn(PyramidRcnn):
    """A detector, see models.detector, that cuts given proposals out of its maps."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        strides: Sequence[int],
        width: int,
        norm: Norm,
        norm_eps: float,
        num_frozen: int,
        pooling: Pooling,
        canonical_px: float,
        head_width: int,
        num_samples: int,
        proposals: int,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
    ) -> None:
        """`pooling` is max in the paper, and of one stride (16); `proposals` of a picture, at most."""
        super().__init__(
            num_classes, channels, body, strides, width, norm, norm_eps, num_frozen, pooling, canonical_px,
            head_width, num_samples, mean, std, finding,
        )  # fmt: skip
        self.propose = SelectiveSearch(proposals)


class Rcnn(RegionDetector):
    """A detector, see models.detector, that runs a classifier's body on each proposal."""

    regions_per_pass = CROPS_PER_PASS

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        crop_px: int,
        num_samples: int,
        proposals: int,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
    ) -> None:
        """`crop_px` is the side that proposals are warped to; `proposals` of a picture, at most."""
        super().__init__(num_classes, mean, std, finding)
        self.crop_px = crop_px
        self.body = make_body(body, channels)
        self.roi_heads = RoiHeads(MeanOfPlaces(), self.body.widths[-1], num_classes, num_samples)
        self.propose = SelectiveSearch(proposals)

    @property
    def heads(self) -> RoiHeads:
        return self.roi_heads

    def maps(self, images: Tensor) -> list[Tensor]:
        """The pictures themselves."""
        return [self.normalise(images)]

    def look(self, maps: list[Tensor], boxes_xyxy: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + K) and offsets (R, 1 + K, 4) of boxes (R, 4)."""
        return self.heads(self.body(warped(maps[0], boxes_xyxy, image, self.crop_px))[-1])


class MeanOfPlaces(nn.Module):
    """(R, C, H, W) → (R, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def warped(pictures: Tensor, boxes_xyxy: Tensor, image: Tensor, crop_px: int) -> Tensor:
    """Cut boxes (R, 4) out of normalised pictures (B, C, S, S), with some context, and warp them: (R, C, crop, crop).

    Edges are rounded to whole pixels. Outside the picture is its mean, 0.
    """
    S = pictures.shape[2]
    around = CONTEXT / (1 - 2 * CONTEXT) * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2])
    border = int(np.ceil(CONTEXT / (1 - 2 * CONTEXT) * S)) + 1
    padded = F.pad(pictures, (border,) * 4)
    low = (boxes_xyxy[:, :2] - around).round().long() + border
    high = torch.maximum((boxes_xyxy[:, 2:] + around).round().long() + border, low + 1)
    size = (crop_px, crop_px)
    crops = [
        F.interpolate(padded[i, None, :, y0:y1, x0:x1], size, mode="bilinear", antialias=True)
        for i, (x0, y0), (x1, y1) in zip(image.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    return torch.cat(crops) if crops else pictures.new_zeros(0, pictures.shape[1], *size)
