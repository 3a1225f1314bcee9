"""The family faces from a source to a report: what prediction gives is what evaluation measured, and traps are told."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data.dataset import Dataset, Split
from data.decode import decode_image
from data.ingest import ingest
from data.records import Batch
from models.faces import Embedded
from tasks import cluster, versions
from tasks.card import InitialWeights
from tasks.faceevaluate import embed_split, evaluate, fit_thresholds, look, pairs_of
from tasks.facepairs import neighbour_loss, pairs_of_people, pairs_of_two
from tasks.facepredict import FacePredictor
from tasks.facereport import Report
from tasks.faces import FaceConfig, layout, loss, require_apart
from tasks.modelfile import load_card, load_model, write_card
from tasks.pairheads import load_pair_heads, pair_logits
from tasks.search import require_trainable
from tasks.train import checked_layout, train
from tasks.verification import NOTHING, auc, even_folds, fold_accuracy, pair_distances, roc
from tasks.versions import add
from tasks.weights import normalisation_of, read_weights
from tests.datasets import DATASETS
from tests.tiny import ingest_config, tiny_config, tiny_dataset, write_people

REAL = DATASETS / "lfw_deepfunneled_c128.tar.xz"
COMPARING = {"sampling__pictures_per_person": 4, "train__batch_size": 16, "loss__margin": 0.2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("faces", tmp_path_factory.mktemp("store"))


def run(dataset: Dataset, folder: Path, executor: Any = "in_process", **changes: Any) -> Any:
    config = tiny_config("faces", **changes)
    return train("faces", config, dataset, folder=folder, key="run", digest="", executor=executor)


@pytest.fixture(scope="module")
def trained(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(drawn, folder, train__epochs=6.0)
    return folder / "model"


def evaluated(model: Path, dataset: Dataset, folder: Path, **changes: Any) -> Report:
    """The report on a model whose thresholds are fitted, written to `folder`."""
    fit_thresholds(model, dataset, batch_size=32)
    report = evaluate([model], dataset, config=tiny_config("faces", **changes).evaluate)
    report.write(folder)
    return report


def test_prediction_gives_what_evaluation_measured(drawn: Dataset, trained: Path, tmp_path: Path) -> None:
    evaluated(trained, drawn, tmp_path / "report", evaluate__views=["single", "mirror"])
    blobs = drawn.table("test", ["image"])["image"].to_pylist()
    ids = drawn.table("test", ["id"])["id"].to_pylist()
    table = FacePredictor(load_model(trained)).predict([b"no picture", *blobs])
    assert table["error"][0].as_py() and table["embedding"][0].as_py() is None
    embeddings = dict(zip(ids, np.array(table["embedding"].to_pylist()[1:]), strict=True))
    written = pq.read_table(tmp_path / "report" / "pairs.parquet").to_pydict()
    distances = [
        ((embeddings[a] - embeddings[b]) ** 2).sum()
        for a, b in zip(written["id_a"], written["id_b"], strict=True)
    ]
    np.testing.assert_allclose(distances, written["distance_single"], atol=1e-5)
    threshold = load_card(trained).thresholds["accuracy"]
    right = ((np.array(distances) <= threshold) == np.array(written["same"])).mean()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (
        metrics["accuracy"] == pytest.approx(right)
        and metrics["auc_low"] <= metrics["auc"] <= metrics["auc_high"]
    )
    assert metrics["auc"] > 0.6
    assert {file.name for file in (tmp_path / "report").glob("*.png")} == {
        "roc.png", "distances.png", "pairs.png", "open_set.png",
    }  # fmt: skip


def test_the_report_is_a_page_with_intervals_thresholds_figures_and_the_worst_pairs(
    drawn: Dataset, trained: Path, tmp_path: Path
) -> None:
    report = evaluated(trained, drawn, tmp_path)
    page, metrics = (tmp_path / "report.html").read_text(), report.metrics
    assert page.count("data:image/png;base64,") == len(list(tmp_path.glob("*.png"))) == 4
    assert f"<td>{metrics['auc_low']:.4g} to {metrics['auc_high']:.4g}</td>" in page and "auc_low" not in page
    threshold = report.thresholds["far_1e-1"]
    accepted = (report.looks[0].distances[~report.same] <= threshold).mean()
    assert f"<td>{threshold:.4g}</td><td>{accepted:.2%}</td>" in page
    assert "rests on fewer than 30 false accepts" in page
    farthest = report.shown[0]
    assert farthest.distance == report.looks[0].distances[report.same].max()
    assert f"<td>one person</td><td>{farthest.distance:.4f}</td><td>{farthest.ids[0]}</td>" in page
    rows = report.pairs().to_pylist()
    assert any((row["id_a"], row["id_b"]) == farthest.ids and row["same"] for row in rows)


def test_a_page_of_an_embedder_without_thresholds_or_recognition_says_so(
    drawn: Dataset, trained: Path, tmp_path: Path
) -> None:
    report = evaluated(trained, drawn, tmp_path)
    name = "<script>alert(1)</script>"
    bare = dataclasses.replace(report, thresholds={}, open_set=None, about={**report.about, "dataset": name})
    bare.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "None was fitted." in page and name not in page
    assert not (tmp_path / "open_set.png").exists() and "Recognition, open set" not in page


def test_evaluation_tells_recognition_and_what_the_heads_judge(
    drawn: Dataset, trained: Path, tmp_path: Path
) -> None:
    report = evaluated(trained, drawn, tmp_path, evaluate__views=["single", "mirror"])
    card = load_card(trained)
    assert card.pair_heads is not None and "of train" in card.pair_heads.fitted_on
    metrics, about = report.metrics, report.about
    num_people = sum(num > 0 for num in drawn.info.counts["test"].values())
    assert about["num_enrolled"] == num_people and about["num_enrolled_open_set"] == num_people // 2
    assert 1 / num_people < metrics["rank1_low"] <= metrics["rank1"] <= metrics["rank1_high"] <= 1
    assert metrics["rank1"] <= metrics["rank5"]
    assert metrics["dir_at_far_1e-1_low"] <= metrics["dir_at_far_1e-1"] <= metrics["rank5"]
    ids = drawn.table("test", ["id"])["id"].to_pylist()
    place = {id: i for i, id in enumerate(ids)}
    blobs = drawn.table("test", ["image"])["image"].to_pylist()
    embeddings, _errors = FacePredictor(load_model(trained)).embed(blobs)
    rows = report.pairs().to_pydict()
    places = np.array([[place[a], place[b]] for a, b in zip(rows["id_a"], rows["id_b"], strict=True)])
    for kind, head in load_pair_heads(trained, card).items():
        right = (pair_logits(head, embeddings, places) > 0) == np.array(rows["same"])
        assert metrics[f"accuracy_head_{kind}"] == pytest.approx(right.mean(), abs=0.02)
    by_view = {row["view"]: row for row in report.per_view}
    assert "rank1" in by_view["mirror"] and "accuracy_head_difference" not in by_view["mirror"]


def test_a_card_names_nobody_and_thresholds_that_pairs_do_not_support_accept_nobody(
    drawn: Dataset, trained: Path, tmp_path: Path
) -> None:
    trained = Path(shutil.copytree(trained, tmp_path / "model"))  # its card is changed here
    rates = dict.fromkeys(["accuracy", "far_1e-1", "far_1e-2", "far_1e-3"], NOTHING)
    unfitted = {"thresholds": rates, "told_by_few": (), "calibrated_on": "", "pair_heads": None}
    write_card(trained, load_card(trained).model_copy(update=unfitted))
    told = fit_thresholds(trained, drawn, batch_size=32)
    card = load_card(trained)
    assert "accuracy" in told.note and told.metrics["threshold.accuracy"] == card.thresholds["accuracy"] > 0
    assert card.classes == () and "person" not in (trained / "model.json").read_text()
    assert not any("people" in name for name in load_model(trained).members[0].state_dict())
    # six pictures of each of five people: one false accept of 360 is more than 1e-3
    assert card.thresholds["far_1e-1"] > card.thresholds["far_1e-2"] > 0
    assert card.thresholds["far_1e-3"] == NOTHING
    assert card.calibrated_on.startswith("75 pairs of one and 360 of two of the 5 validation people")
    assert card.told_by_few == ("far_1e-2",)  # by 3.6
    assert card.calibrated_on.endswith("; far_1e-2 rests on fewer than 30 false accepts")


def test_validation_people_without_pairs_leave_an_embedder_without_thresholds(
    trained: Path, tmp_path: Path
) -> None:
    trained = Path(shutil.copytree(trained, tmp_path / "model"))  # its card may be changed here
    empty = dict.fromkeys(load_card(trained).thresholds, NOTHING)
    unfitted = load_card(trained).model_copy(
        update={"thresholds": empty, "told_by_few": (), "calibrated_on": "", "pair_heads": None}
    )
    write_card(trained, unfitted)
    source = write_people(tmp_path / "people")
    lists = {side: (source / f"{side}_ids.txt").read_text().split() for side in ("train", "val")}
    (source / "val_ids.txt").write_text(lists["val"][0])
    (source / "train_ids.txt").write_text("\n".join(lists["train"] + lists["val"][1:]))
    ingest(source, name="drawn", family="faces", store=tmp_path, config=ingest_config())
    told = fit_thresholds(trained, Dataset.open(tmp_path / "drawn"), batch_size=32)
    assert told.metrics == {} and told.note.startswith("no thresholds: drawn: its val split has 15 pairs")
    assert load_card(trained) == unfitted


def test_accuracy_over_folds_comes_with_its_deviation_and_its_standard_error(
    drawn: Dataset, trained: Path
) -> None:
    predictor = FacePredictor(load_model(trained))
    table = drawn.table("test", ["id", "label"])
    pairs = pairs_of(drawn, "test", table["id"].to_pylist(), table["label"].to_numpy())
    folded = dataclasses.replace(pairs, folds=even_folds(pairs.same, 5))
    embeddings, _seconds = embed_split(predictor, drawn, "test", "single", None)
    looked = look(predictor, embeddings, "single", folded, {}, tiny_config("faces").evaluate)
    found = fold_accuracy(looked.distances, pairs.same, folded.folds)
    names = ("fold_accuracy", "fold_accuracy_sd", "fold_accuracy_se")
    assert [looked.figures[name] for name in names] == [found.mean, found.sd, found.standard_error]
    assert found.standard_error == pytest.approx(found.sd / 5**0.5)
    assert not look(
        predictor, embeddings, "single", pairs, {}, tiny_config("faces").evaluate
    ).figures.keys() & set(names)


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_training_on_comparisons_brings_people_together(drawn: Dataset, tmp_path: Path, loss: str) -> None:
    before = run(drawn, tmp_path / "before", loss__name=loss, train__epochs=0.1, optim__lr=1e-6, **COMPARING)
    after = run(drawn, tmp_path / "after", loss__name=loss, train__epochs=12.0, **COMPARING)
    assert after.metrics["val_loss"] < before.metrics["val_loss"]
    assert after.metrics["val_auc"] > before.metrics["val_auc"]
    assert {"pair_distance", "active", "collapsed"} <= after.metrics.keys()


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_distances_are_as_exact_where_networks_compute_in_bfloat16(mining: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(4)
    near = torch.nn.functional.normalize(torch.ones(16, 8) + 0.02 * torch.randn(16, 8))  # alike to two digits
    batch = Batch(torch.zeros(16, 1), labels, np.arange(16))
    config = tiny_config("faces", loss__name="triplet", loss__mining=mining, **COMPARING)

    def found() -> list[torch.Tensor]:
        embeddings = near.clone().requires_grad_()
        value, logged = loss(Finished(embeddings), batch, config)
        value.backward()
        assert embeddings.grad is not None
        return [value.detach(), *logged.values(), embeddings.grad]

    exact = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(found(), exact, strict=True))


class Finished(torch.nn.Module):
    """A network that gives these embeddings, whatever it is shown."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, _images: torch.Tensor, _labels: torch.Tensor) -> Embedded:
        return Embedded(self.embeddings)


