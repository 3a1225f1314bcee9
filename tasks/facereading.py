"""From photographs to what a gallery compares: faces cut out as the model's training pictures were, and their vectors.

A gallery is bound to an embedder (tasks/gallerystore.py): a version of a model, and the alignment that the model's card
names. A card that names none, as of a model trained on pictures that were no longer photographs, takes each picture for
one face, as it comes, unless somebody says otherwise when the gallery is made. Whoever opens the gallery later reads
photographs the same way.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from data.aligned import FaceAlignment
from data.decode import DecodeError, decode_image
from tasks import registry
from tasks.card import ModelCard
from tasks.embedders import AS_GIVEN, address, alignment_of, describe, describe_embedder, same_faces, uri_of
from tasks.facealign import Aligner, FaceError, open_aligner
from tasks.facepredict import FacePredictor
from tasks.faces import ACCURACY, far_of
from tasks.gallerystore import Embedder
from tasks.modelfile import load_card, load_model, model_sha256


@dataclass(frozen=True)
class Face:
    """What is embedded and kept, and where it lies in its photograph (None: it is all of the picture)."""

    encoded: bytes
    box_xyxy: tuple[float, ...] | None


@dataclass(frozen=True)
class Threshold:
    """A distance, and the share of pairs of two people that it was fitted to accept.

    `told_by_few`: the model's card says that fewer than `tasks.verification.ENOUGH_ERRORS` false accepts tell it.
    """

    distance: float
    false_accept_rate: float
    told_by_few: bool = False


@dataclass(frozen=True)
class FaceReader:
    """A model that embeds, and how faces are cut out for it."""

    embedder: Embedder
    predictor: FacePredictor
    aligner: Aligner | None  # None: pictures are faces, as given

    def faces(self, photo: bytes) -> list[Face]:
        """The faces of an encoded picture, the surest first; raises DecodeError or FaceError, of one line."""
        if self.aligner is None:
            want = self.predictor.preprocessing
            decode_image(photo, channels=want.channels, draft_px=want.stored_px)
            return [Face(photo, None)]
        if self.aligner.find is None:
            return [Face(encode_png(self.aligner.face(photo)), None)]
        squares, found = self.aligner.faces(photo)
        if not len(squares):
            raise FaceError("no face was found: crop the picture closer to the face")
        boxes = found.boxes_xyxy.tolist()
        return [Face(encode_png(square), tuple(box)) for square, box in zip(squares, boxes, strict=True)]

    def face(self, photo: bytes) -> Face:
        """The one face of an encoded picture; raises FaceError for several, too."""
        found = self.faces(photo)
        if len(found) > 1:
            raise FaceError(f"{len(found)} faces were found, and one is wanted; cut it out of the picture")
        return found[0]

    def only_face(self, photo: bytes) -> list[Face]:
        """`face`, as `faces` gives it."""
        return [self.face(photo)]

    def embed(self, faces: Sequence[Face]) -> np.ndarray:
        """Vectors (N, D) float32 of unit length."""
        vectors, errors = self.predictor.embed([face.encoded for face in faces])
        assert not any(errors)  # `faces` has read them
        return vectors

    def threshold(self, false_accept_rate: float | None) -> Threshold:
        """That of the model for this rate; raises ValueError naming those that it has.

        None: for the strictest rate that enough false accepts tell, as the card has it; where few tell each, the
        loosest.
        """
        fitted = thresholds_of(self.predictor.card)
        rate = false_accept_rate
        if rate is None:
            enough = [each for each, limit in fitted.items() if not limit.told_by_few]
            rate = min(enough) if enough else max(fitted)
        if rate not in fitted:
            raise ValueError(
                f"false-accept rate (={rate:g}) is none that the model has a threshold for; it has: "
                f"{', '.join(f'{each:g}' for each in sorted(fitted))}"
            )
        return fitted[rate]

    def looser(self, limit: Threshold, distance: float) -> Threshold | None:
        """Of what `limit` refuses, the strictest of the model's thresholds that accepts it; None: there is no such."""
        fitted = thresholds_of(self.predictor.card)
        if distance <= limit.distance:
            return None
        rates = [
            rate
            for rate, each in fitted.items()
            if rate > limit.false_accept_rate and distance <= each.distance
        ]
        return fitted[min(rates)] if rates else None


