"""A run on Ray Train, where only the driver's side of it is looked at."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch import distributed

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


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl")])
def test_workers_that_may_share_a_gpu_do_not_meet_by_nccl(gpus: float, backend: str) -> None:
    """It refuses two processes on one."""
    settings = tiny_config("classification", train__num_workers=2, train__gpus_per_worker=gpus).train
    group = raytrain.process_group(settings)
    assert isinstance(group, TorchConfig) and group.backend == backend


def test_workers_on_several_nodes_must_meet_soon_and_may_wait_long_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = tiny_config("classification", train__num_workers=2).train
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    group = raytrain.process_group(settings)
    assert isinstance(group, raytrain.Group) and group.timeout_s == raytrain.MEET_S
    done: list[Any] = []
    monkeypatch.setattr(_TorchBackend, "on_start", lambda *_: done.append("met"))
    group.backend_cls().on_start(SimpleNamespace(execute=done.append), group)
    assert done == [raytrain.use_own_interface, "met", raytrain.wait_long]


def test_workers_that_have_met_wait_for_half_an_hour() -> None:
    distributed.init_process_group(
        "gloo",
        store=distributed.HashStore(),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=raytrain.MEET_S),
    )
    try:
        backend = distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=raytrain.MEET_S)
        raytrain.wait_long()
        assert backend.options._timeout == timedelta(minutes=30)
    finally:
        distributed.destroy_process_group()


def test_workers_that_did_not_meet_are_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raytrain, "cpus_of_each", lambda _: 1)
    text = "The client socket has timed out after 120000ms while trying to connect to (198.18.212.2, 47971)."
    failure = ray.exceptions.RayTaskError(
        "f", "traceback", distributed.DistNetworkError(text)
    ).as_instanceof_cause()
    found = raytrain.why_failed(ray.train.ControllerError(failure), tiny_config("classification").train)
    assert (
        isinstance(found, ClusterLost)
        and "did not reach each other" in str(found)
        and len(str(found).splitlines()) == 1
    )
    other = raytrain.why_failed(
        ray.train.ControllerError(RuntimeError("x")), tiny_config("classification").train
    )
    assert isinstance(other, RuntimeError) and str(other) == "training failed: x"
