"""dvc.yaml names all of our code that decides what a stage leaves: else `dvc repro` would keep what is out of date."""

from pathlib import Path

import pytest
import yaml

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
