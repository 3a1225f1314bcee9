"""Ray Train's controller: it looks often where something may happen, and seldom otherwise."""

import asyncio
import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import RunningState

from tasks import raycontroller
from tasks.paths import ROOT
from tasks.raycontroller import AWAKE_S, DROWSY_INTERVAL_S, PatientTrainController

RAYS = "ray.train.v2._internal.execution.controller.controller"


class Clock:
    """Stands still but for sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        for name in (f"{raycontroller.__name__}.time_monotonic", f"{RAYS}.time_monotonic"):
            monkeypatch.setattr(name, lambda: self.now_s)
        monkeypatch.setattr(f"{RAYS}.asyncio", SimpleNamespace(sleep=self.sleep))

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def looks(clock: Clock, interval_s: float, reports_at_s: list[float], num: int) -> list[float]:
    """When a controller that was just started looks at its worker, which reports at these times: from the start on."""
    began, found = clock.now_s, []

    def poll_status(timeout: float) -> Any:
        assert timeout == controller._health_check_interval_s
        found.append(clock.now_s - began)
        report = "a report" if reports_at_s and reports_at_s[0] <= found[-1] else None
        if report:
            reports_at_s.pop(0)
        return SimpleNamespace(worker_statuses={0: SimpleNamespace(training_report=report)})

    controller: Any = object.__new__(PatientTrainController)
    controller._state, controller._latest_poll_time = RunningState(), float("-inf")
    controller._worker_group = SimpleNamespace(poll_status=poll_status)
    controller.awake_interval_s, controller.awake_until_s = interval_s, began + AWAKE_S
    for _ in range(num):
        asyncio.run(controller._poll_workers())
    return found


def gaps(times: list[float], first_s: float, end_s: float) -> list[float]:
    pairs = itertools.pairwise(times)
    return [later - time for time, later in pairs if first_s <= time and later <= end_s]


def test_it_looks_often_at_first_and_after_a_report_and_seldom_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = looks(Clock(monkeypatch), 0.2, [30.0], 200)
    for first_s, end_s, gap_s, least in (
        (0, AWAKE_S, 0.2, 48),
        (AWAKE_S + 0.5, 30, DROWSY_INTERVAL_S, 17),
        (31.1, 40, 0.2, 40),
        (42, 60, DROWSY_INTERVAL_S, 15),
    ):
        found = gaps(times, first_s, end_s)
        assert len(found) >= least and found == pytest.approx([gap_s] * len(found), abs=1e-6)


def test_an_interval_that_is_longer_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    times = looks(Clock(monkeypatch), 3.0, [], 8)
    assert gaps(times, 0, 30) == pytest.approx([3.0] * 7)


def test_torch_does_not_come_with_it() -> None:
    code = f"import sys, {raycontroller.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
