"""Heads for pairs: fitted on some people, scaled on others, kept beside the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tasks.modelfile import load_card, model_files, write_card
from tasks.pairheads import (
    DECAYS,
    FILE,
    KINDS,
    People,
    fit_pair_heads,
    load_pair_heads,
    pair_logits,
    write_pair_heads,
)
from tasks.verification import accuracy_at, best_threshold, pair_distances
from tests.handmade import write_model

D, TELLING = 16, 4  # dimensions, and those that differ between people; the others differ between pictures


def people(num_people: int, each: int, seed: int) -> People:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(num_people * each, D))
    persons = generator.normal(size=(num_people, TELLING))
    rows[:, :TELLING] = np.repeat(persons, each, 0) + 0.15 * rows[:, :TELLING]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return People(rows.astype(np.float32), np.repeat(np.arange(num_people), each))


@pytest.fixture(scope="module")
def three() -> tuple[People, People, People]:
    return people(60, 5, 0), people(20, 5, 1), people(40, 5, 2)


def pairs_and_same(some: People) -> tuple[np.ndarray, np.ndarray]:
    N = len(some.labels)
    places = np.stack(np.triu_indices(N, 1), 1)
    same = some.labels[places[:, 0]] == some.labels[places[:, 1]]
    others = np.random.default_rng(0).permutation(np.flatnonzero(~same))[: same.sum()]
    chosen = np.concatenate([np.flatnonzero(same), others])
    return places[chosen], same[chosen]


def test_heads_find_the_dimensions_that_tell_people_apart(three: tuple[People, People, People]) -> None:
    train, val, test = three
    places, same = pairs_and_same(test)
    distances = pair_distances(test.embeddings, places)
    # at its own best: a head must beat it
    plain = accuracy_at(distances, same, best_threshold(distances, same))
    for kind, fitted in fit_pair_heads(train, val).items():
        right = ((pair_logits(fitted.head, test.embeddings, places) > 0) == same).mean()
        assert right > plain + 0.05, kind
        weight = fitted.head.linear.weight[0]
        assert (weight[:TELLING] < 0).all()  # the farther apart, the less alike
        assert weight[:TELLING].abs().min() > 3 * weight[TELLING:].abs().max()
        assert fitted.decay in DECAYS


def test_the_logit_is_already_that_of_the_people_of_validation(three: tuple[People, People, People]) -> None:
    """A regression of validation's pairs on the logit finds nothing left to scale or shift."""
    train, val, _test = three
    a, b, same = val.pairs()
    for fitted in fit_pair_heads(train, val).values():
        with torch.no_grad():
            logits = fitted.head(a, b).double().numpy()[:, None]
        again = LogisticRegression(C=1e6, tol=1e-10, max_iter=10_000).fit(logits, same.numpy())
        assert again.coef_[0, 0] == pytest.approx(1, abs=0.02)
        assert again.intercept_[0] == pytest.approx(0, abs=0.02)


def test_heads_are_kept_with_the_model_and_named_in_its_card(
    three: tuple[People, People, People], tmp_path: Path
) -> None:
    train, val, test = three
    folder = write_model(tmp_path / "model", ("a", "b"))
    assert load_pair_heads(folder, load_card(folder)) == {}
    fitted = fit_pair_heads(train, val)
    heads = write_pair_heads(folder, fitted, "people")
    write_card(folder, load_card(folder).model_copy(update={"pair_heads": heads}))
    card = load_card(folder)
    assert model_files(card) == ["member-0.safetensors", FILE, "model.json"]
    assert card.pair_heads is not None and set(card.pair_heads.decay) == set(KINDS)
    places, _same = pairs_and_same(test)
    for kind, head in load_pair_heads(folder, card).items():
        expected = pair_logits(fitted[kind].head, test.embeddings, places)
        assert np.array_equal(pair_logits(head, test.embeddings, places), expected)


def test_heads_outside_the_model_s_folder_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", ("a", "b"))
    values = json.loads((folder / "model.json").read_text())
    values["pair_heads"] = {"weights": "../heads.safetensors", "decay": {}, "fitted_on": ""}
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"'\.\./heads.safetensors'.* must be a file name"):
        load_pair_heads(folder, load_card(folder))
    with pytest.raises(ValueError, match=r"must be a file name"):
        model_files(load_card(folder))
