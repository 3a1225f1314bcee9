"""How the faces of a model were aligned: part of the model, and the one way from an encoded picture to a face.

Alignment and the choice of the face move verification more than the network does, so a card names both, with the
checksum of the weights that found the face. `none` and `crop` take the face to be where the data have it; `mtcnn` finds
faces and five points of each anywhere in a picture; `landmarks68` finds 68 points where one face fills the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from data.alignment import align, five_of_68
from data.decode import DecodeError, decode_image, to_square
from data.parameters import Parameters
from models import facelandmarks68
from models.mtcnn import Faces, Search
from tasks.faceweights import load_face_landmarks68, load_mtcnn

Method = Literal["none", "crop", "mtcnn", "landmarks68"]
Choice = Literal["only", "largest", "central"]
WITH_WEIGHTS = ("mtcnn", "landmarks68")


class FaceError(ValueError):
    """Why there is no face to be had from a picture, in one line."""


class FaceAlignment(Parameters):
    """From an encoded picture to a square that shows a face; what no method needs has no value."""

    method: Method = Field(
        description="none: the central square; crop: a fixed box; mtcnn: faces are found; landmarks68: the face that "
        "fills the picture, or `crop_xyxy` of it, by its 68 points"
    )
    side_px: int = Field(ge=16, le=1024, description="side of the square, in pixels")
    crop_xyxy: tuple[int, int, int, int] | None = Field(
        default=None, description="edges of the box in the upright picture's pixels; of crop and landmarks68"
    )
    margin: float = Field(
        default=0.0, gt=-0.5, le=1, description="seen beyond each edge of ArcFace's template, as a share of its side"
    )
    face: Choice = Field(
        default="largest", description="of several faces: only: that is an error; largest; central (of mtcnn)"
    )
    min_face_px: int = Field(default=20, ge=12, description="smaller faces are not looked for (of mtcnn)")
    min_score: float = Field(default=0.9, gt=0, lt=1, description="of what counts as a face (of mtcnn)")
    weights: str = Field(
        default="", description="package:facenet_pytorch, a folder or a file; of mtcnn and landmarks68"
    )
    weights_sha256: str = Field(
        default="", description="of the weights' tensors; a model's card has it, and others are refused"
    )

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> Self:
        if (self.method in WITH_WEIGHTS) != bool(self.weights):
            raise ValueError(f"weights (={self.weights!r}) belong to {' and '.join(WITH_WEIGHTS)}, not others")
        if self.method == "crop" and self.crop_xyxy is None:
            raise ValueError("method (=crop) needs crop_xyxy")
        if self.method in ("none", "mtcnn") and self.crop_xyxy is not None:
            raise ValueError(f"crop_xyxy (={self.crop_xyxy}) does not belong to method (={self.method})")
        if self.crop_xyxy is not None:
            x0, y0, x1, y1 = self.crop_xyxy
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"crop_xyxy (={self.crop_xyxy}) must be x0 < x1, y0 < y1, from 0 on")
        return self


@dataclass(frozen=True)
class Aligner:
    """An alignment with the networks it needs, on the CPU; `config` has their checksum."""

    config: FaceAlignment
    find: Callable[[Tensor], Faces] | None  # of mtcnn and landmarks68: faces of a picture (3, H, W) uint8

    def face(self, data: bytes) -> Tensor:
        """The face of an encoded picture: (3, side_px, side_px) uint8, RGB.

        Raises DecodeError for what is no picture, and FaceError where no face is found, or several and one was wanted.
        """
        picture = _decoded(data)
        if self.find is None:
            return self._square(picture)
        found = self.find(picture)
        number = choose(found, picture.shape[2], picture.shape[1], self.config.face)
        return self._aligned(picture, found.points_xy[number : number + 1])[0]

    def all_faces(self, data: bytes) -> tuple[Tensor, Faces]:
        """Every face of an encoded picture, the surest first: (N, 3, side_px, side_px) uint8, and where each is.

        Raises DecodeError, and FaceError of a method that finds no faces.
        """
        if self.find is None:
            raise FaceError(f"method (={self.config.method}) takes a picture for a face: it finds none")
        picture = _decoded(data)
        found = self.find(picture)
        return self._aligned(picture, found.points_xy), found

    def _aligned(self, picture: Tensor, points_xy: Tensor) -> Tensor:
        pictures = picture.expand(len(points_xy), *picture.shape)
        return align(pictures, points_xy, self.config.side_px, self.config.margin)

    def _square(self, picture: Tensor) -> Tensor:
        part = picture if self.config.crop_xyxy is None else cut(picture, self.config.crop_xyxy)
        return squeezed(central_square(part) if self.config.crop_xyxy is None else part, self.config.side_px)


def open_aligner(config: FaceAlignment) -> Aligner:
    """Read the networks that an alignment needs.

    Raises ValueError or FileNotFoundError, of one line, where there are none, or others than `weights_sha256` says.
    """
    if config.method == "mtcnn":
        net, sha256 = load_mtcnn(config.weights)
        search = Search(min_face_px=config.min_face_px)
        find: Callable[[Tensor], Faces] = lambda picture: sure(net(picture, search), config.min_score)  # noqa: E731
    elif config.method == "landmarks68":
        points, sha256 = load_face_landmarks68(config.weights)
        find = lambda picture: whole_face(points, picture, config.crop_xyxy)  # noqa: E731
    else:
        return Aligner(config, None)
    if config.weights_sha256 not in ("", sha256):
        raise ValueError(
            f"weights (={config.weights}) are not those of the model: their checksum is {sha256[:12]}…, the model's "
            f"{config.weights_sha256[:12]}…; give the weights that it was made with"
        )
    return Aligner(config.model_copy(update={"weights_sha256": sha256}), find)
