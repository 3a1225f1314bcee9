"""`./convoy compare` over runs that MLflow has a record of."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import tasks.compare
from data.dataset import Dataset
from pipelines import commands_compare
from tasks import registry
from tasks.compare import without_zero
from tasks.evaluate import evaluate
from tasks.paths import store
from tasks.runrecords import EARLY_TAG, MEMBERS_TAG, PARENT_TAG, Predictions, RunRecord, read_predictions
from tasks.settings import EvaluateConfig
from tests.conftest import Run
from tests.handmade import write_dataset, write_model
from tests.tiny import tiny_dataset

CLASSES = [str(digit) for digit in range(10)]
CONFIG = EvaluateConfig.parse(
    {"views": ["single"], "registered_view": "single", "batch_size": 64, "num_worst": 2}, "evaluate"
)
Tested = Callable[..., str]
pytestmark = pytest.mark.usefixtures("module_home")


def write_digits(folder: Path, num: int = 60) -> Dataset:
    source = load_digits()
    pictures = [(picture * 15).astype(np.uint8) for picture in source.images[:num]]
    return write_dataset(folder, pictures, source.target[:num].tolist(), CLASSES)


@pytest.fixture(scope="module")
def tested(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Tested:
    """Makes the record of a run, tested with a random network; returns its key."""

    def record(
        key: str, seed: int, lr: float, num: int = 60, data: str = "digits", commit: str = "c", seeds: str = "",
        tags: dict[str, str] | None = None,
    ) -> str:  # fmt: skip
        folder = tmp_path_factory.mktemp("run")
        dataset = write_digits(folder / "store" / data, num)
        run_id = registry.start_run(
            key=key, experiment="convoy/classification", name=key,
            tags={"git.commit": commit, "dvc.digest": "d", **(tags or {})},
            parameters={"dataset": data, "model.name": "resnet8_cifar", "train.seed": seeds or seed, "optim.lr": lr},
            dataset=dataset, digest="d",
        )  # fmt: skip
        model = write_model(folder / "model", CLASSES, seed=seed + int(1000 * lr), sharpness=30)
        report = evaluate([model], dataset, config=CONFIG, device=torch.device("cpu"))
        report.write(folder / "evaluation")
        registry.log_metrics(run_id, {f"test.{name}": value for name, value in report.metrics.items()})
        registry.log_folder(run_id, folder / "evaluation", "evaluation")
        registry.finish_run(run_id, "FINISHED")
        return key

    assert module_home.is_dir()
    return record


@pytest.fixture(scope="module")
def keys(tested: Tested) -> list[str]:
    """Three seeds of one training, two of another."""
    return [tested(f"a{seed}", seed, 0.1) for seed in (2, 0, 1)] + [tested(f"b{s}", s, 0.2) for s in (0, 1)]


@pytest.fixture(scope="module")
def stored(module_home: Path) -> list[str]:
    """Names of datasets in the store that no run is of."""
    assert store().is_relative_to(module_home)
    return [
        write_digits(store() / "digits-untrained", 3).info.name,
        tiny_dataset("detection", store()).info.name,
    ]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.compare, "NUM_DRAWS", 50)


def test_runs_that_differ_in_their_seed_alone_are_one_training(keys: list[str], run: Run) -> None:
    code, out, _ = run("compare", *keys, "--json")
    document = json.loads(out)
    assert code == 0
    first, second = document["trainings"]
    assert (first["training"], first["seeds"], first["runs"]) == (
        "A",
        [0, 1, 2],
        ["a0", "a1", "a2"],
    )
    assert (second["training"], second["seeds"]) == ("B", [0, 1])
    assert document["parameters"] == {"optim.lr": ["0.1", "0.2"]}
    values = first["metrics"]["accuracy"]["values"]
    assert first["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert first["metrics"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    (pair,) = document["differences"]
    assert (pair["first"], pair["second"], pair["num_images"]) == ("A", "B", 60)
    means = [training["metrics"]["nll"]["mean"] for training in (first, second)]
    nll = next(row for row in pair["metrics"] if row["metric"] == "nll")
    assert nll["difference"] == pytest.approx(means[1] - means[0], rel=1e-5)
    assert nll["low"] <= nll["difference"] <= nll["high"]
    assert "mcnemar" not in pair
    assert document["notes"] == []


def test_all_runs_on_a_dataset_are_what_naming_them_gives(keys: list[str], run: Run) -> None:
    named = json.loads(run("compare", *keys, "--json")[1])
    found = json.loads(run("compare", "--dataset", "digits", "--json")[1])
    assert found == named


def test_the_tables_show_each_seed_and_the_spread(keys: list[str], run: Run) -> None:
    code, out, _ = run("compare", *keys)
    assert code == 0
    for text in ("optim.lr", "A: 3 seeds", "seed 2", "sd", "B minus A, 60 test images"):
        assert text in out


def test_the_table_of_costs_says_which_run_is_which_training(tested: Tested, run: Run) -> None:
    timed, untimed = tested("timed-run", 0, 0.6, data="timed"), tested("untimed-run", 0, 0.7, data="timed")
    record = registry.start_run(
        key=timed, experiment="convoy/classification", name=timed, tags={}, parameters={}
    )
    registry.log_metrics(record, {"train_input_wait": 0.0625})
    registry.finish_run(record, "FINISHED")
    code, out, _ = run("compare", untimed, timed)
    assert code == 0
    costs = [line.split() for line in out.splitlines() if "timed-run" in line]
    assert costs == [["A", untimed, "0", "-", "-", "-", "-"], ["B", timed, "0", "-", "-", "-", "6.2%"]]


def test_a_training_that_ended_early_says_so_in_a_row_the_document_and_the_page(
    tested: Tested, run: Run, tmp_path: Path
) -> None:
    why = "by its time budget of 5 s, at epoch 3.4 of 400"
    keys = [
        tested("whole", 0, 0.3, data="early"),
        tested("cut", 0, 0.6, data="early", tags={EARLY_TAG: why}),
        tested("cut-again", 1, 0.6, data="early"),
    ]
    page = tmp_path / "page.html"
    code, out, _ = run("compare", *keys, "--html", str(page))
    (row,) = [line for line in out.splitlines() if "ended early" in line]
    assert code == 0 and row.split() == ["ended", "early", "-", "seed", "0", *why.split()]
    assert f"<td>A</td><td>-</td></tr><tr><td>B</td><td>seed 0 {why}</td>" in page.read_text()
    trainings = json.loads(run("compare", *keys, "--json")[1])["trainings"]
    assert [training["ended_early"] for training in trainings] == [[""], [why, ""]]
    assert "ended early" not in run("compare", keys[0], keys[2], "--html", str(page))[1]
    assert "nded early" not in page.read_text()


def test_whole_numbers_of_parameters_have_no_fraction(tested: Tested, run: Run) -> None:
    keys = [tested(f"lr-{lr}", 0, lr, data="rates") for lr in (15.0, 0.5)]
    assert json.loads(run("compare", *keys, "--json")[1])["parameters"] == {"optim.lr": ["15", "0.5"]}
    assert [without_zero(value) for value in ("3.0 | 400.0", "v1.0", "1.05", "-2.0")] == [
        "3 | 400", "v1.0", "1.05", "-2"
    ]  # fmt: skip


def test_one_run_against_another_is_tested_by_mcnemar(keys: list[str], run: Run) -> None:
    pair = json.loads(run("compare", keys[0], keys[3], "--json")[1])["differences"][0]
    test = pair["mcnemar"]
    accuracy = next(row for row in pair["metrics"] if row["metric"] == "accuracy")
    assert (test["only_second"] - test["only_first"]) / 60 == pytest.approx(accuracy["difference"])
    assert "McNemar: " in run("compare", keys[0], keys[3])[1]


def test_the_same_seed_again_counts_once_and_other_code_is_noted(tested: Tested, run: Run) -> None:
    keys = [tested("e0", 0, 0.5, data="more"), tested("e0-again", 0, 0.5, data="more", commit="other")]
    keys.append(tested("e1", 1, 0.5, data="more"))
    document = json.loads(run("compare", *keys, "--json")[1])
    (training,) = document["trainings"]
    assert document["parameters"] == {"dataset": ["more"], "model.name": ["resnet8_cifar"]}
    assert training["runs"] == ["e0-again", "e1"]
    assert document["notes"] == [
        "A: several runs of seed 0, of which the latest counts",
        "A: its runs were made by different code",
    ]


def test_the_predictions_of_a_run_are_fetched_once(
    keys: list[str], tested: Tested, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def read(record: RunRecord) -> Predictions | None:
        fetched.append(record.key)
        return read_predictions(record)

    monkeypatch.setattr(commands_compare, "read_predictions", read)
    third = tested("d0", 0, 0.4, data="digits-again")
    assert len(json.loads(run("compare", *keys, third, "--json")[1])["differences"]) == 2
    assert sorted(fetched) == sorted([*keys, third])
    fetched.clear()
    assert json.loads(run("compare", *keys[:3], "--json")[1])["differences"] == []
    assert fetched == []


def test_an_ensemble_is_a_training_of_its_own_and_its_members_are_found_by_name_only(
    tested: Tested, run: Run, tmp_path: Path
) -> None:
    alone = tested("alone", 0, 0.8, data="team")
    team = tested("team", 1, 0.8, data="team", seeds="1 | 2", tags={MEMBERS_TAG: "team-0, team-1"})
    for place, accuracy in enumerate((0.25, 0.5)):
        member = registry.start_run(
            key=f"team-{place}", experiment="convoy/classification", name="member",
            tags={"git.commit": "c", "dvc.digest": "d", PARENT_TAG: "the team's"},
            parameters={
                "dataset": "team", "model.name": "resnet8_cifar", "train.seed": 1 + place, "optim.lr": 0.8,
            },
            dataset=write_digits(tmp_path / str(place) / "team", 3), digest="d",
        )  # fmt: skip
        registry.log_metrics(member, {"test.accuracy": accuracy})
        registry.finish_run(member, "FINISHED")
    code, out, err = run("compare", "--dataset", "team", "--json")
    assert code == 0, err
    document = json.loads(out)
    found = [(training["seeds"], training["runs"]) for training in document["trainings"]]
    assert found == [([0], [alone]), (["1 | 2"], [team])]
    assert document["parameters"] == {"members": ["-", "2"]}
    assert document["differences"][0]["num_images"] == 60
    assert "seed 1 | 2" in run("compare", "--dataset", "team")[1]
    document = json.loads(run("compare", team, "team-0", "team-1", "--json")[1])
    assert document["trainings"][1]["seeds"] == [1, 2]
    assert document["trainings"][1]["metrics"]["accuracy"]["mean"] == pytest.approx(0.375)
    assert "which were tested together" in document["differences"][0]["why_not"]


def test_tests_on_different_images_are_not_compared(keys: list[str], tested: Tested, run: Run) -> None:
    other = tested("short", 0, 0.3, num=40, data="short")
    code, out, _ = run("compare", keys[0], other)
    assert code == 0
    assert "they were not tested on the same images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "compare needs either runs or --dataset NAME"),
        (("a0", "--dataset", "digits"), "compare needs either runs or --dataset NAME"),
        (("nope",), "no run 'nope': give a run key"),
        (("runs:/nope",), "no run 'runs:/nope'"),
        (("--dataset", "it's"), """dataset (="it's") must be a name"""),
        (("--dataset", "x' or params.dataset = 'digits"), """dataset (="x' or params.dataset = 'digits")"""),
        (("runs:/it's",), """no run "runs:/it's\""""),
        (("--dataset", "nope"), "no dataset named 'nope'"),
        (
            ("--dataset", "digits-untrained"),
            "no finished and tested run on 'digits-untrained'; begin one with: ./convoy train classification --dataset",
        ),
        (
            ("--dataset", "digit_scenes"),
            "'digit_scenes' is for detection, whose tests give no probabilities of classes; compare is for "
            "classification, signals, volumes. Test a model by: ./convoy evaluate MODEL; detectors beside each "
            "other by: ./convoy evaluate A B",
        ),
        (("untested",), "run untested (RUNNING) was not tested"),
        (
            ("face",),
            "run face is for faces, whose tests give no probabilities of classes; compare is for classification",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: tuple[str, ...], message: str, keys: list[str], stored: list[str], run: Run, tmp_path: Path
) -> None:
    assert keys and stored
    registry.start_run(
        key="untested", experiment="convoy/classification", name="u", tags={}, parameters={"train.seed": 0},
        dataset=write_digits(tmp_path / "digits", 3), digest="",
    )  # fmt: skip
    face = registry.start_run(
        key="face", experiment="convoy/faces", name="f", tags={}, parameters={"train.seed": 0}
    )
    registry.log_metrics(face, {"test.accuracy": 0.9})
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
