"""The notation for what a search may change, and what it refuses."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.parameters import flatten
from tasks.families import FAMILIES
from tasks.features import key_of
from tasks.feed import probe
from tasks.raytrain import source_key
from tasks.space import (
    NOT_SEARCHED,
    Choice,
    Space,
    Span,
    changed,
    end_configs,
    own_values,
    parse_space,
)
from tests.test_tasks_transfer import config_of
from tests.test_tasks_transfer import given as given_weights
from tests.tiny import tiny_config, tiny_dataset

families = pytest.mark.parametrize("family", FAMILIES)


def parsed(*texts: str) -> Space:
    return parse_space(texts, tiny_config("classification"))


def test_a_range_takes_its_kind_from_the_parameter() -> None:
    assert parsed("optim.lr=log:1e-4..1e-1") == {"optim.lr": Span(1e-4, 0.1, log=True, whole=False)}
    assert parsed("train.batch_size=16..64") == {"train.batch_size": Span(16, 64, log=False, whole=True)}
    assert parsed(" train.epochs = 1..3 ") == {"train.epochs": Span(1.0, 3.0, log=False, whole=False)}


def test_a_choice_is_read_as_yaml_with_brackets_or_without() -> None:
    assert parsed("model.name=lenet5, resnet8_cifar")["model.name"] == Choice(("lenet5", "resnet8_cifar"))
    assert parsed("augment.mirror=[true, false]")["augment.mirror"] == Choice((True, False))
    assert parsed("optim.lr=1e-3,0.01")["optim.lr"] == Choice((0.001, 0.01))
    for text in ("[[1, 1], [0.5, 1]]", "[1, 1],[0.5, 1]"):
        assert parsed(f"augment.crop_area={text}")["augment.crop_area"] == Choice(([1, 1], [0.5, 1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "must be KEY=RANGE or KEY=A,B"),
        ("optim.lrr=0..1", "optim.lrr is not a parameter; known here: .* did you mean optim.lr"),
        ("optim=0..1", "optim is a section; search one of optim.name, optim.lr"),
        ("optim.lr.x=0..1", "optim.lr.x is not a parameter; lr is one"),
        ("optim.lr=-1..1", r"optim.lr \(=-1.0\): Input should be greater than 0"),
        ("optim.momentum=0.5..1.5", r"optim.momentum \(=1.5\): Input should be less than"),
        ("optim.lr=log:0..1", "a logarithmic range must begin above 0"),
        ("optim.lr=1..1", "the range must rise"),
        ("optim.lr=1..nan", "the range must rise"),
        ("optim.lr=1..2..3", r"a range is LOW\.\.HIGH, two numbers"),
        ("optim.lr=exp:1..2", "exp: is no scale"),
        ("train.batch_size=1.5..3", "the parameter is a whole number"),
        ("model.name=0..1", "'lenet5' is no number"),
        ("augment.mirror=0..1", "False is no number"),
        ("model.name=lenet5", "it leaves no choice"),
        ("model.name=lenet5,lenet5", "it names a value twice"),
        ("model.name=lenet5,lenet6", r"model.name \(='lenet6'\): Input should be 'lenet5'"),
        ("model.name=[lenet5", "not valid YAML"),
        ("train.seed=0,1", "train.seed is not to be searched"),
        ("distil.teacher=models:/a/1,models:/b/1", "distil.teacher is not to be searched"),
        ("evaluate.views=[[single], [mirror]]", "evaluate.views is not to be searched"),
        ("input.crop_px=16,17", "crop_px"),  # lenet5 takes multiples of 4
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        parsed(text)
    assert text in str(refused.value)


def test_a_key_given_twice_or_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives optim\.lr twice"):
        parsed("optim.lr=0.1,0.2", "optim.lr=log:0.1..0.2")
    with pytest.raises(ValueError, match="needs at least one --space"):
        parsed()


@families
def test_what_is_not_searched_are_parameters_that_there_are(family: str) -> None:
    values = tiny_config(family).model_dump()
    names = [f"{name}." for name in flatten(values)]
    missing = [key for key in NOT_SEARCHED if not any(name.startswith(f"{key}.") for name in names)]
    of_some = ("transfer.weights", "distil.teacher")  # sections that not every family has
    assert missing == [key for key in of_some if key.partition(".")[0] not in values]


@families
def test_ends_differ_from_the_parameters_in_their_key_alone(family: str) -> None:
    config = tiny_config(family)
    space = parse_space(["optim.lr=log:1e-3..1e-1", "train.batch_size=8,16"], config)
    ends = [(end.optim.lr, end.train.batch_size) for end in end_configs(config, space)]
    lr, batch_size = config.optim.lr, config.train.batch_size
    assert ends == [(1e-3, batch_size), (1e-1, batch_size), (lr, 8), (lr, 16)]


def test_own_values_are_those_that_the_space_holds() -> None:
    config = tiny_config("classification")  # optim.lr 0.05, lenet5
    inside = parsed("optim.lr=log:1e-3..1e-1", "model.name=resnet8_cifar,lenet5")
    assert own_values(config, inside) == {"optim.lr": 0.05, "model.name": "lenet5"}
    assert own_values(config, parsed("optim.lr=log:1e-3..1e-2")) is None
    assert own_values(config, parsed("model.name=resnet8_cifar,resnet20_cifar")) is None


@given(st.floats(1e-6, 1.0), st.integers(1, 512))
def test_changed_parameters_keep_all_others(lr: float, batch_size: int) -> None:
    config = tiny_config("signals")
    found = changed(config, {"optim.lr": lr, "train.batch_size": batch_size})
    assert (found.optim.lr, found.train.batch_size) == (lr, batch_size)
    assert changed(found, {"optim.lr": config.optim.lr, "train.batch_size": 16}) == config


@families
def test_what_decoding_gives_follows_from_the_key_that_trials_share_samples_by(
    family: str, tmp_path: Path
) -> None:
    dataset, config = tiny_dataset(family, tmp_path), tiny_config(family)
    rows = probe(FAMILIES[family], dataset)
    expected = FAMILIES[family].decode(rows, dataset.info, config)
    found = FAMILIES[family].decode(rows, dataset.info, only_of(source_key(config), config))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def only_of(key: str, config: Any) -> Any:
    """Parameters that have nothing but what stands in the key: to read another raises AttributeError."""
    parts = json.loads(key)
    alone = SimpleNamespace(
        input=type(config.input).parse(parts["input"], "input"),
        augment=SimpleNamespace(crop_from=parts["crop_from"]),
    )
    if hasattr(config, "preprocessing"):
        alone.preprocessing = partial(type(config).preprocessing, alone)
    return alone


@pytest.mark.parametrize(
    "changes",
    [
        {"transfer__num_stages": 2, "transfer__mode": "stages"},
        {"model__name": "resnet20_cifar"},
        {"train__precision": "bf16"},
        {"input__stored_px": 20},
    ],
)
def test_trials_that_train_on_other_features_do_not_share_them(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    dataset, weights = tiny_dataset("classification", tmp_path), given_weights(10)
    kept = {"transfer__mode": "head", "transfer__cache_features": True}
    configs = [config_of(**kept), config_of(**{**kept, **changes})]
    files = {key_of(dataset, "train", each, weights, each.transfer.num_stages) for each in configs}
    assert len(files) == len({source_key(each) for each in configs}) == 2


def test_trials_that_differ_in_how_they_learn_share_their_features() -> None:
    kept = {"transfer__mode": "stages", "transfer__num_stages": 2, "transfer__cache_features": True}
    keys = {source_key(config_of(**kept, transfer__body_lr_factor=factor)) for factor in (0.1, 1.0)}
    assert len(keys) == 1


def test_members_that_keep_their_pictures_otherwise_do_not_share_them() -> None:
    changes = ({}, {"train__data_mode": "streaming"}, {"train__data_gb": 0.125})
    assert len({source_key(tiny_config("classification", **each)) for each in changes}) == len(changes)
