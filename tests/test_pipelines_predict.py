"""`./convoy predict --out`, `--record`, `drift` and `serve` as commands: what they print, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data.dataset import Dataset
from data.ingest import ingest
from pipelines import commands_predict
from pipelines.driftwatch import watch_drift
from pipelines.parameters import section
from tasks import ledger, registry
from tasks.drift import DriftConfig
from tasks.driftlooks import read_looks, reference_of
from tasks.paths import ROOT, store
from tasks.recordings import RecordConfig
from tasks.resolution import resolve
from tasks.serveconfig import ServeConfig
from tests.conftest import Run
from tests.recording import make_model, pictures, start
from tests.saved import save_untrained
from tests.tiny import ingest_config

DIGITS = "models:/digits@champion"


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """Digits, a model of them and a model of pets in a registry, and a folder of pictures."""
    ingest("sklearn:digits", name="digits", family="classification", store=store(), config=ingest_config())
    digits = Dataset.open(store() / "digits")
    models = {
        "digits": save_untrained("classification", digits, module_home / "digits-model"),
        "pets": make_model(module_home / "pets-model"),
    }
    for name, model in models.items():
        run_id = start(name, module_home / name)
        ledger.promote_first(name, registry.register(run_id, model, name=name, example=pictures(1), tags={}))
    (module_home / "photos").mkdir()
    for i, blob in enumerate(digits.rows("test", list(range(60)), ["image"])["image"].to_pylist()):
        (module_home / "photos" / f"{i:02d}.png").write_bytes(blob)
    (module_home / "photos" / "broken.png").write_bytes(b"broken")
    return module_home


def test_a_folder_becomes_a_file_and_the_same_command_finds_it_done(
    home: Path, run: Run, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefect_api
    monkeypatch.setattr("pipelines.commands_batch.start_engines", lambda executor: None)
    out = home / "p.parquet"
    words = ("predict", DIGITS, str(home / "photos"), "--out", str(out), "--executor", "in_process")
    code, printed, err = run(*words, "--set", "part_images=25", "--record", "--json")
    assert code == 1, err  # one of them cannot be read
    summary = json.loads(printed)
    assert (summary["files"], summary["errors"], summary["parts"]) == (61, 1, 3)
    assert (summary["model"], summary["dataset"]) == ("models:/digits/1", "digits")
    rows = pq.read_table(out)
    assert len(rows) == 61 and set(rows["model_version"].to_pylist()) == {"models:/digits/1"}
    before = out.read_bytes()

    code, printed, err = run(*words)
    assert code == 1 and "is done already, by models:/digits/1" in err
    assert out.read_bytes() == before and "61" in printed

    code, _, err = run("predict", "models:/pets@champion", *words[2:])
    assert (
        code == 2
        and "was begun with the model models:/digits@champion, and this is models:/pets@champion" in err
    )


def test_many_or_large_files_are_read_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands_predict, "PIECE_IMAGES", 3)
    monkeypatch.setattr(commands_predict, "PIECE_BYTES", 100)
    files = [tmp_path / str(number) for number in range(8)]
    for file, size in zip(files[:-1], (10, 10, 10, 10, 60, 60, 500), strict=True):
        file.write_bytes(b"x" * size)
    pieces = []

    def predict(blobs: list[bytes]) -> pa.Table:
        pieces.append([len(blob) for blob in blobs])
        return pa.table({"size": pieces[-1], "error": [None] * len(blobs)})

    rows = commands_predict.in_pieces(files, predict)
    assert pieces == [[10, 10, 10], [10, 60], [60], [500], [0]]  # the last is not there
    assert [row["size"] for row in rows] == [10, 10, 10, 10, 60, 60, 500, 0]
    assert [bool(row["error"]) for row in rows] == [False] * 7 + [True]
    assert commands_predict.in_pieces([], predict) == []


@pytest.mark.parametrize(
    ("probabilities", "told"),
    [
        ([0.25, 0.25, 0.25, 0.25], "bee 0.25, cat 0.25, dog 0.25"),
        ([0.1, 0.4, 0.4, 0.1], "cat 0.40, ant 0.10, dog 0.10"),
        ([0.2, 0.0, 0.3, 0.5], "cat 0.30, ant 0.20"),
    ],
)
def test_the_label_is_not_its_own_runner_up(probabilities: list[float], told: str) -> None:
    """Of equals the predictor's label is the first: no other is left out, in the order of the classes."""
    assert commands_predict.runners_up(("ant", "bee", "cat", "dog"), probabilities) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "p.csv"), "--out (=p.csv) must end in .parquet"),
        (("--out", "p.parquet", "--view", "mirror"), "--view is for a look at few images"),
        (("--out", "p.parquet", "another"), "--out takes one folder, or s3://BUCKET/PREFIX, got 2"),
        (("--out", "p.parquet", "--overlap", "0.5"), "give --tile too"),
        (("--out", "p.parquet", "--strength", "0.5"), "--strength is for stylizers"),
        (("--set", "threads=2"), "--set is for --out"),
    ],
)
def test_what_predict_refuses(
    words: tuple[str, ...],
    message: str,
    home: Path,
    run: Run,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert prefect_api
    monkeypatch.setattr("pipelines.commands_batch.start_engines", lambda executor: None)
    code, out, err = run("predict", DIGITS, str(home / "photos"), "--executor", "in_process", *words)
    assert code == 2 and message in err and not out


def test_recorded_predictions_are_looked_at_once(home: Path, run: Run) -> None:
    small = ("--set", "least_recent=20", "--set", "permutations=199")
    photos = [str(file) for file in sorted((home / "photos").glob("[0-9]*.png"))]
    assert run("predict", DIGITS, *photos, "--record", "--json")[0] == 0
    code, out, err = run("drift", DIGITS, *small, "--json")
    assert code == 0, err
    seen = json.loads(out)
    assert seen["version"] == "models:/digits/1" and not seen["drifted"] and not seen["twice_running"]
    assert seen["looks"][-1]["num_recent"] >= 60
    reference = reference_of(resolve(DIGITS), 10)
    assert seen["looks"][-1]["num_reference"] == len(reference) > 10  # kept with the run, as it was made

    code, out, err = run("drift", DIGITS, *small)
    assert code == 2 and "0 predictions of models:/digits/1 were recorded since the look of" in err

    grey = home / "grey"
    grey.mkdir()
    for i, blob in enumerate(pictures(30)):  # noise, which no digit is
        (grey / f"{i:02d}.png").write_bytes(blob)
    codes = []
    for _ in range(2):
        assert run("predict", DIGITS, str(grey), "--record", "--json")[0] == 0
        codes.append(run("drift", DIGITS, *small)[0])
    assert codes == [0, 1]  # the second of two running
    looks = read_looks(resolve(DIGITS))
    config = section("drift", DriftConfig, {})
    assert [look.drifted(config) for look in looks] == [False, True, True]


def test_the_watcher_tells_of_drift_that_is_found_twice_running(
    home: Path, run: Run, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefect_api
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr("pipelines.driftwatch.tell_drift", lambda *about: told.append(about[:-1]))
    before = len(read_looks(resolve(DIGITS)))
    quiet = watch_drift(DIGITS, {"least_recent": 20, "permutations": 199})
    assert not quiet["looked"] and "0 predictions of models:/digits/1 were recorded" in quiet["why"]
    noise = home / "noise"
    noise.mkdir()
    for i, blob in enumerate(pictures(30)):
        (noise / f"{i:02d}.png").write_bytes(blob)
    for _ in range(2):
        assert run("predict", DIGITS, str(noise), "--record", "--json")[0] == 0
        seen = watch_drift(DIGITS, {"least_recent": 20, "permutations": 199})
    assert seen["looked"] and seen["twice_running"]
    assert len(read_looks(resolve(DIGITS))) == before + 2
    model, family, dataset, text, payload = told[-1]
    assert (model, family) == ("digits", "classification") and dataset in text
    assert payload["looks"][-1]["drifted"]


def test_drift_is_looked_for_in_registered_models(home: Path, run: Run) -> None:
    code, _, err = run("drift", str(home / "pets-model"))
    assert code == 2 and "0 predictions of" in err


def test_what_serve_refuses(home: Path, run: Run) -> None:
    assert home.is_dir()
    for words, message in (
        ((DIGITS, "--port", "0"), "--port (=0) must lie in 1…65535"),
        (("models:/nobody@champion",), "no registered model 'nobody'"),
        ((DIGITS, "--set", "max_images=0"), "serve.max_images (=0)"),
    ):
        code, _, err = run("serve", *words)
        assert code == 2 and message in err


def test_the_sections_of_params_yaml_are_whole() -> None:
    for name, model in (("serve", ServeConfig), ("record", RecordConfig), ("drift", DriftConfig)):
        assert section(name, model, {}).model_fields_set == set(model.model_fields)


def test_prefect_has_a_deployment_of_it() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert "pipelines.predict:predict_folder" in {entry["entrypoint"] for entry in deployments}
