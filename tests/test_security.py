"""Nothing that is read is run: the code calls nothing that would, and what is planted in each place stays a file.

docs/security.md says what is trusted and what is not; this holds the code to it.
"""

import ast
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save

from data.dataset import Dataset
from data.decode import DecodeError
from data.npy import read_npy, read_npz
from models.facelandmarks68 import FaceLandmarks68
from tasks import faceweights, recordstore, weights
from tasks.lineage import has_commit
from tasks.modelfile import load_card, load_model, model_sha256
from tasks.modelstore import files_of
from tasks.paths import ROOT
from tasks.predict import load_predictor
from tasks.reproduction import require_names
from tests.pictures import png
from tests.recording import make_model
from tests.tiny import tiny_dataset

LAYERS = ("data", "models", "tasks", "pipelines")
MODULES = sorted(
    file for layer in LAYERS for file in (ROOT / layer).rglob("*.py") if "store" not in file.parts
)
RUNNERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "codeop",
    "imp",
}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "torch.hub.load",
    "torch.jit.load", "yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive", "pd.read_pickle",
    "mlflow.pyfunc.load_model", "tempfile.mktemp", "importlib.reload", "runpy.run_path",
}  # fmt: skip
METHODS = {"extractall", "extract"}  # of archives
NETWORK = {  # who opens connections, itself or by an engine's client, and to where
    "data/download.py": "a source's URL, watched by data.hosts",
    "data/s3.py": "Amazon, or AWS_ENDPOINT_URL",
    "pipelines/adoption.py": "the platform's servers, and those that the environment names",
    "pipelines/approval.py": "PREFECT_API_URL",
    "pipelines/artifacts.py": "PREFECT_API_URL",
    "pipelines/bringup.py": "the platform's databases",
    "pipelines/commands_lineage.py": "PREFECT_API_URL",
    "pipelines/doctor.py": "the servers that the environment names",
    "pipelines/notification.py": "CONVOY_WEBHOOK_URL",
    "pipelines/server.py": "PREFECT_API_URL, or a server of its own on the loopback",
    "pipelines/services.py": "the platform's servers",
    "tasks/cluster.py": "RAY_ADDRESS",
    "tasks/dvcprocess.py": "DVC's remote",
    "tasks/modelstore.py": "where a version's files are: tasks.recordstore lets MLflow ask its server alone",
    "tasks/nodes.py": "the head of the Ray cluster",
    "tasks/recordstore.py": "MLFLOW_TRACKING_URI",
    "tasks/runrecords.py": "where a run's files are: as those of a version",
}
CALLERS = {
    "urlopen", "requests.get", "requests.post", "requests.Session", "_Session", "httpx.get", "httpx.post",
    "httpx.Client", "socket.create_connection", "MlflowClient", "download_artifacts", "get_client", "ray.init",
    "Repo",
}  # fmt: skip


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """The calls in a file: the dotted name that is called, and the call."""
    return [(dotted(node.func), node) for node in ast.walk(parsed(file)) if isinstance(node, ast.Call)]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression that is that; what stands before a dot may be anything."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keywords(call: ast.Call) -> dict[str, Any]:
    """The constants that are given by name; of what is none, its place in the code."""
    return {
        each.arg or "**": each.value.value if isinstance(each.value, ast.Constant) else each.value
        for each in call.keywords
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_no_module_calls_what_runs_what_it_reads(layer: str) -> None:
    for file in MODULES:
        if file.is_relative_to(ROOT / layer):
            require_harmless(file)


def require_harmless(file: Path) -> None:
    tree = parsed(file)
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not imported & RUNNERS
    for name, call in calls(file):
        options = keywords(call)
        assert name not in FORBIDDEN and name.rpartition(".")[2] not in METHODS, name
        assert options.get("shell") is None, f"{name} with a shell"
        assert options.get("verify") is not False and options.get("trust_remote_code") is None, name
        if name == "torch.load":
            assert options.get("weights_only") is True
        if name == "np.load":
            assert options.get("allow_pickle") is None  # which is False
        if name == "yaml.load":
            assert dotted(call.args[1]) == "yaml.BaseLoader"


def test_few_modules_open_connections_and_it_is_said_to_where() -> None:
    found = {
        str(file.relative_to(ROOT))
        for file in MODULES
        for name, _ in calls(file)
        if name in CALLERS or name.endswith((".urlopen", ".open_connection", ".create_client", ".build_opener"))
    }  # fmt: skip
    assert found == set(NETWORK)


class Planted:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What appears if something that was planted is run."""
    place = tmp_path / "it was run"
    yield place
    assert not place.exists()


def as_zip(planted: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(planted, buffer)
    return buffer.getvalue()


def as_legacy(planted: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(planted, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


WRAPPINGS: dict[str, Callable[[Any], bytes]] = {
    "plain": pickle.dumps,
    "protocol 0": lambda planted: pickle.dumps(planted, protocol=0),
    "zip": lambda planted: as_zip({"x": planted}),
    "legacy": lambda planted: as_legacy({"x": planted}),
    "state_dict": lambda planted: as_zip({"state_dict": {"x": planted}}),
    "beside tensors": lambda planted: as_zip({"a": torch.ones(2), "b": planted}),
}
READERS: dict[str, Callable[[str], Any]] = {
    "transfer.weights": lambda file: weights.read_weights(file, "lenet5", 1, Path),
    "mtcnn": faceweights.load_mtcnn,
    "landmarks68": faceweights.load_face_landmarks68,
}


def test_what_is_planted_runs_where_it_is_unpickled(tmp_path: Path) -> None:
    for number, wrap in enumerate(WRAPPINGS.values()):
        data = wrap(Planted(tmp_path / str(number)))
        if data.startswith(b"PK"):
            torch.load(io.BytesIO(data), weights_only=False)
        else:
            pickle.loads(data) if number < 2 else torch.load(io.BytesIO(data), weights_only=False)
        assert (tmp_path / str(number)).is_dir()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
@pytest.mark.parametrize("reader", list(READERS))
def test_a_pickle_in_the_place_of_weights_is_not_run(
    reader: str, wrapping: str, name: str, tmp_path: Path, mark: Path
) -> None:
    (tmp_path / name).write_bytes(WRAPPINGS[wrapping](Planted(mark)))
    with pytest.raises(ValueError, match="cannot be read as named tensors") as caught:
        READERS[reader](str(tmp_path / name))
    told = str(caught.value)
    assert "\n" not in told
    # torch's own words are how to run it all the same
    assert "weights_only" not in told and "torch.load" not in told and "file an issue" not in told
    # torch goes by the name of a .safetensors file, and protocol 0 begins like neither
    if wrapping != "protocol 0" and name != "w.safetensors":
        assert "Python objects other than tensors" in told and "torch.save(model.state_dict(), FILE)" in told


def test_a_folder_of_weights_is_read_the_same_way(tmp_path: Path, mark: Path) -> None:
    for stage in faceweights.STAGES:
        (tmp_path / f"{stage}.pt").write_bytes(as_zip({"x": Planted(mark)}))
    with pytest.raises(ValueError, match="cannot be read as named tensors"):
        faceweights.load_mtcnn(str(tmp_path))


def test_an_array_of_objects_in_a_dataset_is_not_unpickled(mark: Path) -> None:
    objects = np.array([Planted(mark), None], object)
    plain, archive = io.BytesIO(), io.BytesIO()
    np.save(plain, objects)
    np.savez(archive, x=objects)
    for read, data in ((read_npy, plain), (read_npz, archive)):
        with pytest.raises(DecodeError, match="Python objects, which are not unpickled"):
            read(data.getvalue())  # type: ignore[operator]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder of a model."""
    return make_model(tmp_path / "model")


MEMBER = {
    "architecture": "lenet5",
    "arguments": {"input_px": 32},
    "weights": "member-0.safetensors",
    "run": "k",
}


def with_card(folder: Path, **changes: Any) -> Path:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **changes}))
    return folder


