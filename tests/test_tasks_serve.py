"""Under Ray Serve: a switch that no client notices, a version that cannot be read, and an end that leaves nothing."""

import collections
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.parameters import section
from tasks import ledger, registry
from tasks.cluster import disconnect
from tasks.predict import load_predictor
from tasks.recordings import RecordConfig, folder_of, read_recordings
from tasks.recordstore import connect
from tasks.resolution import resolve
from tasks.serve import HANDED_ON, Server, deployment_of, places, require_free, serving
from tasks.serveconfig import ServeConfig
from tests.recording import make_model, pictures, start

URI = "models:/pets@champion"
NUM_CLIENTS = 4
TIMEOUT_S = 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """A registry with three versions of a model, of which the first is the champion."""
    run_id = start("pets", module_home / "pets")
    for seed in range(3):
        model = make_model(module_home / f"model-{seed}", seed)
        version = registry.register(run_id, model, name="pets", example=pictures(1), tags={})
        ledger.promote_first("pets", version)
    return module_home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    assert home.is_dir()
    config = section("serve", ServeConfig, {"poll_s": 0.2})
    record = section("record", RecordConfig, {"flush_s": 0.2})
    try:
        with serving(URI, config, record, "127.0.0.1", free_port()) as running:
            yield running
    finally:
        disconnect()
    with contextlib.closing(connection(running)) as client, pytest.raises(ConnectionRefusedError):
        client.connect()
    assert len(read_recordings(folder_of(resolve("models:/pets/1")), resolve("models:/pets/1").sha256)) > 0


def post(client: http.client.HTTPConnection, body: bytes) -> tuple[int, dict[str, Any]]:
    client.request("POST", "/predict", body)
    reply = client.getresponse()
    answer = json.loads(reply.read())
    assert reply.headers["X-Model-Version"] == answer["version"]
    return reply.status, answer


def connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=TIMEOUT_S)


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_no_request_is_lost_while_the_alias_moves(server: Server) -> None:
    [blob] = pictures(1)
    expected = {
        f"models:/pets/{n}": load_predictor(resolve(f"models:/pets/{n}").folder)
        .predict([blob])
        .to_pylist()[0]
        for n in (1, 2)
    }
    seen: collections.Counter[str] = collections.Counter()
    wrong: list[Any] = []
    over = threading.Event()

    def hammer() -> None:
        with contextlib.closing(connection(server)) as client:
            while not over.is_set() and not wrong:
                try:
                    status, answer = post(client, blob)
                    [row] = answer["predictions"]
                    assert status == 200, answer
                    want = expected[answer["version"]]
                    assert row["label"] == want["label"]
                    assert row["probabilities"] == pytest.approx(want["probabilities"], abs=1e-5)
                    seen[answer["version"]] += 1
                except Exception as error:  # whatever went wrong is what the test is about
                    wrong.append(error)

    clients = [threading.Thread(target=hammer) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: seen["models:/pets/1"] >= 20 or wrong)
        connect().set_registered_model_alias("pets", "champion", "2")
        wait_for(lambda: seen["models:/pets/2"] >= 20 or wrong)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not wrong
    notes: list[str] = []
    wait_for(lambda: notes.extend(server.notes()) or notes)
    assert notes == ["models:/pets/2 answers from now on; models:/pets/1 did before"]


def test_a_version_that_cannot_be_read_leaves_the_old_one(server: Server) -> None:
    weights = resolve("models:/pets/3").folder / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    connect().set_registered_model_alias("pets", "champion", "3")
    notes: list[str] = []
    wait_for(lambda: notes.extend(server.notes()) or notes)
    assert len(notes) == 1
    assert notes[0].startswith("models:/pets/3 cannot be served: the files of models:/pets/3")
    assert notes[0].endswith("models:/pets/2 goes on answering")
    with contextlib.closing(connection(server)) as client:
        assert post(client, pictures(1)[0])[1]["version"] == "models:/pets/2"
        client.request("GET", "/version")
        assert "models:/pets/3" in json.loads(client.getresponse().read())["fault"]
        status, answer = post(client, b"no picture")
        assert (status, answer["version"]) == (400, "models:/pets/2")


def test_a_replica_asks_ray_for_what_it_computes_on() -> None:
    asked = deployment_of(section("serve", ServeConfig, {"threads": 2, "gpus": 0.5})).ray_actor_options
    assert (asked["num_cpus"], asked["num_gpus"]) == (2, 0.5)


def test_a_replica_is_told_where_models_are_and_what_mlflows_server_asks_for(
    module_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster a process inherits nothing of the driver's environment."""
    for name in HANDED_ON:
        monkeypatch.delenv(name, raising=False)
    assert set(places()) == {"CONVOY_HOME", "MLFLOW_TRACKING_URI"}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    told = places()
    assert told["CONVOY_HOME"] == str(module_home)
    assert (told["MLFLOW_TRACKING_USERNAME"], told["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "geheim")


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"):
            require_free("127.0.0.1", port)
