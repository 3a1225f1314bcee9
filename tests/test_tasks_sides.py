"""Side branches: trained, kept in checkpoints, and left out of the model that is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from data.dataset import Dataset
from models.classification import ARCHITECTURES, WITH_SIDES, Classifier, build, without_sides
from models.sides import MODULES, is_side
from models.stages import parameters_of, stages_of
from tasks import transfer
from tasks.modelfile import load_card, load_model
from tasks.train import LocalSession, train
from tasks.weights import of_model
from tests.tiny import tiny_config, tiny_dataset

FAMILY, NET = "classification", "googlenet"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


def run(dataset: Dataset, folder: Path) -> Any:
    changes: dict[str, Any] = {"train__epochs": 0.2, "train__checkpoint_every_steps": 2}  # four steps
    config = tiny_config(FAMILY, model__name=NET, **changes)
    return train(FAMILY, config, dataset, folder=folder, key="k", digest="", executor="in_process")


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("googlenet")
    run(digits, folder)
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    newest = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(newest, weights_only=True)


def whole(folder: Path, num_classes: int = 10) -> Classifier:
    """The network as it was trained, side branches and all."""
    model = build(NET, num_classes, 1, {}, (0.0,), (0.0,))
    model.load_state_dict(checkpoint(folder)["average"], strict=True)
    return model.eval()


def test_the_networks_with_side_branches_are_those_that_are_listed() -> None:
    with torch.device("meta"):
        names = {name for name, net in ARCHITECTURES.items() if any_side(net(num_classes=2, channels=3))}
    assert names == set(WITH_SIDES)


def any_side(net: torch.nn.Module) -> bool:
    return any(is_side(name) for name in net.state_dict())


@pytest.mark.parametrize("name", WITH_SIDES)
def test_without_its_side_branches_a_network_is_the_one_built_without_them(name: str) -> None:
    with torch.device("meta"):
        full, bare = (build(name, 10, 3, {"sides": sides}, (0.5,) * 3, (0.5,) * 3) for sides in (True, False))
    left = without_sides(full.state_dict())
    assert list(left) == list(bare.state_dict())
    assert len(left) < len(full.state_dict())


def test_a_saved_model_predicts_as_the_trained_one_and_is_smaller(trained: Path) -> None:
    full, [saved] = whole(trained), load_model(trained / "model").members
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(saved(images), full(images))
    tensors = {name: value.contiguous() for name, value in full.state_dict().items()}
    size = (trained / "model" / "member-0.safetensors").stat().st_size
    assert size < 0.7 * len(save(tensors))
    assert not any(
        module in name for name in load_file(trained / "model/member-0.safetensors") for module in MODULES
    )
    assert load_card(trained / "model").members[0].arguments == {"sides": False}


def test_a_run_with_side_branches_resumes_from_a_checkpoint_that_has_them(
    digits: Dataset, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = LocalSession.save

    def save_then_stop(session: LocalSession, state: dict[str, Any], step: int) -> None:
        kept(session, state, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalSession, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path)
    monkeypatch.undo()
    assert any(is_side(name.removeprefix("net.")) for name in checkpoint(tmp_path)["model"])
    assert run(digits, tmp_path).resumed_from_step == 2
    one, two = (load_file(folder / "model/member-0.safetensors") for folder in (trained, tmp_path))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_saved_model_is_trained_on_with_fresh_side_branches(digits: Dataset, trained: Path) -> None:
    weights = of_model("key", trained / "model", NET)
    torch.manual_seed(3)
    model = build(NET, 10, 1, {}, (0.0,), (1.0,))
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    transfer.load(model, weights, digits.info.classes)
    after = model.net.state_dict()
    assert torch.equal(after["fc.weight"], weights.state["fc.weight"])
    sides = {name for name in after if is_side(name)}
    assert sides and sides < parameters_of(model.net, stages_of(model.net)[-1:])
    assert all(torch.equal(after[name], before[name]) for name in sides)
    assert all(torch.equal(after[name], weights.state[name]) for name in set(after) - sides)
