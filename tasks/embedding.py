"""Features before a network's head, of encoded items: what drift is looked for in.

Of classifiers and networks for landmarks what their last stage is given (models.stages), averaged over places where it
is a map; of embedders of faces the embedding; of detectors the deepest map of the body, and of stylizers the deepest
that their judge looks at, averaged over places. The item is seen once, as a whole, by the first network of the model.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.stages import stages_of
from tasks.detectionpredict import DetectionPredictor
from tasks.facepredict import FacePredictor
from tasks.inputs import readable
from tasks.landmarkpredict import LandmarkPredictor
from tasks.precision import predicting
from tasks.predict import Predictor
from tasks.predictors import Answering
from tasks.stylizerpredict import StylizerPredictor, decoded
from tasks.views import crops_of

PIECE_IMAGES = 64  # decoded and seen at a time
NOTHING = np.empty((0, 0), np.float32)
Found = tuple[np.ndarray, list[str | None]]  # (M, D) float32 of the readable ones; each item's error or None


@contextmanager
def listening(module: nn.Module) -> Iterator[list[Tensor]]:
    """Gives what the module is called with in this thread: others may use the same network meanwhile."""
    heard: list[Tensor] = []
    here = threading.get_ident()

    def hear(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == here:
            heard.append(arguments[0])

    handle = module.register_forward_pre_hook(hear)
    try:
        yield heard
    finally:
        handle.remove()


def head_of(net: nn.Module) -> nn.Module:
    """The first module of a bare network's last stage."""
    return net.get_submodule(stages_of(net)[-1].modules[0])


def flat(features: Tensor) -> np.ndarray:
    """(B, D, *places) or (B, D) → (B, D) float32, averaged over places."""
    pooled = features.flatten(2).mean(2) if features.dim() > 2 else features
    return pooled.float().cpu().numpy()


def of_head(network: Any, inputs: Tensor) -> np.ndarray:
    """What the head of a wrapped network is given when it is run on (B, ...) inputs."""
    with listening(head_of(network.net)) as heard:
        network(inputs)
    return flat(heard[0])


def of_classes(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Of a classifier of pictures, signals or volumes."""
    own = cast(Predictor, predictor)
    arrays, errors = own.decode(blobs)
    if not len(arrays):
        return NOTHING, errors
    crops, _weights = crops_of(torch.from_numpy(arrays).to(own.device), "single", own.card.preprocessing)
    network = own.members[0]
    with predicting(own.device, own.dtype):
        return of_head(network, crops[0]), errors


def of_points(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Of a network for landmarks."""
    own = cast(LandmarkPredictor, predictor)
    images, _sizes, errors = own.decode(blobs)
    if not len(images):
        return NOTHING, errors
    with predicting(own.device, own.dtype):
        return of_head(own.network, torch.from_numpy(images).to(own.device)), errors


def of_boxes(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Of a detector."""
    own = cast(DetectionPredictor, predictor)
    pictures, errors = own.decode(blobs)
    if not len(pictures):
        return NOTHING, errors
    network = own.networks[0]
    with predicting(own.device, own.dtype):
        maps = network.body(network.normalise(pictures.whole.images.to(own.device)))
    return flat(maps if isinstance(maps, Tensor) else list(maps)[-1]), errors


def of_faces(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Of an embedder of faces: what it is for."""
    return cast(FacePredictor, predictor).embed(blobs)


def of_content(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Of a stylizer: its judge's view of the picture as it is, whatever its size."""
    own = cast(StylizerPredictor, predictor)
    pictures, errors = readable(blobs, decoded)
    if not pictures:
        return NOTHING, errors
    with predicting(own.device, own.dtype):
        seen = [list(own.network.judge.look(picture.to(own.device)).values())[-1] for picture in pictures]
    return np.concatenate([flat(each) for each in seen]), errors


EMBEDDERS: dict[str, Callable[[Answering, Sequence[bytes]], Found]] = {
    "classification": of_classes,
    "detection": of_boxes,
    "faces": of_faces,
    "landmarks": of_points,
    "signals": of_classes,
    "style": of_content,
    "volumes": of_classes,
}


@torch.inference_mode()
def embed(predictor: Answering, blobs: Sequence[bytes]) -> Found:
    """Features (M, D) float32 of the M items that can be read, in order, and each item's error or None."""
    pieces: list[np.ndarray] = []
    errors: list[str | None] = []
    for start in range(0, len(blobs), PIECE_IMAGES):
        piece = blobs[start : start + PIECE_IMAGES]
        own, faults = EMBEDDERS[predictor.card.family](predictor, piece)
        errors += faults
        if len(own):
            pieces.append(own)
    return (np.concatenate(pieces) if pieces else NOTHING), errors
