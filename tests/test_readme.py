"""The README's map of the code names every module and none that is not there; models bear names that training gives."""

import re
import tomllib
from pathlib import Path

import pytest

from pipelines.families import PIPELINES
from pipelines.parameters import AUTO, DEFAULT_RECIPE, choose_recipe
from tasks.paths import ROOT

LAYERS = ("data", "models", "tasks", "pipelines")
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "pipelines").glob("*.py")),
]
A_MODEL = re.compile(r"(?:models:/|convoy (?:promote|rollback|history) )([a-z][\w-]*)")
NAMED_BY_PREFIX = "commands_"  # modules of which the map gives examples


def map_of(layer: str) -> str:
    """The lines of the README's tree that stand below a layer's folder."""
    text = (ROOT / "README.md").read_text()
    [found] = re.findall(rf"^{layer}/ .*\n((?: .*\n)+)", text, re.MULTILINE)
    return str(found)


def modules(layer: str) -> set[str]:
    return {file.stem for file in Path(ROOT / layer).rglob("*.py") if not file.stem.startswith("__")}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_stands_in_the_map(layer: str) -> None:
    words = set(re.findall(r"\w+", map_of(layer)))
    missing = sorted(modules(layer) - words)
    assert [name for name in missing if not name.startswith(NAMED_BY_PREFIX)] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_the_map_names_no_module_that_is_not_there(layer: str) -> None:
    there = modules(layer) | {folder.name for folder in (ROOT / layer).iterdir() if folder.is_dir()}
    lines = re.findall(r"^ {2,4}([a-z0-9]\w*(?: \w+)*)(?: {2,}|$)", map_of(layer), re.MULTILINE)
    assert lines
    assert [name for line in lines for name in line.split() if name not in there] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_registered_models_are_called_as_training_calls_them(page: Path) -> None:
    """By family and dataset; by the family alone on a page that trains on the dataset which leaves its name out."""
    text = page.read_text()
    own = {pipeline.model: pipeline.dataset for pipeline in PIPELINES.values()}
    for name in A_MODEL.findall(text):
        model, _, dataset = name.partition("-")
        assert dataset != own[model], name
        assert dataset or re.search(rf"--(?:dataset|name) {own[model]}\b", text), name


def test_the_datasets_that_leave_their_names_out_are_told() -> None:
    text = (ROOT / "docs" / "mlflow.md").read_text()
    told = dict(re.findall(r"`([a-z]+)` \(`([a-z0-9]+)`\)", text))
    assert told == {pipeline.model: pipeline.dataset for pipeline in PIPELINES.values()}


@pytest.mark.parametrize("page", ["README.md", "docs/detection.md"])
def test_detectors_are_trained_by_the_recipe_of_their_data(page: str) -> None:
    """By which they were measured; `default` is for pictures of which nothing is known."""
    commands = re.findall(r"train detection --dataset (\w+)(?: --recipe (\w+))?", (ROOT / page).read_text())
    taken = [choose_recipe("detection", dataset, recipe or AUTO) for dataset, recipe in commands]
    assert taken and DEFAULT_RECIPE not in taken


def test_the_modules_that_may_import_ray_are_told() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [ray] = [each for each in contracts if each.get("forbidden_modules") == ["ray"]]
    allowed = {line.partition(" -> ")[0] for line in ray["ignore_imports"]}
    told = (ROOT / "docs" / "ray.md").read_text().split("\n\n")[1]
    assert {f"tasks.{name}" for name in re.findall(r"`tasks/(\w+)\.py`", told)} == allowed