def test_the_trivial_solution_is_told(drawn: Dataset, tmp_path: Path) -> None:
    trap = {
        "model__name": "lenet5", "model__centre": False, "loss__name": "triplet", "loss__mining": "batch_hard",
        "optim__name": "adamw", "optim__lr": 1e-2, "optim__bias_lr": 1e-2, "train__epochs": 40.0,
    }  # fmt: skip
    with pytest.raises(
        FloatingPointError, match=r"collapsed to the trivial solution by step \d+ of \d+: all emb"
    ):
        run(drawn, tmp_path / "run", **trap, **COMPARING)


def test_a_streamed_split_gives_the_same_batches_of_people(drawn: Dataset, tmp_path: Path) -> None:
    changes = {**COMPARING, "loss__name": "triplet"}
    run(drawn, tmp_path / "resident", train__data_mode="resident", **changes)
    run(drawn, tmp_path / "streamed", train__data_mode="streaming", **changes)
    mine, theirs = (
        load_model(tmp_path / name / "model").members[0].state_dict() for name in ("resident", "streamed")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_pretrained_weights_stay_where_only_the_head_is_trained(
    drawn: Dataset, trained: Path, tmp_path: Path
) -> None:
    body = load_model(trained).members[0].net.state_dict()
    file = tmp_path / "body.safetensors"
    save_file({name: value.contiguous() for name, value in body.items()}, file)
    weights = read_weights(str(file), "face_tiny", 3, lambda _name: tmp_path)
    config = tiny_config("faces", transfer__weights=str(file), transfer__mode="head")
    train(
        "faces", config, drawn, folder=tmp_path / "run", key="run", digest="", executor="in_process", weights=weights
    )  # fmt: skip
    after = load_model(tmp_path / "run" / "model").members[0].net.state_dict()
    changed = {name for name in body if not torch.equal(body[name], after[name])}
    assert changed and all(name.startswith("head.") for name in changed)
    assert normalisation_of("inception_resnet_v1", 3) == ((127.5 / 255,) * 3, (128 / 255,) * 3)
    begun = load_card(tmp_path / "run" / "model").initial_weights
    assert begun is not None and begun.trained == "head"
    wrong = tiny_config("faces", transfer__weights=str(file), model__dim=8)
    with pytest.raises(ValueError, match=r"head.linear.weight is \(16, 64\), not \(8, 64\)"):
        train(
            "faces", wrong, drawn, folder=tmp_path / "wrong", key="run", digest="", executor="in_process",
            weights=weights,
        )  # fmt: skip


@pytest.mark.parametrize("sides", [("train", "test"), ("train", "val"), ("val", "test")])
def test_people_on_two_sides_are_refused_by_training_and_evaluation(
    drawn: Dataset, trained: Path, sides: tuple[Split, Split]
) -> None:
    first, second = sides
    counts = {split: dict(found) for split, found in drawn.info.counts.items()}
    someone = next(name for name, num in counts[first].items() if num)
    counts[second][someone] = 1
    broken = Dataset(drawn.path, drawn.info.model_copy(update={"counts": counts}))
    config = tiny_config("faces")
    for use in (
        lambda: require_apart(broken),
        lambda: layout(config, broken),
        lambda: evaluate([trained], broken, config=config.evaluate),
    ):
        with pytest.raises(ValueError, match=f"1 people of {first} stand in {second} too, as '{someone}'"):
            use()


def test_people_that_the_model_saw_in_another_version_are_refused_by_evaluation(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    trained = Path(shutil.copytree(trained, tmp_path / "model"))  # its card is changed here
    source = write_people(tmp_path / "people")
    add(source, name="drawn", family="faces", config=ingest_config())
    first = versions.current("drawn")
    write_card(trained, load_card(trained).model_copy(update={"dataset_digest": first}))
    config = tiny_config("faces").evaluate
    same = evaluate([trained], versions.open_stored("drawn"), config=config)
    assert same.about["people_seen_in_training"] == "none: the model was trained on this version"
    before = load_card(trained)
    begun = InitialWeights(source="published.pt", sha256="0" * 64, trained="all")
    write_card(trained, before.model_copy(update={"initial_weights": begun}))
    told = evaluate([trained], versions.open_stored("drawn"), config=config).about["people_seen_in_training"]
    assert str(told).endswith("; not known of published.pt, which training began with")
    write_card(trained, before)
    trained_on, tested_on = (source / f"{side}_ids.txt" for side in ("train", "test"))
    moved, *others = trained_on.read_text().splitlines()
    trained_on.write_text("\n".join(others))
    tested_on.write_text(f"{tested_on.read_text().rstrip()}\n{moved}\n")
    add(source, name="drawn", family="faces", config=ingest_config(), fresh_splits=True)
    dataset = versions.open_stored("drawn")
    assert versions.current("drawn") != first
    with pytest.raises(
        ValueError, match=f"1 people of the test split of drawn, as '{moved}', stand on another side in"
    ):
        evaluate([trained], dataset, config=config)
    elsewhere = Dataset(dataset.path, dataset.info.model_copy(update={"name": "others"}))
    told = evaluate([trained], elsewhere, config=config).about["people_seen_in_training"]
    assert str(told).startswith("1 by their names, of the people of drawn")
    write_card(trained, load_card(trained).model_copy(update={"dataset_digest": "0" * 32 + ".dir"}))
    told = evaluate([trained], dataset, config=config).about["people_seen_in_training"]
    assert "not known" in str(told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__name": "triplet"}, "pictures_per_person .=0. must be at least 2 for loss.name=triplet"),
        (
            {"sampling__pictures_per_person": 3},
            "batch_size .=8. must be divisible by pictures_per_person .=3.",
        ),
        ({"loss__name": "triplet", "sampling__pictures_per_person": 8}, "two people or more"),
        ({"augment__mixup_alpha": 0.2}, "nobody is half a person"),
        ({"model__name": "inception_resnet_v1"}, "crop_px .=32. must be at least 75"),
        ({"train__growth": [[16, 0.5]]}, "growth must be"),
        ({"optim__label_smoothing": 0.1}, "label_smoothing 0"),
        ({"transfer__mode": "head"}, "give transfer.weights"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config("faces", **changes)


def test_a_worker_may_have_one_person_since_those_of_all_meet() -> None:
    pairs = {"loss__name": "triplet", "sampling__pictures_per_person": 4}
    assert tiny_config("faces", train__num_workers=2, **pairs).train.batch_size == 8
    with pytest.raises(
        ValueError, match=r"each part of accumulate_batches .=2. must have two people or more"
    ):
        tiny_config("faces", train__accumulate_batches=2, **pairs)


def test_batches_of_people_need_no_fixed_number_of_workers_but_their_parts_do(drawn: Dataset) -> None:
    elastic = {
        "sampling__pictures_per_person": 4, "train__batch_size": 16, "train__num_workers": 2, "train__min_workers": 1,
    }  # fmt: skip
    found = checked_layout("faces", tiny_config("faces", **elastic), drawn, None, None)
    assert found.people is not None
    parted = tiny_config("faces", train__accumulate_batches=2, **elastic)
    with pytest.raises(
        ValueError, match=r"min_workers .=1. must be 0 with .* people meet in a part of a batch"
    ):
        checked_layout("faces", parted, drawn, None, None)


def test_how_batches_are_drawn_is_not_searched(drawn: Dataset) -> None:
    config = tiny_config("faces", **COMPARING)
    space: Any = {"sampling.pictures_per_person": [2, 4]}
    with pytest.raises(ValueError, match=r"sampling\.pictures_per_person: how batches are drawn"):
        require_trainable("faces", config, space, drawn)


def test_pairs_are_all_of_one_person_and_as_many_of_two() -> None:
    labels = np.array([4, 4, 1, 4, 2, 1, 7])
    pairs, same = pairs_of_people(labels, 100)
    assert {tuple(sorted(pair)) for pair in pairs[same].tolist()} == {(0, 1), (0, 3), (1, 3), (2, 5)}
    others = {tuple(pair) for pair in pairs[~same].tolist()}
    assert len(others) == int((~same).sum()) == 4 and all(labels[a] != labels[b] for a, b in others)
    few, same = pairs_of_people(np.repeat(np.arange(30), 9), 50)
    assert same.sum() == (~same).sum() == 50 and len({tuple(pair) for pair in few.tolist()}) == 100


def test_pairs_of_two_are_all_that_there_are_up_to_a_number() -> None:
    labels = np.array([4, 4, 1, 4, 2, 1, 7])
    every = {(a, b) for a in range(7) for b in range(a + 1, 7) if labels[a] != labels[b]}
    pairs = pairs_of_two(labels, 100)
    assert len(pairs) == len(every) and {tuple(pair) for pair in pairs.tolist()} == every
    for people in (4, 300):  # few of them are drawn, and many
        labels = np.repeat(np.arange(people), 3)
        some = pairs_of_two(labels, 40, seed=1)
        assert some.tolist() == pairs_of_two(labels, 40, seed=1).tolist() != pairs_of_two(labels, 40).tolist()
        assert len({tuple(pair) for pair in some.tolist()}) == 40
        assert (labels[some[:, 0]] != labels[some[:, 1]]).all() and (some[:, 0] < some[:, 1]).all()


def test_the_neighbour_loss_is_that_of_loops() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64)).numpy()
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4])
    losses = []
    for i in range(9):
        weights = {j: np.exp(16 * float(embeddings[i] @ embeddings[j])) for j in range(9) if j != i}
        own = sum(weight for j, weight in weights.items() if labels[j] == labels[i])
        if own:
            losses.append(-np.log(own / sum(weights.values())))
    assert len(losses) == 7 and neighbour_loss(embeddings, labels) == pytest.approx(np.mean(losses))


