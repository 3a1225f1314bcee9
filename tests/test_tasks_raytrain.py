"""A run on Ray Train, where only the driver's side of it is looked at."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from tasks import raytrain
from tasks.nodes import ClusterLost
from tests.tiny import tiny_config


def test_a_head_that_is_lost_as_the_training_fails_is_not_asked_to_end_its_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would ask it for a minute, and then end the process without a word."""

    def fit(_trainer: Any) -> None:
        raise ray.train.ControllerError(RuntimeError("the controller is gone"))

    asked = iter([1])  # whether there is room is asked before the training, and after it has failed

    def cpus_of_each(_settings: Any) -> int:
        try:
            return next(asked)
        except StopIteration:
            raise ClusterLost("the head has not answered for 41 s") from None

    killed: list[Any] = []
    follower = SimpleNamespace(stop=lambda: None, error=None)
    for name, value in {
        "connect": lambda: None, "cpus_of_each": cpus_of_each, "open_mailbox": lambda: "mailbox",
        "source_of": lambda *_: {}, "Follower": lambda *_: follower, "shared_files": lambda: None,
        "Trainer": type("Trainer", (), {"__init__": lambda *_, **__: None, "fit": fit}),
    }.items():  # fmt: skip
        monkeypatch.setattr(raytrain, name, value)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", killed.append)
    dataset: Any = SimpleNamespace(info=None)
    listener: Any = SimpleNamespace(features=None)
    layout: Any = None
    with pytest.raises(ClusterLost):
        raytrain.fit_on_ray(
            "classification", tiny_config("classification"), dataset, layout, tmp_path, listener, None, None
        )
    assert killed == []