def thresholds_of(card: ModelCard) -> dict[float, Threshold]:
    """By the false-accept rate that they were fitted for; raises ValueError where there is none."""
    fitted = {
        far_of(name): Threshold(value, far_of(name), name in card.told_by_few)
        for name, value in card.thresholds.items()
        if name != ACCURACY and value >= 0
    }
    if not fitted:
        raise ValueError(
            "the model has no threshold: none could be fitted to the people of validation when it was trained; train "
            "on a dataset with more of them"
        )
    return fitted


def open_reader(model: str, alignment: FaceAlignment | None) -> FaceReader:
    """The reader for a new gallery; `alignment` None: as the model's card says.

    Raises ValueError or FileNotFoundError where there is no such model, it is none of faces, or lacks what aligns.
    """
    name, version = registry.pin(model)
    folder = registry.resolve_model(address(name, version))
    return _reader(name, version, folder, alignment)


def reader_of(embedder: Embedder) -> FaceReader:
    """The reader of a gallery that is there; raises ValueError where the model's files are not those of its vectors."""
    folder = registry.resolve_model(uri_of(embedder))
    found = _reader(embedder.name, embedder.version, folder, alignment_of(embedder))
    if found.embedder != embedder:
        raise ValueError(
            f"the gallery's vectors were made by {describe_embedder(embedder)}, and there is "
            f"{describe_embedder(found.embedder)} now: bring the former back, or re-embed the gallery"
        )
    return found


def successor_of(embedder: Embedder, model: str) -> FaceReader:
    """The reader that a gallery of `embedder` can be re-embedded for.

    Its pictures are faces that were cut out already: raises ValueError for a model whose card wants them cut out
    otherwise.
    """
    have = alignment_of(embedder)
    name, version = registry.pin(model)
    folder = registry.resolve_model(address(name, version))
    wants = load_card(folder).alignment
    if wants is not None and not same_faces(wants, have):
        raise ValueError(
            f"the gallery's faces were cut out by {describe(have)}, and {model} wants {describe(wants)}: "
            "photographs are not kept, so enrol them in a new gallery with that model"
        )
    return _reader(name, version, folder, have)


def _reader(name: str, version: str, folder: Path, alignment: FaceAlignment | None) -> FaceReader:
    card = load_card(folder)
    if card.family != "faces":
        raise ValueError(
            f"{address(name, version)} is a model of {card.family}; a gallery needs one of faces"
        )
    wanted = alignment or card.alignment
    aligner = None if wanted is None else open_aligner(wanted)
    if aligner and card.alignment and not same_faces(card.alignment, aligner.config):
        raise ValueError(
            f"the model was trained on faces cut out as {describe(card.alignment)}, and the alignment given is "
            f"{describe(aligner.config)}: leave it out, or say where the same weights lie"
        )
    predictor = FacePredictor(load_model(folder))
    embedder = Embedder(
        name=name,
        version=version,
        sha256=model_sha256(folder),
        preprocessing=AS_GIVEN if aligner is None else aligner.config.model_dump_json(),
        num_dims=predictor.dim,
    )
    return FaceReader(embedder, predictor, aligner)


def encode_png(square: Tensor) -> bytes:
    """A face (3, S, S) uint8 as `./convoy align` writes it."""
    buffer = io.BytesIO()
    Image.fromarray(square.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def read_photos(
    photos: Sequence[tuple[str, bytes]], take: Callable[[bytes], list[Face]]
) -> tuple[list[tuple[str, Face]], dict[str, str]]:
    """The faces of photographs by their names, and why others have none."""
    found: list[tuple[str, Face]] = []
    left_out: dict[str, str] = {}
    for name, photo in photos:
        try:
            found += [(name, face) for face in take(photo)]
        except (DecodeError, FaceError) as error:
            left_out[name] = str(error)
    return found, left_out
