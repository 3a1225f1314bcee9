"""Ray as a cluster of several nodes: the same call, the same result, on the nodes of RAY_ADDRESS."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray._private import worker as ray_worker
from ray._private.runtime_env.packaging import _get_excludes
from ray._private.utils import publish_error_to_driver
from ray.cluster_utils import Cluster

from data.records import Batch
from tasks import cluster
from tasks.batches import join_arrays
from tasks.cluster import pack, readonly_tensors, unpack
from tasks.memory import ALLOCATOR
from tasks.paths import ROOT
from tasks.train import train
from tests.test_families import assert_equal_weights, weights
from tests.tiny import tiny_config, tiny_dataset

TRAIN = """
import json, sys
from pathlib import Path
from data.dataset import Dataset
from tasks import cluster
from tasks.train import train
from tests.tiny import tiny_config

print(json.dumps(vars(cluster.connect())))
dataset, folder = Dataset.open(Path(sys.argv[1])), Path(sys.argv[2])
for mode in ("resident", "streaming"):
    changes = {"train__data_mode": mode, "train__augment_workers": 1}
    config = tiny_config("classification", train__num_workers=2, optim__clip_norm=0.0, **changes)
    train("classification", config, dataset, folder=folder / mode, key="k", digest="")
cluster.disconnect()
"""


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_packed_batch_comes_out_as_it_was_and_its_arrays_lie_as_they_are_stored(
    layout: torch.memory_format,
) -> None:
    images = (
        torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5).contiguous(memory_format=layout)
    )
    packed = pack(Batch(images, torch.tensor([1, 2]), np.array([7, 8])))
    assert all(array.flags["C_CONTIGUOUS"] for array in packed[1].values())
    batch = unpack(packed)
    assert torch.equal(batch.images, images)
    assert batch.images.stride() == images.stride()
    assert (batch.labels.tolist(), batch.indices.tolist(), batch.weights) == ([1, 2], [7, 8], None)


@pytest.mark.parametrize(("file", "is_sent"), [
    (".env", False), (".env.local", False), (".netrc", False), (".aws/credentials", False),
    (".dvc/config.local", False), ("mlflow.db", False), ("tasks/cluster.py", True), ("params.yaml", True),
])  # fmt: skip
def test_code_is_sent_to_a_cluster_and_what_holds_secrets_is_not(
    file: str, is_sent: bool, tmp_path: Path
) -> None:
    assert _get_excludes(tmp_path, cluster.KEPT_BACK)(tmp_path / file) != is_sent


def test_what_ray_tells_of_what_died_is_no_part_of_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    cluster.connect()
    publish_error_to_driver("node_died", "a node died", gcs_client=ray_worker.global_worker.gcs_client)
    out = err = ""
    for _ in range(100):
        said = capsys.readouterr()
        out, err = out + said.out, err + said.err
        if "a node died" in out + err:
            break
        time.sleep(0.1)
    assert "a node died" in err and not out


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A Ray head and a second node, each with one CPU, as processes of their own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_of_a_cluster_train_together(two_nodes: Cluster, tmp_path: Path) -> None:
    dataset = tiny_dataset("classification", tmp_path / "store")
    # from another folder, without the checkout on the path: the code must travel by Ray's working_dir
    environment = {**os.environ, "RAY_ADDRESS": two_nodes.address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(dataset.path), str(tmp_path / "cluster")],
        env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'"address": "{two_nodes.address}", "num_nodes": 2, "num_cpus": 2' in done.stdout
    config = tiny_config("classification", optim__clip_norm=0.0)
    train(
        "classification", config, dataset, folder=tmp_path / "here", key="k", digest="", executor="in_process"
    )
    here = weights(tmp_path / "here")
    for name, value in weights(tmp_path / "cluster" / "resident").items():
        torch.testing.assert_close(value, here[name], rtol=1e-3, atol=1e-4)
    assert_equal_weights(tmp_path / "cluster" / "streaming", tmp_path / "cluster" / "resident")


def test_a_cluster_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    program = "from tasks import cluster; cluster.connect()"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Ray cluster answers at RAY_ADDRESS (=127.0.0.1:1)" in done.stderr.splitlines()[-1]


def test_pieces_are_joined_in_order_and_an_empty_split_keeps_its_shape() -> None:
    empty = {"x": np.empty((0, 2), np.uint8)}
    pieces = [{"x": np.full((n, 2), n, np.uint8)} for n in (2, 1)]
    assert join_arrays(pieces, empty)["x"].tolist() == [[2, 2], [2, 2], [1, 1]]
    assert join_arrays([], empty)["x"].shape == (0, 2)


def test_resident_arrays_are_shared_not_copied() -> None:
    array = np.arange(6, dtype=np.uint8)
    array.flags.writeable = False
    tensor = readonly_tensors({"x": array})["x"]
    assert tensor.data_ptr() == array.ctypes.data


def test_a_worker_must_fit_on_a_node_not_only_into_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
    ]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "cluster_info", lambda: cluster.ClusterInfo("here", 2, 10, 1))
    assert cluster.require_resources(2, 0, 0) == 4  # 5 each would leave the small node's two unused
    assert cluster.require_resources(1, 0, 0) == 8
    assert cluster.require_resources(1, 3, 0.5) == 3
    with pytest.raises(
        ValueError, match=r"num_workers \(=3\) with .*cpus_per_worker \(=4\).* 2 such workers do"
    ):
        cluster.require_resources(3, 4, 0)
    with pytest.raises(
        ValueError, match=r"1 such workers do; nodes .*: 8 CPUs and 1 GPUs, 2 CPUs and 0 GPUs"
    ):
        cluster.require_resources(2, 1, 1)


def test_a_cluster_without_gpus_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(cluster, "cluster_info", lambda: cluster.ClusterInfo("here", 1, 2, 0))
    with pytest.raises(
        ValueError,
        match=r"num_workers \(=1\) with .* train.gpus_per_worker \(=1\) do not fit: the cluster \(embedded\) has "
        r"no GPU: set train.gpus_per_worker=0, or connect to one that has \(RAY_ADDRESS\)$",
    ):
        cluster.require_resources(1, 0, 1)
    with pytest.raises(ValueError, match=r"2 such workers do; nodes .*: 2 CPUs and 0 GPUs"):
        cluster.require_resources(3, 1, 0)


def test_allocator_settings_are_what_glibc_reads() -> None:
    numbers = dict(ALLOCATOR)
    assert numbers.pop("GLIBC_TUNABLES") == "glibc.malloc.hugetlb=1"
    assert all(name.startswith("MALLOC_") and value.isdigit() for name, value in numbers.items())
