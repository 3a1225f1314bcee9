"""Every family trains, goes on after a stop, and validates on a GPU as on a CPU."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from models.classification import ARCHITECTURES, arguments_of, build, least_px
from models.sides import WithSides
from tasks import evaluate as classes
from tasks.families import FAMILIES
from tasks.loop import Progress
from tasks.modelfile import load_model
from tasks.predict import Predictor, load_predictor
from tasks.settings import EvaluateConfig, ViewName
from tasks.slidingwindow import Way, WindowScorer
from tasks.stopping import Interrupted
from tasks.stylizerevaluate import evaluate
from tasks.train import train
from tasks.views import VIEWS
from tests.handmade import write_dataset, write_model
from tests.test_families import first_batch
from tests.tiny import tiny_config, tiny_dataset, tiny_weights

pytestmark = pytest.mark.gpu
ON_GPU: dict[str, Any] = {"train__gpus_per_worker": 1.0, "train__precision": "auto"}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("store")
    return {family: tiny_dataset(family, store) for family in FAMILIES}


def run(family: str, dataset: Dataset, folder: Path, stop_at: int = 0, **changes: Any) -> list[Progress]:
    """Train on the GPU; what the run told of itself. Stops after a step where one is given."""
    heard: list[Progress] = []
    config = tiny_config(family, **{**ON_GPU, **changes})
    train(
        family, config, dataset, folder=folder, key="gpu", digest="d" * 32, executor="in_process",
        on_progress=heard.append, stopping=lambda: bool(stop_at), weights=tiny_weights(family, config),
    )  # fmt: skip
    return heard


@families
def test_a_family_learns_on_the_gpu(family: str, datasets: dict[str, Dataset], tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    heard = run(family, datasets[family], tmp_path / "run", train__epochs=4.0)
    assert all(math.isfinite(value) for progress in heard for value in progress.metrics.values())
    assert torch.cuda.max_memory_allocated() > 0
    [member] = load_model(tmp_path / "run" / "model").members
    assert all(value.isfinite().all() for value in member.state_dict().values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_of_every_classifier_gets_a_gradient_on_the_gpu(name: str) -> None:
    torch.manual_seed(0)
    px = max(least_px(name), 32)
    model = build(name, 4, 3, arguments_of(name, px), (0.5,) * 3, (0.25,) * 3).cuda().train()
    images = torch.randint(0, 256, (4, 3, px, px), dtype=torch.uint8, device="cuda")
    output = model(images)
    logits, sides = (output.logits, output.sides) if isinstance(output, WithSides) else (output, ())
    sum(each.square().mean() for each in (logits, *sides)).backward()
    lacking = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not lacking


@families
def test_a_run_that_was_stopped_goes_on(family: str, datasets: dict[str, Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted) as stopped:
        run(family, datasets[family], folder, stop_at=1, train__epochs=4.0)
    heard = run(family, datasets[family], folder, train__epochs=4.0)
    assert heard[0].step > stopped.value.step
    assert (folder / "result.json").is_file()


@pytest.mark.parametrize("name", ["localiser", "fast_rcnn", "faster_rcnn"])
def test_detectors_learn_on_the_gpu(name: str, datasets: dict[str, Dataset], tmp_path: Path) -> None:
    bodies = {"localiser": {}}.get(name, {"model__body": "resnet18"})
    heard = run("detection", datasets["detection"], tmp_path / "run", model__name=name, **bodies)
    assert math.isfinite(heard[-1].metrics["loss"])


@families
def test_validation_on_the_gpu_finds_what_it_finds_on_the_cpu(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    run(family, datasets[family], tmp_path / "run", train__precision="fp32")
    config, entry = tiny_config(family), FAMILIES[family]
    _entry, _model, batch = first_batch(family, datasets[family], config)
    found = []
    for device in (torch.device("cuda"), torch.device("cpu")):
        [member] = load_model(tmp_path / "run" / "model").members
        with torch.inference_mode():
            found.append(entry.validate(member.to(device).eval(), [batch.to(device)], config))
    on_gpu, on_cpu = found
    assert on_gpu == pytest.approx(on_cpu, abs=0.02, nan_ok=True)


@pytest.mark.parametrize("way", ["convolutional", "crops"])
def test_windows_have_the_probabilities_that_they_have_on_the_cpu(way: Way, tmp_path: Path) -> None:
    """cuDNN's own float32 has ten bits of mantissa: they would differ in the third decimal."""
    shape: dict[str, Any] = {"architecture": "resnet8_cifar", "channels": 3, "stored_px": 32, "crop_px": 32}
    folder = write_model(tmp_path / "model", ("a", "b"), **shape, pad_px=0, sharpness=4.0)
    picture = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    on_gpu, on_cpu = (
        WindowScorer(Predictor(load_model(folder), torch.device(name)), way)(picture)
        for name in ("cuda", "cpu")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-5)


def test_a_stylizer_and_the_optimisation_are_tested_on_the_gpu_as_on_the_cpu(
    datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    run("style", datasets["style"], tmp_path / "run", train__precision="fp32")
    config = tiny_config("style").evaluate
    on_gpu, on_cpu = (
        evaluate(
            [tmp_path / "run" / "model"], datasets["style"], config=config, device=torch.device(name),
            precision="fp32",
        )
        for name in ("cuda", "cpu")
    )  # fmt: skip
    for name in ("total", "content", "style", "untouched"):
        assert on_gpu.metrics[name] == pytest.approx(on_cpu.metrics[name], rel=1e-2)
    [compared] = on_gpu.compared
    assert compared.optimised < compared.trace[0][1]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_predicts_on_the_gpu_what_it_predicts_on_the_cpu(view: ViewName, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", ["a", "b", "c"], channels=3, stored_px=16, crop_px=12, pad_px=2)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    on_gpu, on_cpu = (
        load_predictor(folder, torch.device(name)).uncalibrated(images, view) for name in ("cuda", "cpu")
    )
    assert on_gpu.device.type == "cpu"
    assert torch.allclose(on_gpu, on_cpu, atol=1e-4)


def test_an_ensemble_is_evaluated_on_the_gpu_as_on_the_cpu_and_its_memory_is_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(40)]
    dataset = write_dataset(
        tmp_path / "noise", pictures, [i % 3 for i in range(40)], ["a", "b", "c"], num_val=10
    )
    folders = [write_model(tmp_path / str(seed), ["a", "b", "c"], seed=seed) for seed in (1, 2)]
    config = EvaluateConfig(views=("single", "ten_crop"), registered_view="single", batch_size=8, num_worst=2)
    on_gpu, on_cpu = (
        classes.evaluate(folders, dataset, config=config, device=torch.device(name))
        for name in ("cuda", "cpu")
    )
    np.testing.assert_allclose(on_gpu.probabilities, on_cpu.probabilities, atol=1e-3)
    assert "on the GPU" in str(on_gpu.about["memory_mb"]) and on_gpu.metrics["memory_mb"] > 0
    assert all(row.memory_mb > 0 for row in on_gpu.comparison.rows())
