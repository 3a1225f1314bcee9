"""The one way from an encoded picture to a face, by an alignment (data/aligned.py) and the networks that it needs.

`none` and `crop` take the face to be where the data have it; `mtcnn` finds faces and five points of each anywhere in a
picture; `landmarks68` finds 68 points where one face fills the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.aligned import Choice, FaceAlignment
from data.alignment import align, five_of_68
from data.decode import decode_image
from data.squares import to_square
from models import facelandmarks68
from models.boxes import area
from models.facelandmarks68 import FaceLandmarks68
from models.mtcnn import MTCNN, Faces, Search
from tasks.faceweights import load_face_landmarks68, load_mtcnn


class FaceError(ValueError):
    """Why there is no face to be had from a picture, in one line."""


@dataclass(frozen=True)
class Aligner:
    """An alignment with the networks it needs, on the CPU; `config` has their checksum."""

    config: FaceAlignment
    find: Callable[[Tensor], Faces] | None  # of mtcnn and landmarks68: faces of a picture (3, H, W) uint8

    def face(self, data: bytes) -> Tensor:
        """The face of an encoded picture: (3, side_px, side_px) uint8, RGB.

        Raises DecodeError for what is no picture, and FaceError where no face is found, or several and one was wanted.
        """
        picture = decode_image(data, channels=3)
        if self.find is None:
            return torch.from_numpy(fixed_square(picture, self.config.crop_xyxy, self.config.side_px))
        pixels = planes(picture)
        found = self.find(pixels)
        number = choose(found, picture.width, picture.height, self.config.face)
        return self._aligned(pixels, found.points_xy[number : number + 1])[0]

    def faces(self, data: bytes) -> tuple[Tensor, Faces]:
        """Every face of an encoded picture, the surest first: (N, 3, side_px, side_px) uint8, and where each is.

        Raises DecodeError for what is no picture, and FaceError of a method that looks for no faces.
        """
        if self.find is None:
            raise FaceError(
                f"method (={self.config.method}) takes each picture for one face; mtcnn finds several"
            )
        pixels = planes(decode_image(data, channels=3))
        found = self.find(pixels)
        return self._aligned(pixels, found.points_xy), found

    def _aligned(self, pixels: Tensor, points_xy: Tensor) -> Tensor:
        pictures = pixels.expand(len(points_xy), *pixels.shape)
        config = self.config
        return align(pictures, points_xy, config.side_px, config.margin, config.template)


def open_aligner(config: FaceAlignment) -> Aligner:
    """Read the networks that an alignment needs.

    Raises ValueError or FileNotFoundError, of one line, where there are none, or others than `weights_sha256` says.
    """
    find: Callable[[Tensor], Faces]
    if config.method == "mtcnn":
        net, sha256 = load_mtcnn(config.weights)
        find = partial(sure_faces, net, Search(min_face_px=config.min_face_px), config.min_score)
    elif config.method == "landmarks68":
        points_net, sha256 = load_face_landmarks68(config.weights)
        find = partial(whole_face, points_net, config.crop_xyxy)
    else:
        return Aligner(config, None)
    if config.weights_sha256 not in ("", sha256):
        raise ValueError(
            f"weights (={config.weights}) are not those of the model: their checksum is {sha256[:12]}…, the model's "
            f"{config.weights_sha256[:12]}…; give the weights that it was made with"
        )
    return Aligner(config.model_copy(update={"weights_sha256": sha256}), find)


def planes(picture: Image.Image) -> Tensor:
    """A decoded picture as (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def fixed_square(
    picture: Image.Image, crop_xyxy: tuple[int, int, int, int] | None, side_px: int
) -> np.ndarray:
    """A box of a picture stretched to a square, or its central square: (3, side_px, side_px) uint8."""
    if crop_xyxy is None:
        return to_square(picture, side_px, "crop")
    check_inside(crop_xyxy, picture.width, picture.height)
    return to_square(picture.crop(crop_xyxy), side_px, "squash")


def check_inside(crop_xyxy: tuple[int, int, int, int], width_px: int, height_px: int) -> None:
    """Raise FaceError for a box that a picture does not have."""
    if crop_xyxy[2] > width_px or crop_xyxy[3] > height_px:
        raise FaceError(
            f"the picture is {width_px}×{height_px}: crop_xyxy (={crop_xyxy}) reaches beyond it; the box belongs to "
            "pictures of one size"
        )


def sure_faces(net: MTCNN, search: Search, min_score: float, pixels: Tensor) -> Faces:
    """The faces of a picture (3, H, W) with a score of `min_score` or more."""
    found: Faces = net(pixels, search)
    kept = found.scores >= min_score
    return Faces(found.boxes_xyxy[kept], found.scores[kept], found.points_xy[kept])


@torch.inference_mode()
def whole_face(net: FaceLandmarks68, crop_xyxy: tuple[int, int, int, int] | None, pixels: Tensor) -> Faces:
    """The one face that fills a picture (3, H, W), or the box of it; its score is 1, for nobody asks whether it is one.

    Without a box it is the picture's central square, as in `fixed_square`.
    """
    H, W = pixels.shape[1:]
    if crop_xyxy is None:
        side = min(H, W)
        left, top = (W - side) // 2, (H - side) // 2
        x0, y0, x1, y1 = left, top, left + side, top + side
    else:
        check_inside(crop_xyxy, W, H)
        x0, y0, x1, y1 = crop_xyxy
    size = (facelandmarks68.INPUT_PX,) * 2
    square = F.interpolate(pixels[None, :, y0:y1, x0:x1], size, mode="bilinear", antialias=True)
    shares = net(square)[0]
    points = shares * shares.new_tensor([x1 - x0, y1 - y0]) + shares.new_tensor([x0, y0])
    box = shares.new_tensor([[x0, y0, x1, y1]])
    return Faces(box, shares.new_ones(1), five_of_68(points)[None])


def choose(found: Faces, width_px: int, height_px: int, choice: Choice) -> int:
    """Which face is meant; raises FaceError where there is none, or several and `choice` is `only`."""
    num = len(found.scores)
    if not num:
        raise FaceError("no face was found: crop the picture closer to the face")
    if choice == "only" and num > 1:
        raise FaceError(f"{num} faces were found; one is wanted (face=largest or central chooses)")
    if choice == "central":
        middle = found.boxes_xyxy.new_tensor([width_px, height_px]) / 2
        centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
        return int((centres - middle).norm(dim=1).argmin())
    return int(area(found.boxes_xyxy).argmax())
