"""Recipes, changes to them, and the forms that Prefect shows of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter

from data.ingest import IngestConfig
from pipelines import parameters
from pipelines.classification import train_classifier
from pipelines.configuration import ChangesForm, RecipeForm, configuration
from pipelines.parameters import (
    AUTO,
    choose_recipe,
    flatten,
    merge,
    parse_changes,
    recipes,
    section,
)
from pipelines.training import Job, read_job, write_job
from tasks.families import FAMILIES
from tasks.paths import JOB_FILE

KEYS = st.text("abcdefghij_", min_size=1, max_size=6)
VALUES = st.one_of(
    st.integers(-(10**9), 10**9),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(0, 9), max_size=3),
)
NESTED = st.recursive(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner), min_size=1, max_size=3),
    max_leaves=8,
)
ALL_RECIPES = [(family, name) for family in FAMILIES for name in recipes(family)]


@pytest.mark.parametrize(("family", "name"), ALL_RECIPES)
def test_every_recipe_is_complete_and_valid(family: str, name: str) -> None:
    config: Any = configuration(family, "any", name, {})
    assert config.dataset == "any"


def test_a_recipe_is_the_one_asked_for_else_the_datasets_else_default() -> None:
    assert choose_recipe("classification", "digits", "cifar10") == "cifar10"
    assert choose_recipe("classification", "digits", AUTO) == "digits"
    assert choose_recipe("classification", "products", AUTO) == "default"


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'no' for classification .* known: digits, .*default"):
        choose_recipe("classification", "digits", "no")


def test_a_run_of_before_a_parameter_was_there_goes_on_as_it_was(tmp_path: Path) -> None:
    config = configuration("classification", "digits", AUTO, {})
    asked = Job("classification", "digits", "digits", config)
    write_job(asked, tmp_path)
    file = tmp_path / JOB_FILE
    values = json.loads(file.read_text())
    del values["config"]["train"]["min_workers"]
    file.write_text(json.dumps(values))
    assert read_job(tmp_path) == asked


@pytest.mark.parametrize(("content", "message"), [
    ('{"dataset": "di', r"job\.json is damaged, it is no JSON .*; start it anew$"),
    (None, r"job\.json\.train\.epochs is required; another version of the code began this: go on with it by"),
])  # fmt: skip
def test_a_run_whose_parameters_cannot_be_read_says_so(
    content: str | None, message: str, tmp_path: Path
) -> None:
    write_job(
        Job("classification", "digits", "digits", configuration("classification", "digits", AUTO, {})),
        tmp_path,
    )
    file = tmp_path / JOB_FILE
    values = json.loads(file.read_text())
    del values["config"]["train"]["epochs"]
    file.write_text(json.dumps(values) if content is None else content)
    with pytest.raises(ValueError, match=message):
        read_job(tmp_path)


def test_changes_reach_the_configuration_and_leave_the_rest() -> None:
    before: Any = configuration("classification", "digits", AUTO, {})
    changed: Any = configuration(
        "classification", "digits", AUTO, parse_changes(["optim.lr=1e-3", "evaluate.views=[single, mirror]"])
    )
    assert changed.optim.lr == 0.001
    assert changed.evaluate.views == ("single", "mirror")
    assert changed.train == before.train


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^optim\.lrr is not a parameter; known here: .*\blr\b"):
        configuration("classification", "digits", AUTO, {"optim": {"lrr": 1}})


def test_a_value_out_of_range_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"^optim\.lr \(=-1\): .*greater than 0"):
        configuration("classification", "digits", AUTO, {"optim": {"lr": -1}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.name=rcnn", "model.width=256"], r"^model\.width \(=256\) .* model\.name \(=rcnn\) does not read it"),
        (["model.loss=squared"], r"^model\.loss \(=squared\) would change nothing, .*: leave it out$"),
        (["model.num_anchors=5"], r"model\.assignment \(=task_aligned\) has no anchors"),
    ],
)  # fmt: skip
def test_a_change_that_has_no_effect_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configuration("detection", "any", "default", parse_changes(changes))


def test_a_detector_takes_what_it_reads_and_leaves_the_recipes_rest() -> None:
    for changes in (
        ["model.name=faster_rcnn", "model.body=resnet18"],
        ["model.assignment=midpoint", "model.num_anchors=5"],
        ["model.name=localiser", "model.loss=squared"],
    ):
        assert configuration("detection", "any", "default", parse_changes(changes))


@pytest.mark.parametrize("text", ["optim.lr", "=3", "optim..lr=3", ".lr=3", "optim.lr=", "optim.lr=[1"])
def test_a_change_that_is_not_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        parse_changes([text])


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives optim\.lr twice"):
        parse_changes(["optim.lr=1", "optim.lr=2"])
    with pytest.raises(ValueError, match="a value and a section"):
        parse_changes(["optim=1", "optim.lr=2"])


@given(NESTED)
def test_changes_written_as_text_are_read_back(nested: dict[str, Any]) -> None:
    texts = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in flatten(nested).items()
    ]
    assert parse_changes(texts) == nested


@given(NESTED, NESTED)
def test_merge_keeps_what_is_not_changed_and_takes_what_is(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    merged = merge(base, changes)
    assert merge(merged, changes) == merged
    assert merge(base, {}) == base
    for key, value in flatten(changes).items():
        assert flatten(merged)[key] == value
    for key, value in base.items():
        if key not in changes:
            assert merged[key] == value


def test_a_change_to_nothing_is_no_change() -> None:
    assert merge({"a": {"b": 1}, "c": 2}, {"a": {"b": None}, "c": None}) == {"a": {"b": 1}, "c": 2}


def test_the_form_has_each_parameter_with_its_help_and_none_required() -> None:
    form = TypeAdapter(Annotated[dict[str, Any], ChangesForm("classification")]).json_schema()
    config: Any = configuration("classification", "any", AUTO, {})
    fields = {
        f"{section}.{name}": field
        for section, part in form["properties"].items()
        for name, field in part["properties"].items()
    }
    assert set(fields) == set(flatten(config.model_dump())) - {"dataset"}
    assert all(field["description"] for field in fields.values())
    assert "required" not in str(form)
    assert fields["optim.name"]["enum"] == ["sgd", "adamw", "muon"]


@pytest.mark.parametrize(("family", "name"), ALL_RECIPES)
def test_the_form_takes_what_the_configuration_takes(family: str, name: str) -> None:
    form = TypeAdapter(Annotated[dict[str, Any], ChangesForm(family)]).json_schema()
    jsonschema.validate(recipes(family)[name], form)
    jsonschema.validate({}, form)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"lr": -1}}, form)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"optim": {"no_such": 1}}, form)


def types_of(schema: Any) -> set[str]:
    """Every `type` in a JSON schema."""
    if isinstance(schema, list):
        return set().union(*map(types_of, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
    return own.union(*map(types_of, schema.values()))


def test_a_form_that_nobody_touched_changes_nothing() -> None:
    """Prefect's UI sends false for a switch that was left alone, and null for a text without a default."""
    form = parameter_schema(train_classifier).model_dump()["properties"]
    assert "boolean" not in types_of(form["changes"])
    untouched = {name: field["default"] for name, field in form.items() if "default" in field}
    assert untouched["recipe"] == AUTO
    for name, value in untouched.items():
        if name != "changes":  # for which the UI sends {}
            jsonschema.validate(value, form[name])


