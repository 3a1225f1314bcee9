"""dvc.yaml names all of our code, and all parameters, that decide what a stage leaves: else `dvc repro` would keep what
is out of date."""

from pathlib import Path

import pytest
import yaml

from pipelines.parameters import AUTO, choose_recipe, recipes
from tasks.packaging import closure
from tasks.paths import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ENTRIES = {
    "ingest": ["data/ingest.py"],
    "train": ["tasks/train.py", "tasks/calibrate.py"],
    "evaluate": ["tasks/evaluate.py"],
    "ingest_scenes": ["data/ingest.py"],
    "train_scenes": ["tasks/train.py", "tasks/detectionevaluate.py"],
    "evaluate_scenes": ["tasks/detectionevaluate.py"],
    "ingest_faces": ["data/ingest.py"],
    "train_faces": ["tasks/train.py", "tasks/faceevaluate.py"],
    "evaluate_faces": ["tasks/faceevaluate.py"],
    "ingest_landmarks": ["data/ingest.py"],
    "train_landmarks": ["tasks/train.py"],
    "evaluate_landmarks": ["tasks/landmarkevaluate.py"],
    "ingest_style": ["data/ingest.py"],
    "train_style": ["tasks/train.py", "tasks/stylesources.py"],
    "evaluate_style": ["tasks/stylizerevaluate.py"],
}


def test_every_stage_is_looked_at() -> None:
    assert set(STAGES) == set(ENTRIES)


@pytest.mark.parametrize("stage", ENTRIES)
def test_a_stage_depends_on_all_the_code_that_it_runs(stage: str) -> None:
    listed = {Path(dependency) for dependency in STAGES[stage]["deps"]}
    needed = [
        file
        for entry in ENTRIES[stage]
        for file in closure(ROOT / entry)
        if (ROOT / file).stat().st_size and file.name != "__init__.py"
    ]
    missing = [file for file in needed if not listed & {file, *file.parents}]
    assert not missing


@pytest.mark.parametrize("stage", ENTRIES)
def test_a_stage_depends_on_nothing_that_is_not_there(stage: str) -> None:
    made = {out for each in STAGES.values() for out in each["outs"]}
    assert [name for name in STAGES[stage]["deps"] if name not in made and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("stage", [stage for stage in ENTRIES if stage.startswith("train")])
def test_training_and_its_test_depend_on_the_recipe_that_they_take(stage: str) -> None:
    """Training on every section of it, of `evaluate` on what the model keeps; the test on that section alone."""
    family, tested = STAGES[stage]["cmd"].split()[2], stage.replace("train", "evaluate")
    name = recipe_of(stage, family)
    assert recipe_of(tested, family) == name
    assert STAGES[tested]["params"] == [f"{family}.{name}.evaluate"]
    recipe, keys = recipes(family)[name], [key.split(".") for key in STAGES[stage]["params"]]
    assert all(key[:2] == [family, name] for key in keys)
    assert {key[2] for key in keys if len(key) == 3 or key[2] == "evaluate"} == set(recipe)
    assert [key for key in keys if len(key) == 4 and key[3] not in recipe[key[2]]] == []


def recipe_of(stage: str, family: str) -> str:
    words = STAGES[stage]["cmd"].split()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    return choose_recipe(family, options["--dataset"], options.get("--recipe", AUTO))
