"""The registered model answers as `Predictor` does, wherever MLflow loads it."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.pyfunc import scoring_server

from data.dataset import Dataset
from tasks import ledger, registry
from tasks.modelfile import load_card, write_card
from tasks.packaging import DISTRIBUTIONS, OURS, closure, imported, requirements, save_package
from tasks.paths import ROOT
from tasks.predict import load_predictor
from tasks.predictors import PREDICTORS, open_predictor
from tests.recording import make_model, pictures, start
from tests.saved import save_untrained, some_items
from tests.tiny import TINY, tiny_dataset

URI = "models:/classifier@champion"
TIMEOUT_S = 240
TEMPERATURE = 2.5

# What a stranger's process does with the model; it prints the answers and which modules it took.
STRANGER = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
blobs = [open(path, "rb").read() for path in sys.argv[2:]]
rows = model.predict(pd.DataFrame({"image": blobs})).to_dict("records")
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({"rows": rows, "modules": modules}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose registry holds one champion."""
    folder = tmp_path_factory.mktemp("pyfunc") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_id = start("pyfunc", folder / "pets")
        model = make_model(folder / "runs" / "pyfunc" / "model")
        write_card(model, load_card(model).model_copy(update={"temperature": TEMPERATURE}))
        version = registry.register(run_id, model, name="classifier", example=pictures(2), tags={})
        ledger.promote_first("classifier", version)
        yield folder


@pytest.fixture(scope="module")
def blobs() -> list[bytes]:
    """Five pictures, one of them cut short."""
    whole = pictures(5)
    return [*whole[:2], whole[2][:40], *whole[3:]]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder to run in, with packages named like ours that are not ours."""
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not this one')")
    return tmp_path


def environment() -> dict[str, str]:
    """Ours without the checkout on the path; with the programs of our Python, since `serve` runs uvicorn by name."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **kept,
        "PATH": programs,
        "MLFLOW_TRACKING_URI": registry.tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def assert_same(rows: list[dict[str, Any]], home: Path, blobs: list[bytes]) -> None:
    """Rows as JSON gives them equal what `Predictor` says of the same pictures in the same batch."""
    expected = load_predictor(home / "runs" / "pyfunc" / "model").predict(blobs).to_pylist()
    assert len(rows) == len(blobs)
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if other["error"] is None:
            np.testing.assert_allclose(row["probabilities"], other["probabilities"], rtol=1e-6)
            np.testing.assert_allclose(row["confidence"], max(row["probabilities"]), rtol=1e-6)
        else:
            assert row["confidence"] is None
            assert row["probabilities"] is None
    assert sum(row["error"] is not None for row in rows) == 1


def assert_calibrated(rows: list[dict[str, Any]], home: Path, blobs: list[bytes]) -> None:
    """Logits were divided by the temperature: the ratio of two classes is what it was, to the power of 1/T."""
    predictor = load_predictor(home / "runs" / "pyfunc" / "model")
    images, _ = predictor.decode(blobs)
    before = predictor.uncalibrated(torch.from_numpy(images), predictor.view).numpy()
    after = np.array([row["probabilities"] for row in rows if row["error"] is None])
    expected = before ** (1 / TEMPERATURE)
    np.testing.assert_allclose(after, expected / expected.sum(1, keepdims=True), rtol=1e-4)
    assert not np.allclose(after, before, rtol=1e-2)


def request_of(blobs: list[bytes]) -> str:
    encoded = [[base64.b64encode(blob).decode()] for blob in blobs]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": encoded}})


