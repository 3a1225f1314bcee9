"""What asks Ray for a GPU, or explains a registered model on one; tests/test_gpu.py needs no engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray")
pytest.importorskip("mlflow")

from data.dataset import Dataset
from tasks import attribution, classification, cluster, unitviews
from tasks.attribution import Method
from tasks.curvedata import everywhere, here
from tasks.loop import Progress
from tasks.modelfile import load_model, save_model
from tasks.subject import Subject, open_subject
from tasks.train import train
from tests.test_models_synthesis import config as synthesis
from tests.tiny import tiny_config, tiny_dataset

pytestmark = pytest.mark.gpu
LAYERS = ("features.3", "classifier.4")


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("classification", tmp_path_factory.mktemp("store"))


def trained(dataset: Dataset, folder: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The weights of a run by Ray Train, and by how many bytes other processes' share of the GPU grew in it."""
    free: list[int] = []

    def look(_progress: Progress) -> None:
        free.append(torch.cuda.mem_get_info()[0])

    before = torch.cuda.mem_get_info()[0]
    config = tiny_config("classification", train__precision="fp32", train__epochs=4.0, **changes)
    train(
        "classification",
        config,
        dataset,
        folder=folder,
        key="gpu",
        digest="",
        executor="ray",
        on_progress=look,
    )
    [member] = load_model(folder / "model").members
    return member.state_dict(), before - min(free)


@pytest.mark.parametrize(
    ("num_workers", "gpus", "own"),
    [
        (1, 1.0, {}),
        (2, 0.5, {}),
        (1, 1.0, {"train__data_mode": "streaming", "train__augment_workers": 2}),
    ],
    ids=["a whole GPU", "two share one", "streaming"],
)
def test_workers_of_ray_train_on_a_gpu_what_they_train_on_cpus(
    num_workers: int, gpus: float, own: dict[str, Any], digits: Dataset, tmp_path: Path
) -> None:
    own = {**own, "train__num_workers": num_workers}
    on_cpu, untouched = trained(digits, tmp_path / "cpu", **own)
    on_gpu, taken = trained(digits, tmp_path / "gpu", train__gpus_per_worker=gpus, **own)
    assert taken > 100e6 > untouched  # a process's CUDA context alone is larger
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], value, rtol=0, atol=0.02)


def test_more_gpus_than_there_are_is_refused_with_what_there_is(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GPUs"):
        trained(digits, tmp_path / "run", train__gpus_per_worker=float(torch.cuda.device_count() + 1))


@pytest.fixture
def subjects(digits: Dataset, tmp_path: Path) -> dict[str, Subject]:
    """One network twice, for a GPU and for the CPU: explaining moves it."""
    torch.manual_seed(0)
    config = tiny_config("classification", model__name="lenet5")
    model = classification.build_model(config, digits.info, sample=list)
    save_model(tmp_path / "model", classification.card(config, digits.info, "", "r"), [model])
    return {name: open_subject(str(tmp_path / "model")) for name in ("cuda", "cpu")}


def computing_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attribution, unitviews):
        monkeypatch.setattr(module, "default_device", lambda: torch.device(name))


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_a_prediction_is_explained_on_a_gpu_as_on_the_cpu(
    method: Method, digits: Dataset, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = digits.table("test", ["image"])["image"].to_pylist()[:8]
    found = {}
    for name, subject in subjects.items():
        computing_on(name, monkeypatch)
        found[name] = attribution.attribute(subject, list("abcdefgh"), blobs, method=method, layer=None)
    for on_gpu, on_cpu in zip(found["cuda"], found["cpu"], strict=True):
        assert on_gpu.label == on_cpu.label
        np.testing.assert_allclose(on_gpu.heat, on_cpu.heat, atol=1e-3)
    assert any(each.heat.any() for each in found["cpu"])


def test_a_unit_is_synthesised_on_a_gpu_after_its_patches_were_looked_for(
    digits: Dataset, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this order: a network that the pass had moved in inference mode would have no gradients any more."""
    pictures = {}
    for name, subject in subjects.items():
        computing_on(name, monkeypatch)
        fields = {layer: subject.fields()[layer] for layer in LAYERS}
        unitviews.look_at_split(
            digits, "test", [subject], [fields], here(), tmp_path / f"{name}.pt", lambda *_: None
        )
        pictures[name] = unitviews.synthesise(subject, fields[LAYERS[1]], [0, 1], synthesis())
    difference = np.abs(pictures["cuda"].astype(int) - pictures["cpu"].astype(int))
    assert difference.mean() < 8 and pictures["cpu"].std() > 1


def test_units_are_looked_at_by_calls_that_have_a_gpu(
    digits: Dataset, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computing_on("cpu", monkeypatch)  # of this process: a call of Ray's is another one
    found = []
    for name, where in (("cuda", everywhere()), ("cpu", here())):
        assert where.gpus == (name == "cuda")
        subject = subjects[name]
        fields = {layer: subject.fields()[layer] for layer in LAYERS}
        seen = unitviews.look_at_split(
            digits, "test", [subject], [fields], where, tmp_path / f"{name}.pt", lambda *_: None
        )
        found.append(seen.tops[0][LAYERS[0]].values)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
