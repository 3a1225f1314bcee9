"""How the faces of pictures were cut out and aligned: what a dataset and the card of a model trained on it say of it.

Alignment and the choice of the face move verification more than the network does, so both are named, with the checksum
of the weights that found the face. `./convoy align` writes it as `alignment.json` beside the faces, ingest keeps it in
`dataset.json`, training copies it to the card; tasks/facealign.py does it.
"""

import json
from typing import Literal, Self

from pydantic import Field, model_validator

from data.parameters import Parameters

FILE = "alignment.json"
Method = Literal["none", "crop", "mtcnn", "landmarks68"]
Choice = Literal["only", "largest", "central"]
Template = Literal["arcface", "dlib"]  # see data/alignment.py
WITH_WEIGHTS = ("mtcnn", "landmarks68")


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
    template: Template = Field(
        default="arcface", description="where five points are moved to: arcface; dlib, with a margin of 0.25"
    )
    margin: float = Field(
        default=0.0,
        gt=-0.5,
        le=1,
        description="seen beyond each edge of the template, as a share of its side",
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
            raise ValueError(
                f"weights (={self.weights!r}) belong to {' and '.join(WITH_WEIGHTS)}, not others"
            )
        if self.method == "crop" and self.crop_xyxy is None:
            raise ValueError("method (=crop) needs crop_xyxy")
        if self.method in ("none", "mtcnn") and self.crop_xyxy is not None:
            raise ValueError(f"crop_xyxy (={self.crop_xyxy}) does not belong to method (={self.method})")
        if self.crop_xyxy is not None:
            x0, y0, x1, y1 = self.crop_xyxy
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"crop_xyxy (={self.crop_xyxy}) must be x0 < x1, y0 < y1, from 0 on")
        return self


def parse(text: str | bytes, where: str) -> FaceAlignment:
    """What a file of ours says; raises a ValueError that names `where`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, as ./convoy align writes it")
    return FaceAlignment.parse(values, where)
