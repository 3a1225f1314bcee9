"""The README's map of the code: every module stands in it, and it names none that is not there."""

import re
from pathlib import Path

import pytest

from tasks.paths import ROOT

LAYERS = ("data", "models", "tasks", "pipelines")
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
