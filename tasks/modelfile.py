"""A trained model on disk: everything that prediction needs, and nothing that has to be unpickled.

    model/
        model.json                  `ModelCard`
        member-0.safetensors ...    weights of each member (one, or several for an ensemble)
        pair-heads.safetensors      of an embedder: see tasks.pairheads

`Classifier`-like modules carry their own normalisation as buffers, so the weights file and the card are enough to
get from encoded bytes to class names.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from data.files import read_object, require_plain, whole, write_whole
from tasks.card import CARD_VERSION, ModelCard
from tasks.families import FAMILIES


@dataclass(frozen=True)
class SavedModel:
    card: ModelCard
    members: tuple[nn.Module, ...]


def save_model(folder: Path, card: ModelCard, members: list[nn.Module]) -> None:
    """Write card and weights to `folder`; the card last, so that a folder with a card is whole."""
    assert len(members) == len(card.members)
    folder.mkdir(parents=True, exist_ok=True)
    for member, module in zip(card.members, members, strict=True):
        # clone: safetensors refuses views and non-contiguous (channels-last) tensors
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
        # a run that goes on writes over what a card names already
        with whole(folder / member.weights) as stream:
            stream.write(save(tensors))
    write_card(folder, card)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write `model.json`, whole or not at all."""
    text = json.dumps(card.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    write_whole(folder / "model.json", text)


def load_card(folder: Path) -> ModelCard:
    """Read `model.json`; raises FileNotFoundError or ValueError."""
    file = folder / "model.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no model in {folder}: it has no model.json; give the `model` folder of a run"
        )
    values = read_object(file, "write it anew: register the model again, or train it")
    if values.get("card_version") != CARD_VERSION:
        raise ValueError(f"{file}: card_version (={values.get('card_version')}) is not {CARD_VERSION}")
    return ModelCard.parse(values, str(file))


def weights_file(folder: Path, name: str) -> Path:
    """A file of weights that a card names; raises ValueError for one elsewhere."""
    return folder / require_plain(name, f"{folder}: weights")


def load_model(folder: Path) -> SavedModel:
    """Read a saved model; its members are in evaluation mode, on the CPU.

    Raises FileNotFoundError, or a ValueError of one line for a folder that is damaged.
    """
    card = load_card(folder)
    members = []
    for member in card.members:
        file = weights_file(folder, member.weights)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, which model.json names: register the model again, or train it"
            )
        try:
            module = FAMILIES[card.family].rebuild(card, member)
            module.load_state_dict(load_file(file), strict=True)
        except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{file} and model.json do not make a {member.architecture} for {card.family} ({said}); they are "
                "damaged, or of another version: register the model again, or train it"
            ) from None
        members.append(module.eval())
    return SavedModel(card, tuple(members))


def model_files(card: ModelCard) -> list[str]:
    """Names of the files that make up a model: weights, and the card last; ValueError for one outside its folder."""
    names = [member.weights for member in card.members]
    if card.pair_heads is not None:
        names.append(card.pair_heads.weights)
    return [*(require_plain(name, "weights") for name in names), "model.json"]


def model_sha256(folder: Path) -> str:
    """One hash over the card and the weights of the model in `folder`: what a registered model is checked by."""
    total = hashlib.sha256()
    for name in sorted(model_files(load_card(folder))):
        with (folder / name).open("rb") as stream:
            total.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
