"""Ensembles as one model folder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.card import TaughtBy
from tasks.ensemble import class_difference, combine
from tasks.modelfile import load_card, load_model, write_card
from tests.handmade import write_model

CLASSES = [f"class {i}" for i in range(12)]


def test_an_ensemble_keeps_every_members_weights_and_run_in_order(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / str(seed), CLASSES, seed=seed) for seed in (1, 2)]
    pair = combine(folders, tmp_path / "pair")
    assert [member.run for member in pair.members] == ["run-1", "run-2"]
    combine([tmp_path / "pair", write_model(tmp_path / "3", CLASSES, seed=3)], tmp_path / "three")
    three = load_model(tmp_path / "three")
    assert [member.run for member in three.card.members] == ["run-1", "run-2", "run-3"]
    for seed, member in zip((1, 2, 3), three.members, strict=True):
        alone = load_model(tmp_path / str(seed)).members[0].state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in member.state_dict().items())


def test_what_only_one_of_the_members_was_taught_by_is_not_said_of_all(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / str(seed), CLASSES, seed=seed) for seed in (1, 2)]
    by = TaughtBy(source="models:/large/1", sha256="1" * 64)
    write_card(folders[0], load_card(folders[0]).model_copy(update={"taught_by": by}))
    assert combine(folders, tmp_path / "pair").taught_by is None
    write_card(folders[1], load_card(folders[1]).model_copy(update={"taught_by": by}))
    assert combine(folders, tmp_path / "both").taught_by == by


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored_px": 9}, "must have the same preprocessing"),
        ({"view": "mirror"}, "must have the same views: .* has 'single', .* has 'mirror'"),
    ],
)
def test_models_that_differ_in_more_than_their_members_are_not_combined(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folders = [write_model(tmp_path / "a", CLASSES), write_model(tmp_path / "b", CLASSES, **change)]
    with pytest.raises(ValueError, match=message):
        combine(folders, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_other_classes_are_named_in_the_error(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / "a", CLASSES), write_model(tmp_path / "b", ["ants", "bees"])]
    with pytest.raises(ValueError, match=r"12 \(class 0, .*class 7, …\), .*/b has 2 \(ants, bees\)"):
        combine(folders, tmp_path / "both")


def test_a_folder_that_holds_a_model_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a", CLASSES)
    before = (folder / "model.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a model; give a new folder"):
        combine([folder, folder], folder)
    assert (folder / "model.json").read_bytes() == before


def test_no_model_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one model"):
        combine([], tmp_path / "none")


def test_classes_that_differ_are_named_and_long_lists_are_cut() -> None:
    assert class_difference(("a", "b", "c"), ("b", "c", "d")) == (
        "the model alone has 1 (a), the dataset alone has 1 (d)"
    )
    assert class_difference(("a", "b"), ("a",)) == "the model alone has 1 (b)"
    assert class_difference(("a", "b", "c"), ("a", "c", "b")) == (
        "they have another order, from place 1 on: 'b' and 'c'"
    )
    many = tuple(f"c{i}" for i in range(100))
    assert (
        class_difference(("x",), ("x", *many))
        == "the dataset alone has 100 (c0, c1, c2, c3, c4, c5, c6, c7, …)"
    )
