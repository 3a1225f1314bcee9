"""Several networks as one model: softmax outputs are averaged, boxes of detectors fused, weights never averaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.dataset import DatasetInfo
from tasks.card import ModelCard
from tasks.liveness import LIVENESS
from tasks.modelfile import load_model, model_sha256, save_model

SAME_QUESTION = ("family", "classes")  # what outputs must share to be averaged
SAME_MODEL = (*SAME_QUESTION, "preprocessing", "views", "thresholds", "dataset", "dataset_digest")

FITTED = ("score", LIVENESS)  # thresholds that were fitted to the validation split


def require_agreement(called: Sequence[str], cards: Sequence[ModelCard], fields: Sequence[str]) -> None:
    """Raise a ValueError that names the first field on which two models differ, and both values."""
    for name, card in zip(called, cards, strict=True):
        for field in fields:
            first, other = getattr(cards[0], field), getattr(card, field)
            if first != other:
                raise ValueError(
                    f"models of an ensemble must have the same {field}: {called[0]} has {shown(first)}, "
                    f"{name} has {shown(other)}; leave one of them out"
                )


def shown(value: Any) -> str:
    """A card's value in an error: long lists of classes are cut."""
    if isinstance(value, tuple):
        return f"{len(value)} ({', '.join(value[:8])}{', …' if len(value) > 8 else ''})"
    return repr(value)


def class_difference(model: Sequence[str], dataset: Sequence[str]) -> str:
    """How the classes of a model and of a dataset differ, which they do, by name; long lists are cut."""
    sides = [
        (f"the {who} has", [name for name in names if name not in set(others)])
        for who, names, others in (("model alone", model, dataset), ("dataset alone", dataset, model))
    ]
    if not any(names for _, names in sides):
        place = next(i for i, (a, b) in enumerate(zip(model, dataset, strict=True)) if a != b)
        return f"they have another order, from place {place} on: {model[place]!r} and {dataset[place]!r}"
    return ", ".join(f"{text} {shown(tuple(names))}" for text, names in sides if names)


def require_same_classes(called: Sequence[str], cards: Sequence[ModelCard], info: DatasetInfo) -> None:
    """Raise a ValueError unless all models, and the dataset, have the same classes in the same order."""
    if not cards:
        raise ValueError("evaluation needs at least one model folder")
    require_agreement(called, cards, SAME_QUESTION)
    card = cards[0]
    if card.family != info.family:
        raise ValueError(
            f"the model {called[0]} is for {card.family}, the dataset {info.name!r} for {info.family}; give one of "
            f"the same family"
        )
    if card.classes != info.classes:
        raise ValueError(
            f"the model {called[0]} and the dataset {info.name!r} must have the same classes in the same order: "
            f"{class_difference(card.classes, info.classes)}; give a dataset of the model's classes (it was trained on "
            f"{card.dataset!r}), or a model of this dataset's: ./convoy train {info.family} --dataset {info.name}"
        )


def given_again(called: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """What to say of models that were given more than once, under whatever names."""
    names: dict[str, list[str]] = {}
    for name, folder in zip(called, folders, strict=True):
        names.setdefault(model_sha256(folder), []).append(name)
    return [
        f"{', '.join(same)} are one and the same model, which counts {len(same)} times"
        for same in names.values()
        if len(same) > 1
    ]


def combine(folders: Sequence[Path], target: Path, called: Sequence[str] = ()) -> ModelCard:
    """Write one model folder with the members of all `folders`, in their order, each counting the same.

    What was fitted to the validation split for one of them, a temperature or a least score, does not hold for all:
    tasks.calibrate and tasks.detectionevaluate find the ensemble's own. Raises ValueError where the models differ in
    anything else but their members, or `target` holds a model already; it names them as they were `called`, by their
    folders otherwise.
    """
    if not folders:
        raise ValueError("an ensemble needs at least one model folder")
    if (target / "model.json").exists():
        raise ValueError(f"{target} already holds a model; give a new folder")
    saved = [load_model(folder) for folder in folders]
    cards = [unfitted(model.card) for model in saved]
    require_agreement(called or [str(folder) for folder in folders], cards, SAME_MODEL)
    members = tuple(
        member.model_copy(update={"weights": f"member-{place}.safetensors"})
        for place, member in enumerate(member for card in cards for member in card.members)
    )
    card = cards[0].model_copy(update={"members": members, **common_origin(cards)})
    save_model(target, card, [module for model in saved for module in model.members])
    return card


def common_origin(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """What models began with, and who taught them, where that is the same for all: else their own runs say it."""
    said = {name: [getattr(card, name) for card in cards] for name in ("initial_weights", "taught_by")}
    return {
        name: values[0] if all(value == values[0] for value in values) else None
        for name, values in said.items()
    }


def unfitted(card: ModelCard) -> ModelCard:
    """The card without what was fitted to the validation split."""
    thresholds = {name: value for name, value in card.thresholds.items() if name not in FITTED}
    return card.model_copy(update={"thresholds": thresholds, "temperature": 1.0, "calibrated_on": ""})