def members_at(folder: Path, name: str) -> list[dict[str, Any]]:
    [member] = json.loads((folder / "model.json").read_text())["members"]
    return [{**member, "weights": name}]


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
def test_a_pickle_in_the_place_of_a_models_weights_is_not_run(
    wrapping: str, copied: Path, mark: Path
) -> None:
    (copied / "member-0.safetensors").write_bytes(WRAPPINGS[wrapping](Planted(mark)))
    for name in ("python_model.pkl", "data.pkl", "model.pth"):  # what other tools would load
        (copied / name).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(ValueError, match=r"member-0\.safetensors and model\.json do not make a lenet5"):
        load_predictor(copied)


@pytest.mark.parametrize(
    "name", ["../member-0.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "x\0y"]
)
def test_a_card_names_files_in_its_folder_alone(name: str, copied: Path) -> None:
    with_card(copied, members=members_at(copied, name))
    for read in (load_model, model_sha256):
        with pytest.raises(ValueError, match="must be a file name in that folder"):
            read(copied)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged, it is no JSON"),
        (b"[]", "must hold an object, got list"),
        (b"{", "is damaged, it is no JSON"),
        (b"\xff\xfe{}", "is damaged, it is no JSON"),
        (b"[" * 100_000, "is damaged, it is no JSON"),
        (b"{}", r"card_version \(=None\) is not"),
    ],
)
def test_a_damaged_card_is_one_line(content: bytes, said: str, copied: Path) -> None:
    (copied / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.json.*{said}") as caught:
        load_card(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "nothing"},
        {"members": [{**MEMBER, "architecture": "os.system"}]},
        {"classes": ["only one"]},
        {"members": [{**MEMBER, "arguments": {"width": "x"}}]},
    ],
)
def test_a_card_of_another_network_is_one_line(changes: dict[str, Any], copied: Path) -> None:
    with_card(copied, **changes)
    with pytest.raises(ValueError, match=r"model\.json do not make a") as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `dataset.json` of a dataset."""
    dataset = tiny_dataset("classification", tmp_path_factory.mktemp("store"))
    return dict(json.loads((dataset.path / "dataset.json").read_text()))


@pytest.mark.parametrize("file", ["../x.parquet", "/etc/passwd", "..", "a/b.parquet", ""])
def test_a_datasets_description_names_files_in_its_folder_alone(
    file: str, description: dict[str, Any], tmp_path: Path
) -> None:
    folder, values = tmp_path, description
    shards = [{**shard, "file": file} for shard in values["shards"]]
    for changes in ({"shards": shards}, {"files_sha256": {file: "0" * 64}}):
        (folder / "dataset.json").write_text(json.dumps({**values, **changes}))
        with pytest.raises(ValueError, match="must be a file name in that folder"):
            Dataset.open(folder)


# bombs


def zip_of(files: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_weights_that_unpack_to_more_than_they_are_are_refused_before_they_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(as_zip({"x": torch.zeros(1 << 20)}))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    bomb = zip_of(files, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    (tmp_path / "w.pth").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"is compressed, which torch\.save does not do"):
        weights.read_state(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(zip_of(files, zipfile.ZIP_STORED))
    assert set(weights.read_state(tmp_path / "w.pth")) == {"x"}


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1).expand(1 << 40), torch.zeros(3, 3).to_sparse(), torch.zeros(4, device="meta")],
    ids=["expanded", "sparse", "meta"],
)  # fmt: skip
def test_a_tensor_whose_numbers_are_not_there_is_refused(value: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(as_zip({"mean": value, "std": value}))
    with pytest.raises(ValueError, match="cannot be read as named tensors") as caught:
        weights.read_state(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 62) + b"{",
        struct.pack("<Q", 60) + b'{"x":{"dtype":"F32","shape":[4294967296],"data_offsets":[0,4]}}'[:60],
        struct.pack("<Q", 8) + b'{"x":{}}',
        struct.pack("<Q", 50_000) + b"{" * 50_000,
        save({"x": torch.ones(4)})[:-1],
    ],
    ids=["endless header", "more than there is", "no tensor", "deep", "cut"],
)
def test_a_safetensors_header_is_not_believed(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match="cannot be read as named tensors"):
        weights.read_state(tmp_path / "w.safetensors")


def test_a_length_that_memory_does_not_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(as_zip({"x": torch.ones(2)}))
    monkeypatch.setattr(torch, "load", Mock(side_effect=MemoryError()))
    with pytest.raises(ValueError, match=r"more memory than there is, for a file of [0-9,]+ bytes"):
        weights.read_state(tmp_path / "w.pth")


def test_other_keys_than_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(as_zip({1: torch.ones(2)}))
    with pytest.raises(ValueError, match="must hold named tensors"):
        weights.read_state(tmp_path / "w.pth")


def test_tensors_of_another_network_are_named_and_not_copied(tmp_path: Path) -> None:
    torch.save(FaceLandmarks68().state_dict() | {"extra": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"these are not the tensors of FaceLandmarks68: 1 .* the first is extra"
    ):
        faceweights.load_face_landmarks68(str(tmp_path / "w.pth"))


def test_a_model_that_is_whole_predicts(copied: Path) -> None:
    assert load_predictor(copied).predict([png(1)])["error"].to_pylist() == [None]


# records


@pytest.mark.parametrize("sha256", ["../../../.config/autostart", "/tmp/x", "", "A" * 64, "0" * 63])
def test_a_registry_does_not_choose_where_a_model_is_put(sha256: str, mark: Path) -> None:
    version = SimpleNamespace(name="x", version="1", tags={"convoy.model_sha256": sha256})
    with pytest.raises(ValueError, match="was not registered by Convoy"):
        files_of(None, version)  # type: ignore[arg-type]
    assert not mark.exists()


@pytest.mark.parametrize("source", [
    "http://169.254.169.254/latest", "https://files.example/m", "ftp://localhost/m", "http://[::1]/m",
    "mlflow-artifacts://10.0.0.7/m", "http://records.example/m", "r2://b@169.254.169.254/m", "hdfs://files.example/m", "http://files.example\\@records.example:5000/m",
])  # fmt: skip
def test_a_registry_does_not_send_us_to_another_host(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to a public one either: MLflow would tell it its server's password."""
    recordstore.keep_to_server()
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://records.example:5000")
    monkeypatch.setenv("CONVOY_PRIVATE_URLS", "records.other")
    version = SimpleNamespace(name="x", version="1", tags={"convoy.model_sha256": "0" * 64})
    client = SimpleNamespace(get_model_version_download_uri=lambda _name, _version: source)
    with pytest.raises(ValueError, match=r"is not its server \(http://records\.example:5000\)"):
        files_of(client, version)  # type: ignore[arg-type]