@pytest.fixture
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


@pytest.mark.slow
def test_two_workers_train_on_people_of_their_own(
    drawn: Dataset,
    tmp_path: Path,
    embedded_ray: None,  # noqa: ARG001
) -> None:
    changes = {**COMPARING, "loss__name": "triplet", "train__epochs": 12.0, "train__batch_size": 32}
    two = run(drawn, tmp_path / "two", "ray", train__num_workers=2, **changes)
    assert two.num_steps == 12 * (150 // 32)
    # each batch had pairs of both kinds
    assert two.metrics["val_auc"] > 0.6 and 0 < two.metrics["active"] < 1


@pytest.mark.slow
def test_two_workers_learn_what_one_does(
    drawn: Dataset,
    tmp_path: Path,
    embedded_ray: None,  # noqa: ARG001
) -> None:
    """By a network without norms, and pairs that are drawn: the same pairs, for both workers have the first's dice."""
    changes = {
        **COMPARING, "model__name": "lenet5", "model__centre": False, "loss__name": "contrastive", "loss__margin": 1.0,
        "train__batch_size": 32, "train__epochs": 2.0,
    }  # fmt: skip
    run(
        drawn,
        tmp_path / "begun",
        **{**changes, "train__epochs": 0.1, "optim__lr": 1e-9, "optim__bias_lr": 1e-9},
    )
    run(drawn, tmp_path / "one", **changes)
    run(drawn, tmp_path / "two", "ray", train__num_workers=2, **changes)
    begun, one, two = (weights_of(tmp_path / name / "model") for name in ("begun", "one", "two"))
    moved, apart = float((one - begun).norm()), float((one - two).norm())
    assert moved > 0.01 and apart < 0.01 * moved


def weights_of(model: Path) -> torch.Tensor:
    """All of a saved model, one after the other."""
    return torch.cat([each.flatten() for each in load_model(model).members[0].state_dict().values()])


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there")
@pytest.mark.slow
def test_real_faces_are_learnt(tmp_path: Path) -> None:
    ingest(REAL, name="lfw", family="faces", store=tmp_path, config=ingest_config())
    dataset = Dataset.open(tmp_path / "lfw")
    config: FaceConfig = tiny_config(
        "faces", input__stored_px=64, input__crop_px=56, input__pad_px=0, model__dim=64, loss__name="triplet",
        loss__margin=0.2, sampling__pictures_per_person=4, optim__lr=0.05, optim__bias_lr=0.05,
        optim__clip_norm=5.0, train__batch_size=64, train__epochs=5.0,
    )  # fmt: skip
    train("faces", config, dataset, folder=tmp_path / "run", key="run", digest="", executor="in_process")
    model = tmp_path / "run" / "model"
    fit_thresholds(model, dataset, batch_size=256)
    report = evaluate([model], dataset, config=config.evaluate)
    metrics, pixels = report.metrics, auc_of_pixels(dataset)
    print(metrics, pixels)  # noqa: T201
    assert report.about["pairs"] == "the dataset's list" and report.about["num_pairs"] == 1000
    # people that it never saw are told apart better than by what the network is shown, and not by chance
    assert metrics["auc"] > 0.7 and metrics["auc_low"] > pixels > 0.5
    assert (
        metrics["accuracy"] > 0.627
    )  # of raw pixels, at the threshold that is the best for these very pairs
    assert metrics["rank1_low"] > 5 / report.about["num_enrolled"]  # by chance 1
    # what is stated of 106 people holds for others, about
    assert 0.03 < metrics["accepted_at_far_1e-1"] < 0.2
    assert metrics["recognised_at_far_1e-1"] > 2 * metrics["accepted_at_far_1e-1"]


def auc_of_pixels(dataset: Dataset) -> float:
    """Of the test pairs, by grey levels less their mean, of the part of a picture that the network above sees."""
    table = dataset.table("test", ["id", "label", "image"])
    pairs = pairs_of(dataset, "test", table["id"].to_pylist(), table["label"].to_numpy())
    faces = (
        decode_image(blob, channels=1).resize((48, 48), box=(8, 8, 120, 120))
        for blob in table["image"].to_pylist()
    )
    rows = np.stack([np.asarray(face, np.float64).ravel() for face in faces])
    rows -= rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return auc(roc(pair_distances(rows, pairs.places), pairs.same))
