"""The flow of ensembles, called in this process: members, records, one registered model, and going on."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.dataset import Dataset
from pipelines import ensemble, steps
from pipelines.classification import train_classifier
from pipelines.commands_ensemble import summary_views
from pipelines.ensemble import Member, summary_of, train_ensemble
from pipelines.members import plan_members
from pipelines.parameters import AUTO
from pipelines.render import emit
from pipelines.reporting import set_reporter
from pipelines.runfolders import run_folder
from pipelines.training import read_job
from tasks import features, modellist, registry
from tasks.cost import cost_of
from tasks.loop import Progress
from tasks.modelfile import load_card
from tasks.predict import load_predictor
from tasks.recordstore import connect
from tasks.result import read_result
from tests.conftest import Run
from tests.handmade import write_model
from tests.test_pipelines_training import RECIPE, Listener, newest_key, runs_with_key, status_of
from tests.test_tasks_transfer import network, state_of
from tests.tiny import PLAIN

QUICK = {"train": {"epochs": 2.0}}
OTHER_INPUT = {**RECIPE, "input": {**RECIPE["input"], "stored_px": 20, "crop_px": 20}}
RECIPES = {"tiny": RECIPE, "default": RECIPE, "large": OTHER_INPUT}
MODELS = ("lenet5", "resnet8_cifar")
pytestmark = pytest.mark.usefixtures("digits", "prefect_api", "listener")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    for module in ("configuration", "parameters", "members"):
        monkeypatch.setattr(f"pipelines.{module}.recipes", lambda family: RECIPES)
    listener = Listener()
    set_reporter(listener)
    return listener


@pytest.fixture(scope="module")
def finished(digits: Dataset, prefect_api: str) -> dict[str, Any]:
    """The summary of an ensemble of three: two networks, the first with two seeds."""
    assert prefect_api and digits.info.name == "digits"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("configuration", "parameters", "members"):
            patch.setattr(f"pipelines.{module}.recipes", lambda family: RECIPES)
        set_reporter(Listener())
        return train_ensemble("digits", members=3, models=MODELS, changes=QUICK, executor="in_process")


def test_a_member_that_ended_before_its_epochs_says_so_in_its_row(finished: dict[str, Any]) -> None:
    assert all("ended_early" not in row for row in finished["members"])
    keys = [row["key"] for row in finished["members"]]
    team = [Member(key, read_job(run_folder(key))) for key in keys]
    whole = [read_result(member.folder) for member in team]
    why = "by its time budget of 600 s, at epoch 4.2 of 5"
    rows = summary_of(team, [*whole[:2], replace(whole[2], ended_early=why)])["members"]
    assert [row["ended_early"] for row in rows] == ["", "", why]


def test_an_ensemble_in_process_says_so_and_which_members_ended_early(
    listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train": {"epochs": 1000.0, "time_budget_s": 0.3, "cpus_per_worker": 0}}
    summary = train_ensemble("digits", members=2, changes=changes, stop_after="train", executor="in_process")
    assert [row["cpus"] for row in summary["members"]] == [torch.get_num_threads()] * 2
    last = [status for status in listener.statuses if status.step == "train"][-1]
    assert last.ended and last.done == summary["num_steps"]
    (record,) = runs_with_key(summary["key"])
    ends = [f"member {i} {row['ended_early']}" for i, row in enumerate(summary["members"])]
    assert record.data.tags["trained.ended_early"] == "; ".join(ends)
    emit(summary, summary_views(summary, "in_process"), as_json=False)
    assert "summed over members that ran one after the other" in " ".join(capsys.readouterr().out.split())


def test_the_metrics_of_an_ensemble_are_said_to_be_of_the_test_split(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    emit(finished, summary_views(finished, "in_process"), as_json=False)
    assert "Together on digits, test split: the registered view is single" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_ensemble_of_heads_tells_how_far_its_features_are_before_it_trains(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "features", lambda: tmp_path / "features")
    save_file(state_of(network()), tmp_path / "w.safetensors")
    heads = {"weights": str(tmp_path / "w.safetensors"), "mode": "head", "cache_features": True}
    changes = {**QUICK, "model": {"name": "resnet8_cifar"}, "augment": PLAIN, "transfer": heads}
    train_ensemble("digits", members=2, changes=changes, stop_after="train", executor="in_process")
    told = [status for status in listener.statuses if status.step in ("features", "train")]
    computed = [status for status in told if status.step == "features"]
    assert [status.over for status in computed].count(True) == 1 and computed[-1].over
    assert told[: len(computed)] == computed and len(told) > len(computed)


def test_members_take_the_networks_in_turn_and_a_seed_each(finished: dict[str, Any]) -> None:
    members = [(member["architecture"], member["seed"]) for member in finished["members"]]
    assert members == [("lenet5", 0), ("resnet8_cifar", 1), ("lenet5", 2)]
    card = load_card(Path(finished["folder"]) / "model")
    assert [member.architecture for member in card.members] == ["lenet5", "resnet8_cifar", "lenet5"]
    assert [member.run for member in card.members] == [f"{finished['key']}-{place}" for place in range(3)]


def test_the_record_of_each_member_lies_below_the_ensembles(finished: dict[str, Any]) -> None:
    (own,) = runs_with_key(finished["key"])
    assert own.info.status == "FINISHED"
    assert own.data.params["model.name"] == "lenet5 | resnet8_cifar | lenet5"
    assert own.data.params["train.seed"] == "0 | 1 | 2"
    assert own.data.params["train.epochs"] == "2.0"
    for place in range(3):
        (run,) = runs_with_key(f"{finished['key']}-{place}")
        assert run.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert run.data.tags["seed"] == str(place)
        assert run.info.status == "FINISHED"
        assert 0 < run.data.metrics["test.accuracy"] <= 1


def test_an_ensemble_costs_what_all_its_members_do_and_counts_once(finished: dict[str, Any]) -> None:
    (own,) = runs_with_key(finished["key"])
    members = [runs_with_key(f"{finished['key']}-{place}")[0].data for place in range(3)]
    in_loops = [member.metrics["train_cpu_s"] for member in members]
    assert all(in_loops) and own.data.metrics["train_cpu_s"] == pytest.approx(sum(in_loops))
    cost = cost_of(own.data.metrics, own.data.tags)
    assert cost and finished["cost"] == asdict(cost)
    assert cost.cpu_s > sum(in_loops) and cost.wall_s > sum(finished["phases_s"].values()) * 0.99
    assert [cost_of(member.metrics, member.tags) for member in members] == [None] * 3


def test_the_ensemble_is_one_model_that_names_its_members(finished: dict[str, Any]) -> None:
    assert (finished["model"], finished["version"]) == ("classifier-digits", 1)
    shown = modellist.show_model("models:/classifier-digits/1")
    assert shown["tags"]["ensemble.members"] == ", ".join(f"{finished['key']}-{place}" for place in range(3))
    assert len(shown["card"]["members"]) == 3
    assert shown["accuracy"] == finished["metrics"]["accuracy"]
    predictor = load_predictor(registry.resolve_model("models:/classifier-digits/1"))
    assert len(predictor.members) == 3
    assert predictor.card.temperature == pytest.approx(finished["metrics"]["temperature"])


def test_the_comparison_has_each_member_and_the_ensemble_and_lies_with_the_run(
    finished: dict[str, Any],
) -> None:
    names = {row["model"] for row in finished["comparison"]}
    assert names == {"lenet5 #0", "lenet5 #2", "resnet8_cifar", "2 together", "3 together"}
    files = {artifact.path for artifact in connect().list_artifacts(finished["mlflow_run"], "evaluation")}
    assert {"evaluation/pareto.png", "evaluation/pareto.csv"} <= files
    about = json.loads((Path(finished["folder"]) / "evaluation" / "about.json").read_text())
    assert about["models"] == about["runs"] == ", ".join(f"{finished['key']}-{place}" for place in range(3))


def test_a_single_net_a_multi_crop_and_an_ensemble_are_registered_and_promoted_alike(
    finished: dict[str, Any], digits: Dataset
) -> None:
    assert finished["alias"] == "champion"
    single = train_classifier("digits", changes=QUICK, executor="in_process")
    cropped = train_classifier(
        "digits", changes={**QUICK, "evaluate": {"registered_view": "ten_crop"}}, executor="in_process"
    )
    again = train_ensemble("digits", members=2, changes=QUICK, executor="in_process")
    assert [each["version"] for each in (single, cropped, again)] == [2, 3, 4]
    assert [each["alias"] for each in (single, cropped, again)] == ["challenger"] * 3
    aliases = {row["version"]: row["aliases"] for row in modellist.list_models()}
    assert aliases == {1: ["champion"], 2: [], 3: [], 4: ["challenger"]}
    [image] = digits.table("test", ["image"])["image"][:1].to_pylist()
    for version, networks, view in ((1, 3, "single"), (2, 1, "single"), (3, 1, "ten_crop"), (4, 2, "single")):
        predictor = load_predictor(registry.resolve_model(f"models:/classifier-digits/{version}"))
        assert (len(predictor.members), predictor.view) == (networks, view)
        [row] = predictor.predict([image]).to_pylist()
        assert np.sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_an_ensemble_that_was_stopped_goes_on_by_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(place: int, progress: Progress) -> None:
        if place == 1 and progress.step:
            raise KeyboardInterrupt

    train_members = ensemble.train_members
    with monkeypatch.context() as patch:
        patch.setattr(
            ensemble, "train_members", lambda *args, **named: train_members(*args, **{**named, "on_progress": stop})
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            train_ensemble("digits", members=2, changes=QUICK, executor="in_process")
    key = newest_key().rpartition("-")[0] if newest_key().endswith(("-0", "-1")) else newest_key()
    assert json.loads((run_folder(key) / "ensemble.json").read_text())["members"] == [f"{key}-0", f"{key}-1"]
    first = run_folder(f"{key}-0") / "result.json"
    before = first.stat().st_mtime_ns
    assert [status_of(runs_with_key(each)[0].info.run_id) for each in (key, f"{key}-1")] == ["KILLED"] * 2

    summary = train_ensemble("anything", resume=key, stop_after="train", executor="in_process")
    assert summary["dataset"] == "digits" and summary["key"] == key
    assert first.stat().st_mtime_ns == before
    assert [status_of(runs_with_key(each)[0].info.run_id) for each in (key, f"{key}-1")] == ["FINISHED"] * 2
    assert len(load_card(run_folder(key) / "model").members) == 2


def test_each_member_learns_from_the_teacher_of_its_own_recipe(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "teacher", digits.info.classes, stored_px=16, crop_px=16)
    pupil = {**RECIPE, "distil": {**RECIPE["distil"], "teacher": str(folder)}}
    for module in ("configuration", "parameters", "members"):
        monkeypatch.setattr(f"pipelines.{module}.recipes", lambda family: {**RECIPES, "pupil": pupil})
    summary = train_ensemble(
        "digits", models=("tiny", "pupil"), changes=QUICK, executor="in_process", stop_after="train"
    )
    cards = [load_card(run_folder(f"{summary['key']}-{place}") / "model") for place in range(2)]
    assert cards[0].taught_by is None
    assert cards[1].taught_by is not None and cards[1].taught_by.source == str(folder)
    assert load_card(Path(summary["folder"]) / "model").taught_by is None
    first, second = (runs_with_key(f"{summary['key']}-{place}")[0].data.tags for place in range(2))
    assert "teacher.source" not in first and second["teacher.source"] == str(folder)


def test_a_member_that_goes_on_logs_no_step_that_its_record_has(monkeypatch: pytest.MonkeyPatch) -> None:
    train_members = ensemble.train_members

    def cut_off(*arguments: Any, **named: Any) -> Any:
        def hear(place: int, progress: Progress) -> None:
            named["on_progress"](place, progress)
            if place == 1 and "val_accuracy" in progress.metrics:
                raise KeyboardInterrupt

        return train_members(*arguments, **{**named, "on_progress": hear})

    changes = {"train": {"epochs": 4.0, "validate_every_epochs": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "train_members", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_ensemble("digits", members=2, changes=changes, executor="in_process")
    key = newest_key().rpartition("-")[0] if newest_key().endswith(("-0", "-1")) else newest_key()

    def points(member: str, metric: str = "epoch") -> list[tuple[int, int, float]]:
        (run,) = runs_with_key(member)
        history = connect().get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.timestamp, point.value) for point in history)

    before = {member: points(member) for member in (f"{key}-0", f"{key}-1")}
    for _ in range(2):  # the second time all is there
        train_ensemble("digits", resume=key, stop_after="train", executor="in_process")
    assert points(f"{key}-0") == before[f"{key}-0"]
    had, has = before[f"{key}-1"], points(f"{key}-1")
    assert has[: len(had)] == had
    assert len(has) > len(had) and min(step for step, _, _ in has[len(had) :]) > had[-1][0]
    assert [len(points(member, "train_time_s")) for member in before] == [1, 1]


def test_members_that_would_be_no_one_model_are_refused_before_training() -> None:
    with pytest.raises(
        ValueError, match=r"must have the same input: lenet5 has .*'stored_px': 16.*'stored_px': 20"
    ):
        plan_members("classification", "digits", 0, ("tiny", "large"), AUTO, {}, ())


def test_a_model_that_is_neither_recipe_nor_network_lists_both() -> None:
    with pytest.raises(
        ValueError, match=r"--model lenet6 is neither a recipe \(tiny, .*\) nor a network .*lenet5"
    ):
        plan_members("classification", "digits", 0, ("lenet6", "lenet5"), AUTO, {}, ())


@pytest.mark.parametrize(
    ("members", "models", "least"), [(1, (), 2), (0, ("tiny",), 2), (2, ("tiny",) * 3, 3)]
)
def test_too_few_members_are_refused(members: int, models: tuple[str, ...], least: int) -> None:
    with pytest.raises(ValueError, match=f"too small: give --members of at least {least}"):
        plan_members("classification", "digits", members, models, AUTO, {}, ())


def test_without_a_number_there_are_five_members() -> None:
    jobs = plan_members("classification", "digits", 0, (), AUTO, {}, ())
    assert [job.config.train.seed for job in jobs] == [0, 1, 2, 3, 4]


def test_an_unknown_ensemble_lists_the_known_ones(finished: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"no ensemble 'nope' in .*; known: .*{finished['key']}"):
        ensemble.read_team("nope")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ensemble",), "ensemble needs a family and --dataset NAME"),
        (("ensemble", "--resume", "k", "--members", "3"), "give no family, dataset, members"),
    ],
)
def test_the_command_says_what_it_needs(arguments: tuple[str, ...], message: str, run: Run) -> None:
    code, _out, err = run(*arguments)
    assert code == 2 and message in err


def test_steps_of_ensembles_are_tried_once_more_like_all_others() -> None:
    assert ensemble.train_team.retries == steps.train_model.retries == 1