@pytest.mark.parametrize(("place", "allowed"), [
    ("mlflow-artifacts:/3/x", ""), ("mlflow-artifacts://records.example:5000/3/x", ""),
    ("http://records.example:5000/api/2.0/mlflow-artifacts/artifacts/3", ""), ("s3://bucket/3/x", ""),
    ("file:///mlflow/3/x", ""), ("/mlflow/3/x", ""),
    ("https://files.example/3", "files.example"), ("http://10.0.0.7/3", "10.0.0.0/8"),
])  # fmt: skip
def test_a_records_files_are_read_at_its_server_in_a_store_or_where_it_is_allowed(
    place: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:geheim@records.example:5000")
    monkeypatch.setenv("CONVOY_PRIVATE_URLS", allowed)
    recordstore.require_own(place)
    with pytest.raises(ValueError, match=r"not its server \(http://…@records\.example:5000\)"):
        recordstore.require_own("http://elsewhere.example/3")


@pytest.mark.parametrize(
    ("key", "dataset", "digest"),
    [
        ("../../x", "digits", ""),
        ("k", "../x", ""),
        ("k", "digits", "../../x"),
        ("", "digits", ""),
        ("k", "None", ""),
    ],
)
def test_a_record_does_not_choose_where_a_training_is_done_again(key: str, dataset: str, digest: str) -> None:
    with pytest.raises(ValueError, match="was tampered with"):
        require_names("models:/x/1", key, dataset, digest)
    require_names("models:/x/1", "k", "digits", "0" * 32 + ".dir")


@pytest.mark.parametrize("commit", ["", "HEAD", "main", "--help", "-x", "0000000; touch x", "c0ffee", "../x"])
def test_only_a_hash_names_a_commit(commit: str) -> None:
    assert not has_commit(ROOT, commit)