def test_a_stranger_gets_the_predictors_answers_from_the_models_own_code(
    home: Path, blobs: list[bytes], tmp_path: Path
) -> None:
    files = [tmp_path / f"{i}.png" for i in range(len(blobs))]
    for file, blob in zip(files, blobs, strict=True):
        file.write_bytes(blob)

    done = subprocess.run(
        [sys.executable, "-c", STRANGER, URI, *map(str, files)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert_same(answer["rows"], home, blobs)
    assert_calibrated(answer["rows"], home, blobs)
    assert {"ray", "prefect", "dvc"}.isdisjoint(answer["modules"])
    own = [path for name, path in answer["modules"].items() if name.split(".")[0] in OURS and path]
    assert len(own) > 10
    assert all(Path(path).is_relative_to(home / "mlflow") for path in own)
    assert not any(Path(path).is_relative_to(ROOT / package) for path in own for package in OURS)


@pytest.mark.slow
def test_mlflow_predict_answers_as_the_predictor(home: Path, blobs: list[bytes], elsewhere: Path) -> None:
    (elsewhere / "request.json").write_text(request_of(blobs))
    command = [
        sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local", "--model-uri", URI,
        "--content-type", "json", "--input-path", "request.json", "--output-path", "answer.json",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=elsewhere,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert_same(json.loads((elsewhere / "answer.json").read_text())["predictions"], home, blobs)


@pytest.fixture
def server(home: Path, elsewhere: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port of the loopback."""
    assert (home / "mlflow.db").exists()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local",
        "--model-uri", URI, "--port", str(port),
    ]  # fmt: skip
    with (elsewhere / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=elsewhere, env=environment(), start_new_session=True, stdout=log, stderr=log
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        end_s = time.monotonic() + TIMEOUT_S
        while not answers(uri):
            assert process.poll() is None, (elsewhere / "log.txt").read_text()
            assert time.monotonic() < end_s
            time.sleep(0.5)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/ping", timeout=5).close()
    except OSError:
        return False
    return True


def post(uri: str, body: str) -> Any:
    request = urllib.request.Request(
        f"{uri}/invocations", body.encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


@pytest.mark.slow
def test_mlflow_serve_answers_as_the_predictor(server: str, home: Path, blobs: list[bytes]) -> None:
    assert_same(post(server, request_of(blobs))["predictions"], home, blobs)
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, json.dumps({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}))
    assert refused.value.code == 400
    assert "image" in json.loads(refused.value.read())["message"]


def test_the_signature_says_what_goes_in_and_out(home: Path) -> None:
    package = registry.resolve_model(URI).parent.parent
    assert package.is_relative_to(home)
    signature = yaml.safe_load((package / "MLmodel").read_text())["signature"]
    assert json.loads(signature["inputs"]) == [{"type": "binary", "name": "image", "required": True}]
    outputs = {column["name"]: column["type"] for column in json.loads(signature["outputs"])}
    assert outputs == {"label": "string", "confidence": "double", "probabilities": "array", "error": "string"}
    assert signature["params"] is None


def test_the_models_requirements_cover_what_its_code_imports(home: Path) -> None:
    names = {name.split(".")[0] for file in closure() for name in imported(ROOT / file)}
    foreign = {name for name in names if name not in sys.stdlib_module_names and name not in OURS}
    assert foreign <= set(DISTRIBUTIONS)
    listed = (registry.resolve_model(URI).parent.parent / "requirements.txt").read_text().split()
    assert listed == requirements()
    assert {line.split("==")[0] for line in listed} == {DISTRIBUTIONS[name] for name in foreign}
    assert not any("+" in line for line in listed)
    assert home.exists()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("store")
    return {family: tiny_dataset(family, store) for family in TINY}


def invoke(package: Path, body: str) -> httpx.Response:
    """What a client gets of what `mlflow models serve` runs, in this process."""
    application = scoring_server.init(mlflow.pyfunc.load_model(str(package)))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application), base_url="http://test"
        ) as client:
            return await client.post(
                "/invocations", content=body, headers={"Content-Type": "application/json"}
            )

    return asyncio.run(ask())


@pytest.mark.parametrize("family", PREDICTORS)
def test_every_family_is_served_by_mlflow(
    family: str, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/unused.db")
    model = save_untrained(family, datasets[family], tmp_path / "model")
    items = some_items(datasets[family], 2)
    save_package(tmp_path / "package", model, items, "0" * 32, "m-" + "0" * 32)
    reply = invoke(tmp_path / "package", request_of([items[0], b"nothing", items[1]]))
    assert reply.status_code == 200
    got = reply.json()["predictions"]
    expected = open_predictor(model).predict([items[0], b"nothing", items[1]]).to_pylist()
    assert [row.keys() for row in got] == [row.keys() for row in expected]
    assert [row["error"] for row in got] == [row["error"] for row in expected]
    column = next(name for name in expected[0] if name != "error")
    answer = base64.b64decode(got[0][column]) if column == "picture" else got[0][column]
    assert answer == (pytest.approx(expected[0][column]) if column == "embedding" else expected[0][column])

    reply = invoke(tmp_path / "package", request_of([b"nothing"]))
    assert reply.status_code == 400
    told = reply.json()
    assert told == {"error_code": "INVALID_PARAMETER_VALUE", "message": f"image 1: {expected[1]['error']}"}


@pytest.mark.parametrize(
    "body",
    [
        '{"dataframe_split": {"columns": ["image"], "data": [["a"]]}}',
        '{"dataframe_split": ',
        "[1]",
        '{"a": 1}',
    ],
)
def test_a_request_that_is_none_gets_400(body: str, home: Path) -> None:
    assert home.is_dir()
    reply = invoke(registry.resolve_model(URI).parent.parent, body)
    assert reply.status_code == 400
    assert "stack_trace" not in reply.json()
