"""A copy of the checkout, with a DVC and a git repository of its own, for tests of what `dvc repro` does."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tasks.paths import ROOT

CODE = ("data", "models", "tasks", "pipelines")
FILES = (
    "convoy",
    "dvc.yaml",
    "params.yaml",
    "prefect.yaml",
    "requirements.lock",
    "pyproject.toml",
    ".dvcignore",
    ".gitignore",
)
SHORTER = (  # changes of recipes; digit scenes and landmarks are trained in full
    ("train", "epochs", 2.0, ("classification", "digits")),
    ("train", "epochs", 2.0, ("faces", "default")),
    ("train", "epochs", 2.0, ("style", "default")),
    ("evaluate", "optimise_s", 0.5, ("style", "default")),
)


class Checkout:
    """A copy of the code, with a DVC and a git repository of its own, whose recipes are shorter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in CODE:
            ignore = shutil.ignore_patterns("__pycache__", "store")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for name in FILES:
            shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        self.call("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        (folder / "data" / "store").mkdir()
        for change in SHORTER:
            self.change(*change)

    def call(self, *command: str) -> str:
        drop = ("CONVOY_", "PREFECT_", "DVC_", "PYTHON", "GIT_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        return self.call(str(self.folder / ".venv" / "bin" / "dvc"), *arguments)

    def commit(self) -> None:
        self.call("git", "add", "--all")
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self.call("git", *identity, "commit", "--quiet", "--message", "state")

    def change(
        self, section: str, key: str, value: Any, recipe: tuple[str, str] = ("classification", "digits")
    ) -> None:
        """Set a parameter of a recipe, which is named by its family and its own name."""
        file = self.folder / "params.yaml"
        values = yaml.safe_load(file.read_text())
        family, name = recipe
        values[family][name][section][key] = value
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    def changed(self) -> set[str]:
        """The stages that `dvc repro` would run because of what they read."""
        return set(json.loads(self.dvc("status", "--json")))

    def metrics(self, dataset: str = "digits") -> dict[str, float]:
        return json.loads((self.folder / "out" / dataset / "test" / "metrics.json").read_text())
