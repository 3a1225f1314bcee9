"""Parameters from `params.yaml`: recipes by name, and changes to them.

    classification:
      digits:              a recipe: every value of ClassificationConfig but the dataset
        optim: {lr: 0.05, ...}

A recipe is chosen by name; without one, the recipe called like the dataset, else `default`. Changes come as
`key.path=value` (command line) or as nested values (Prefect's form), and may only name what the recipe has.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml

from data.parameters import Parameters, did_you_mean
from pipelines.families import PIPELINES
from tasks.paths import ROOT

PARAMS = ROOT / "params.yaml"
AUTO = "auto"  # a word, not None: Prefect's form would send a null, and its server refuse it
DEFAULT_RECIPE = "default"
Model = TypeVar("Model", bound=Parameters)


def load(file: Path | None = None) -> dict[str, Any]:
    """The sections of `params.yaml`; raises ValueError where it is missing or not YAML."""
    file = file or PARAMS
    if not file.is_file():
        raise ValueError(f"no parameters at {file}; restore it with: git checkout params.yaml")
    try:
        values = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{file} must hold sections (ingest, {', '.join(PIPELINES)}), got {type(values).__name__}"
        )
    return values


def recipes(family: str) -> dict[str, dict[str, Any]]:
    """The family's recipes by name; raises ValueError for a family without any."""
    values = load()
    section = values.get(family)
    if not isinstance(section, dict) or not section:
        raise ValueError(
            f"{PARAMS.name} has no recipes for {family!r}; sections: {', '.join(map(str, values))}"
        )
    for name, recipe in section.items():
        if not isinstance(recipe, dict):
            raise ValueError(
                f"{PARAMS.name}: {family}.{name} (={recipe!r}) must be a section of parameters, as other recipes are"
            )
    return section


def choose_recipe(family: str, dataset: str, recipe: str) -> str:
    """The recipe's name: the one asked for; for `auto` the one called like the dataset, else `default`."""
    known = recipes(family)
    name = recipe if recipe != AUTO else (dataset if dataset in known else DEFAULT_RECIPE)
    if name not in known:
        raise ValueError(
            f"no recipe {name!r} for {family} in {PARAMS.name}; known: {', '.join(known)}{did_you_mean(name, known)}"
        )
    return name


def section(name: str, model: type[Model], changes: dict[str, Any]) -> Model:
    """The parameters of a section without recipes, such as `ingest`, with changes: by their names, or as params.yaml
    has them, below the section's."""
    own = changes.get(name)
    if isinstance(own, dict):
        changes = merge({key: value for key, value in changes.items() if key != name}, own)
    values = load().get(name, {})
    if not isinstance(values, dict):
        raise ValueError(f"{PARAMS.name}: {name} (={values!r}) must be a section of parameters")
    return model.parse(merge(values, changes), name)


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` laid over them, section by section; a change to None is no change."""
    merged = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], change)
        elif change is not None:
            merged[key] = change
    return merged


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """`["optim.lr=0.1", "evaluate.views=[single]"]` → nested values; a value is read as YAML.

    Raises ValueError for a text without `=`, an empty key, or a key given twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise ValueError(f"--set {text!r} must be KEY.PATH=VALUE, for example optim.lr=0.1")
        section = changes
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ValueError(f"--set {text!r}: {part} is given a value and a section")
        if parts[-1] in section:
            raise ValueError(f"--set gives {path.strip()} twice")
        section[parts[-1]] = parse_value(value, text)
    return changes


def parse_value(value: str, text: str) -> Any:
    """A YAML value; 1e-3 is a number, which YAML 1.1 would read as a text."""
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"--set {text!r}: the value is not valid YAML") from None
    if parsed is None:
        raise ValueError(f"--set {text!r} has no value")
    if isinstance(parsed, str):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted keys: what MLflow shows as parameters."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
