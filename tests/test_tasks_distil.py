"""Distillation: the loss, what the teacher is shown, and that a run and its teacher stay together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data.classification import Batch
from data.dataset import Dataset
from data.random import SampleGenerator
from models.classification import build
from tasks import cluster
from tasks.classification import batch, loss, records
from tasks.distil import Teacher, TeacherNetwork, divergence
from tasks.ensemble import combine
from tasks.loop import Progress
from tasks.modelfile import load_card
from tasks.train import train
from tasks.weights import read_teacher
from tests.handmade import write_model
from tests.test_families import assert_equal_weights
from tests.tiny import tiny_config, tiny_dataset

FAMILY = "classification"
LOGITS = st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


def teacher_of(folder: Path, digits: Dataset, seed: int = 0, **changes: Any) -> Teacher:
    """A model with random weights as a teacher, of the size of the tiny recipe."""
    size = {"stored_px": 16, "crop_px": 16, **changes}
    write_model(folder, digits.info.classes, seed=seed, sharpness=5, **size)
    return read_teacher(str(folder), Path)


def config_of(teacher: Teacher | None, **changes: Any) -> Any:
    return tiny_config(FAMILY, distil__teacher=teacher.source if teacher else "", **changes)


def run(
    digits: Dataset, folder: Path, teacher: Teacher | None, executor: Any = "in_process", **options: Any
) -> Path:
    on_progress = options.pop("on_progress", None)
    train(
        FAMILY, config_of(teacher, **options), digits, folder=folder, key="k", digest="", executor=executor,
        teacher=teacher, on_progress=on_progress,
    )  # fmt: skip
    return folder


def by_hand(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """T² Σ p (log p - log q) / B in float64."""
    q = (logits.double() / temperature).softmax(1)
    p = targets.double()
    return temperature**2 * torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(1).mean().item()


@given(LOGITS, LOGITS, st.floats(0.5, 10))
def test_the_divergence_is_hintons_and_never_negative(own: Any, other: Any, temperature: float) -> None:
    num = min(len(own), len(other))
    logits, targets = torch.tensor(own[:num]), (torch.tensor(other[:num]) / temperature).softmax(1)
    value = divergence(logits, targets, temperature).item()
    assert value == pytest.approx(by_hand(logits, targets, temperature), rel=1e-3, abs=1e-3)
    assert value > -1e-3


def test_a_student_that_agrees_has_no_divergence_and_no_gradient() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    value = divergence(logits, (logits.detach() / 3).softmax(1), 3.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-5


def test_at_a_high_temperature_the_gradient_is_that_of_matching_logits() -> None:
    """Hinton et al. 2015, equation 4: with centred logits it is (z - v) / K for each sample, here of the mean."""
    z, v = torch.randn(8, 5).double(), torch.randn(8, 5).double()
    z, v = (z - z.mean(1, keepdim=True)).requires_grad_(), v - v.mean(1, keepdim=True)
    T = 2000.0
    (T**2 * F.kl_div((z / T).log_softmax(1), (v / T).softmax(1), reduction="batchmean")).backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, (z.detach() - v) / 5 / 8, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_both(weight: float) -> None:
    config = tiny_config(FAMILY, distil__weight=weight, distil__temperature=2.0)
    torch.manual_seed(0)
    student = build("lenet5", 10, 1, {"input_px": 16}, (0.5,), (0.25,))
    networks = [build("lenet5", 10, 1, {"input_px": 16}, (0.3,), (0.5,)) for _ in range(2)]
    teacher = TeacherNetwork([*networks], 2.0)
    images = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8)
    labels = torch.arange(12) % 10
    value, logged = loss(student, Batch(images, labels, labels.numpy()), config, teacher=teacher)
    logits = student(images)
    soft = torch.stack([(network(images) / 2).softmax(1) for network in networks]).mean(0)
    wanted = weight * by_hand(logits, soft, 2.0) + (1 - weight) * F.cross_entropy(logits, labels).item()
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert set(logged) == {"loss", "accuracy", "from_teacher"}


def test_the_teacher_sees_the_crop_that_the_student_sees_and_is_not_trained() -> None:
    seen: list[Tensor] = []

    def watching(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.full((len(images), 10), 0.1)

    student = build("lenet5", 10, 1, {"input_px": 16}, (0.5,), (0.25,))
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    loss(student, Batch(images, labels, labels.numpy()), tiny_config(FAMILY), teacher=watching)
    assert seen[0] is images
    network = TeacherNetwork([build("lenet5", 10, 1, {"input_px": 16}, (0.5,), (0.25,))], 2.0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(images).requires_grad and not network.training


def test_a_teacher_changes_what_is_learned_and_the_model_says_so(digits: Dataset, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits)
    alone = run(digits, tmp_path / "alone", None)
    taught = run(digits, tmp_path / "taught", teacher)
    with pytest.raises(AssertionError):
        assert_equal_weights(alone, taught)
    by = load_card(taught / "model").taught_by
    assert by is not None and (by.source, by.sha256) == (str(tmp_path / "teacher"), teacher.sha256)
    assert load_card(alone / "model").taught_by is None
    without = run(digits, tmp_path / "without", teacher, distil__weight=0.0)
    assert_equal_weights(alone, without)


def test_an_ensemble_teaches_too(digits: Dataset, tmp_path: Path) -> None:
    teacher_of(tmp_path / "a", digits, seed=1)
    teacher_of(tmp_path / "b", digits, seed=2)
    combine([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    both = read_teacher(str(tmp_path / "both"), Path)
    assert len(both.states) == 2
    run(digits, tmp_path / "run", both)


def test_interrupted_and_resumed_equals_uninterrupted(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits)
    changes = {"train__epochs": 2.0, "train__checkpoint_every_steps": 4}
    straight = run(digits, tmp_path / "straight", teacher, **changes)

    class Stop(Exception):
        pass

    def stop(_progress: Progress) -> None:
        if any((tmp_path / "cut" / "checkpoints").glob("step-*")):
            raise Stop

    monkeypatch.setattr("tasks.loop.PROGRESS_EVERY_S", 0.0)
    with pytest.raises(Stop):
        run(digits, tmp_path / "cut", teacher, **changes, on_progress=stop)
    assert not (tmp_path / "cut" / "result.json").exists()
    run(digits, tmp_path / "cut", teacher, **changes)
    assert_equal_weights(tmp_path / "cut", straight)


def test_another_teacher_under_the_same_name_is_refused_when_a_run_goes_on(
    digits: Dataset, tmp_path: Path
) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits)

    class Stop(Exception):
        pass

    def stop(_progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(digits, tmp_path / "run", teacher, on_progress=stop)
    other = teacher_of(tmp_path / "teacher", digits, seed=9)
    assert other.sha256 != teacher.sha256
    with pytest.raises(
        ValueError, match=f"run began with teacher of digest {teacher.sha256}, and now it is {other.sha256}"
    ):
        run(digits, tmp_path / "run", other)
    run(digits, tmp_path / "run", teacher)


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_student(digits: Dataset, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits)
    cluster.connect()
    try:
        on_ray = run(digits, tmp_path / "ray", teacher, "ray")
    finally:
        cluster.disconnect()
    assert_equal_weights(on_ray, run(digits, tmp_path / "here", teacher))


def test_a_teacher_of_other_crops_is_refused_naming_both(digits: Dataset, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits, stored_px=20, crop_px=20)
    with pytest.raises(
        ValueError, match=r"takes 1×20×20 and this run's crops are 1×16×16: set input.crop_px=20"
    ):
        run(digits, tmp_path / "run", teacher)


def test_a_teacher_of_other_classes_is_refused(digits: Dataset, tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", ["ants", "bees"], stored_px=16, crop_px=16)
    teacher = read_teacher(str(tmp_path / "teacher"), Path)
    with pytest.raises(ValueError, match=r"2 classes \(ants, bees\) and 'digits' has 10 .*in the same order"):
        run(digits, tmp_path / "run", teacher)


def test_a_teacher_that_does_not_take_shrunk_pictures_is_refused(digits: Dataset, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits, architecture="lenet5")
    with pytest.raises(
        ValueError, match=r"a lenet5, which does not take pictures of 12 px .*train.growth=\[\]"
    ):
        run(digits, tmp_path / "run", teacher, model__name="resnet8_cifar", train__growth=[[12, 0.5]])


def test_a_teacher_that_was_not_read_is_an_error(digits: Dataset, tmp_path: Path) -> None:
    config = tiny_config(FAMILY, distil__teacher="models:/x@champion")
    with pytest.raises(ValueError, match=r"distil.teacher \(=models:/x@champion\) was not read"):
        train(FAMILY, config, digits, folder=tmp_path, key="k", digest="", executor="in_process")


def test_mixed_pictures_are_taught_as_they_are_seen(digits: Dataset) -> None:
    """The soft targets are those of the mixed picture, while the labels' part is of both that were mixed."""
    config = tiny_config(FAMILY, distil__weight=0.5, distil__temperature=2.0, augment__mixup_alpha=1.0)
    torch.manual_seed(0)
    student, network = (build("lenet5", 10, 1, {"input_px": 16}, (0.5,), (0.25,)) for _ in range(2))
    images, labels = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8), torch.arange(12) % 10
    samples = records({"images": images, "labels": labels})
    mixed = batch(samples, np.arange(12), digits.info, config, SampleGenerator(0, 0))
    assert mixed.partner_labels is not None and mixed.weights is not None
    value, _logged = loss(student, mixed, config, teacher=TeacherNetwork([network], 2.0))
    logits, soft = student(mixed.images), (network(mixed.images) / 2).softmax(1)
    own, partners = (
        F.cross_entropy(logits, of, reduction="none") for of in (mixed.labels, mixed.partner_labels)
    )
    of_labels = (mixed.weights * own + (1 - mixed.weights) * partners).mean().item()
    assert value.item() == pytest.approx((by_hand(logits, soft, 2.0) + of_labels) / 2, rel=1e-5)


def test_features_leave_no_pictures_to_teach_on() -> None:
    plain = {"augment__random_crop": False, "augment__cutout_px": 0, "augment__colour_shift": 0}
    with pytest.raises(ValueError, match=r"leaves no pictures to show to distil\.teacher"):
        tiny_config(
            FAMILY, transfer__weights="w.pth", transfer__mode="head", transfer__cache_features=True,
            distil__teacher="models:/x@champion", **plain,
        )  # fmt: skip
