"""Published weights of the nets that find faces and their points: of a file, a folder, an installed package.

As in tasks.weights, no pickle is run and no package's code either. What a model was made with is told by a checksum of
the tensors, not of the file: facenet-pytorch's three files and the same tensors in one safetensors file have one.
"""

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.facelandmarks68 import FaceLandmarks68
from models.mtcnn import MTCNN
from tasks.weights import PACKAGE, SUFFIXES, files_in_package, read_state

Net = TypeVar("Net", bound=nn.Module)
STAGES = ("pnet", "rnet", "onet")  # MTCNN's files: pnet.pt … in a folder or a package


def load_mtcnn(source: str) -> tuple[MTCNN, str]:
    """MTCNN with the weights of `source`, and their checksum.

    `source` is `package:facenet_pytorch`, a folder of pnet.pt, rnet.pt and onet.pt, or one file with their tensors
    named `pnet.conv1.weight` and so on. Raises ValueError or FileNotFoundError, of one line.
    """
    if not source.startswith(PACKAGE) and not Path(source).is_dir():
        return _loaded(MTCNN(), _state_of_file(source), source)
    if source.startswith(PACKAGE):
        files = files_in_package(source.removeprefix(PACKAGE), "weights")
    else:
        files = sorted(file for file in Path(source).iterdir() if file.suffix in SUFFIXES)
    of_stage = {stage: [file for file in files if file.stem == stage] for stage in STAGES}
    wrong = [stage for stage, found in of_stage.items() if len(found) != 1]
    if wrong:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"weights (={source}): there must be one file each of {', '.join(STAGES)} ({' or '.join(SUFFIXES)}); "
            f"found: {names}"
        )
    state = {f"{stage}.{name}": value for stage in STAGES for name, value in _of(of_stage[stage][0]).items()}
    return _loaded(MTCNN(), state, source)


def load_face_landmarks68(source: str) -> tuple[FaceLandmarks68, str]:
    """The net of 68 landmarks with the weights of a file, of half precision or full; raises as `load_mtcnn`."""
    return _loaded(FaceLandmarks68(), _state_of_file(source), source)


def state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state_of_file(source: str) -> dict[str, Tensor]:
    if not Path(source).is_file():
        raise FileNotFoundError(f"weights (={source}): there is no such file")
    return _of(Path(source))


def _of(file: Path) -> dict[str, Tensor]:
    return read_state(file)


def _loaded(net: Net, state: dict[str, Tensor], source: str) -> tuple[Net, str]:
    """`net` with `state` in it, in float32 and for inference."""
    own = net.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(
        name for name, value in state.items() if value.shape != own[name].shape
    )
    if wrong:
        raise ValueError(
            f"weights (={source}): these are not the tensors of {type(net).__name__}: {len(wrong)} are missing, not "
            f"known or of another shape; the first is {wrong[0]}"
        )
    net.load_state_dict(state)
    return net.eval().requires_grad_(False), state_sha256(state)