def test_the_recipe_is_a_drop_down() -> None:
    schema = TypeAdapter(Annotated[str, RecipeForm("classification")]).json_schema()
    assert schema["enum"] == [AUTO, *recipes("classification")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is not valid YAML"), ("- 1", "must hold sections"), (None, "restore it with: git checkout")],
)
def test_a_broken_file_of_parameters_is_named(
    text: str | None, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "params.yaml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(parameters, "PARAMS", file)
    with pytest.raises(ValueError, match=message):
        recipes("classification")


def test_parameters_of_ingest_go_by_their_names_or_as_params_yaml_has_them() -> None:
    plain = section("ingest", IngestConfig, parse_changes(["test_fraction=0.5"]))
    dotted = section("ingest", IngestConfig, parse_changes(["ingest.test_fraction=0.5"]))
    assert plain == dotted and plain.test_fraction == 0.5


def test_a_list_with_a_wrong_item_is_not_called_too_short_as_well() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.views\.0 \(='foo'\)") as caught:
        configuration("classification", "digits", AUTO, {"evaluate": {"views": ["foo"]}})
    assert "\n" not in str(caught.value)


def test_a_value_in_the_place_of_a_section_is_told_the_parameters_of_the_section() -> None:
    with pytest.raises(ValueError, match=r"distil \(=3\) is a section: .*temperature, weight"):
        configuration("classification", "digits", AUTO, {"distil": 3})
