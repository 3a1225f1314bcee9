"""What runs cost: measured from processes, added up over attempts and runs."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks import registry
from tasks.cost import CPU, GPU, WALL, Cost, Meter, cost_of, metered, summed
from tasks.runrecords import costs_until
from tests.recording import start

BURN = """
import sys, time
while time.process_time() < 0.5:
    pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def burn(meter: Meter) -> float:
    """Have a child compute until it is looked at, and end; the processor seconds that it had by its own account."""
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout
        own = float(child.stdout.readline())
        meter.look()
        child.communicate()
    return own


def test_the_seconds_of_children_count_after_they_have_ended_too() -> None:
    meter = Meter()
    before = time.process_time()
    own = burn(meter)
    cost = meter.cost({}, gpu_s=0.0)
    mine = time.process_time() - before
    # the kernel counts in hundredths of a second, of user and of system time
    assert own - 0.03 <= cost[CPU] <= own + mine + 0.3


def test_what_was_there_before_is_not_counted() -> None:
    burn(Meter())
    meter = Meter()
    assert meter.cost({}, 0.0)[CPU] < 0.5


def test_earlier_attempts_are_added() -> None:
    with metered() as meter:
        cost = meter.cost({CPU: 100.0, WALL: 1000.0, "test.accuracy": 1.0}, gpu_s=7.0)
    assert set(cost) == {CPU, GPU, WALL}
    assert cost[CPU] >= 100
    assert cost[WALL] > 1000
    assert cost[GPU] == 7


def test_a_run_of_many_sums_its_parts_whose_seconds_are_over_all_attempts() -> None:
    with metered() as meter:
        cost = meter.cost_of_many({CPU: 100.0, GPU: 50.0}, [(3.0, 2.0), (4.0, 5.0)], gpus=0.5)
    assert cost[CPU] >= 100
    assert (cost[GPU], cost["train_cpu_s"]) == (3.5, 7.0)


def test_ranks_on_a_cluster_that_was_there_before_are_added_and_own_ones_are_in_already() -> None:
    metrics = {CPU: 10.0, GPU: 2.0, WALL: 5.0, "train_cpu_s": 30.0}
    assert cost_of(metrics, {"ray.address": "embedded"}) == cost_of(metrics, {}) == Cost(1, 10, 2, 5)
    assert cost_of(metrics, {"ray.address": "10.0.0.1:6379"}) == Cost(1, 40, 2, 5)
    assert cost_of({"test.accuracy": 1.0}, {}) is None
    assert summed([Cost(1, 10, 2, 5), Cost(2, 1, 1, 1)]) == Cost(3, 11, 3, 6)
    assert summed([]) == Cost(0, 0, 0, 0)


def test_each_end_gets_the_runs_since_the_one_before_the_failed_ones_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))

    def ran(key: str, cpu_s: float, dataset: str = "pets", status: registry.Status = "FINISHED") -> None:
        run_id = start(key, tmp_path / "pets", parameters={"dataset": dataset})
        registry.log_metrics(run_id, {CPU: cpu_s, GPU: 0.0, WALL: 1.0})
        registry.finish_run(run_id, status)

    ran("a", 1)
    first = datetime.now(UTC)
    ran("b", 2, status="FAILED")
    ran("other", 100, dataset="birds")
    ran("c", 4)
    second = datetime.now(UTC)
    ran("d", 8)
    assert costs_until("classification", "pets", [first, second]) == [Cost(1, 1, 0, 1), Cost(2, 6, 0, 2)]
