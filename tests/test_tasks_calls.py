"""Calls on a cluster: what becomes of them when a process, or the head, is lost."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tasks import calls, cluster, nodes
from tasks.calls import call_each
from tasks.nodes import ClusterLost, gather


class Lost:
    """A head that has not answered for long."""

    def require(self) -> None:
        raise ClusterLost("the head has not answered for 41 s")


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


def test_each_call_gives_its_result_with_its_place() -> None:
    assert sorted(call_each(divmod, [(7, 2), (9, 4), (5, 5)], 1, 0)) == [
        (0, (3, 1)),
        (1, (2, 1)),
        (2, (1, 0)),
    ]


@pytest.mark.parametrize(("there", "gpus"), [
    ([{"CPU": 2.0}], 0), ([{"CPU": 2.0}, {"CPU": 8.0, "GPU": 3.0}], 1),
    ([{"CPU": 2.0}, {"CPU": 0.0, "GPU": 1.0}], 0),  # no node has both
])  # fmt: skip
def test_a_call_asks_for_a_gpu_where_a_node_has_one_for_it(
    there: list[dict[str, float]], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "cluster_info", lambda: cluster.ClusterInfo("here", len(there), 2, 1))
    monkeypatch.setattr(nodes, "resources", lambda: there)
    assert calls.gpus_of_call() == gpus


def test_behind_a_call_that_stalls_few_are_taken_where_order_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS_PER_CPU", 1)
    most, taken, ended = max(1, cluster.cluster_info().num_cpus), [], []

    def sleeps() -> Iterator[tuple[float]]:
        for place in range(5 * most):
            taken.append(place)
            yield (0.0 if place else 1.0,)

    for place, _ in call_each(time.sleep, sleeps(), 1, 0, in_order=True):
        assert len(taken) <= place + most
        ended.append(place)
    assert ended == taken == list(range(5 * most))


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(call_each(divmod, [(7, 2), (7, 0)], 1, 0))


def test_the_loss_of_a_process_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="a process of Ray was lost"):
        list(call_each(os._exit, [(1,)], 1, 0))


def test_nobody_waits_for_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "Head", Lost)
    began_s = time.monotonic()
    with pytest.raises(ClusterLost):
        list(call_each(time.sleep, [(600.0,)], 1, 0))
    assert time.monotonic() - began_s < 60


def test_values_are_gathered_in_their_order_unless_the_head_is_lost_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call: Any = calls._call
    assert gather([call.remote(divmod, 1, number, 4) for number in (9, 2)]) == [(2, 1), (0, 2)]
    monkeypatch.setattr(nodes, "Head", Lost)
    endless = call.remote(time.sleep, 1, 600.0)
    with pytest.raises(ClusterLost):
        gather([endless])
    ray.cancel(endless, force=True)
