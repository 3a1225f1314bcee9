"""The retrain flow, called in this process: what is skipped, promoted, held; and cut off anywhere, what goes on."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from data.dataset import Dataset
from pipelines import approval, families, retraining
from pipelines.approval import Answer, set_asker
from pipelines.classification import retrain_classifier
from pipelines.families import PIPELINES
from pipelines.notification import WEBHOOK
from pipelines.reporting import set_reporter
from tasks import ledger, retrainings, versioning
from tasks.paths import ROOT, runs, store
from tasks.recordstore import connect
from tests.conftest import Run
from tests.pairs import GATE
from tests.test_pipelines_training import Listener, runs_with_key
from tests.tiny import TINY

NAME = "classifier-digits"
RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
POOR, GOOD = {"train": {"epochs": 3.0}}, {"train": {"epochs": 12.0}}
# what a busy machine measures decides nothing here
FREE = {**GATE, "latency_ratio": 0, "memory_ratio": 0}
pytestmark = pytest.mark.usefixtures("versioned_digits", "prefect_api", "listener")
Both = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr("pipelines.configuration.recipes", lambda family: {"tiny": RECIPE, "default": RECIPE})
    monkeypatch.setattr("pipelines.parameters.recipes", lambda family: {"tiny": RECIPE, "default": RECIPE})
    monkeypatch.setattr("pipelines.parameters.load", lambda: {"gate": FREE})
    listener = Listener()
    set_reporter(listener)
    set_asker(lambda evidence: Answer(True, "anna", "the numbers are good"))
    yield listener
    approval._asker.set(None)


@pytest.fixture
def fresh(promoted: "Both", monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Gives a test a registered model of its own, whose champion is the poor one."""

    def use(name: str) -> str:
        monkeypatch.setattr(retraining, "registered_name", lambda family, dataset: name)
        monkeypatch.setattr("pipelines.steps.registered_name", lambda family, dataset: name)
        client, first = connect(), promoted[0]
        poor = client.get_model_version(NAME, str(first["version"]))
        client.create_registered_model(name, tags={"convoy.family": "classification"})
        source = client.get_model_version_download_uri(NAME, poor.version)
        client.create_model_version(name, source, poor.run_id, tags=dict(poor.tags))
        ledger.promote_first(name, 1)
        return name

    return use


def retrain(changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    summary: dict[str, Any] = retrain_classifier("digits", changes=changes, executor="in_process", **options)
    return summary


def state_of(key: str) -> tuple[str, str]:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(key).state
        return state.name, state.message


@pytest.fixture(scope="module")
def promoted(versioned_digits: Dataset, prefect_api: str) -> Both:
    """Summaries of a first, poor model, and of a better one that was approved."""
    assert prefect_api and versioned_digits
    with pytest.MonkeyPatch.context() as patch:
        for place in ("pipelines.configuration.recipes", "pipelines.parameters.recipes"):
            patch.setattr(place, lambda family: {"default": RECIPE})
        patch.setattr("pipelines.parameters.load", lambda: {"gate": FREE})
        set_reporter(Listener())
        set_asker(lambda evidence: Answer("Verdict: **promote**" in evidence, "anna", "the numbers are good"))
        return retrain(POOR), retrain(GOOD, approval="ask")


def test_the_first_model_is_promoted_without_a_gate_and_a_better_one_by_it(
    promoted: Both,
) -> None:
    first, second = promoted
    assert (first["outcome"], first["why"]) == ("first", f"{NAME} has no champion yet")
    assert (second["outcome"], second["version"], second["champion"]) == ("promoted", 2, 1)
    assert second["why"] == "parameters differ: train.epochs 3.0 → 12.0"
    assert ledger.aliases(NAME) == {"champion": 2, "previous": 1}
    move = ledger.history(NAME)[-1]
    assert (move.key, move.who, move.evidence["run"]) == (second["key"], "anna", second["mlflow_run"])
    assert move.because.startswith("accuracy improves from")
    assert move.because.endswith("approved: the numbers are good")
    assert state_of(second["key"])[0] == "Promoted"
    [run] = runs_with_key(second["key"])
    assert (run.info.status, run.data.tags["gate.decision"]) == ("FINISHED", "promote")
    assert run.data.tags["retrain.why"] == second["why"]
    assert run.data.metrics["gate.gain.accuracy"] == pytest.approx(second["gate"]["metrics"][0]["gain"])


def links_of(document: str) -> dict[str, tuple[str, bool | None, str]]:
    return {
        link["what"]: (link["value"], link["found"], link["see"]) for link in json.loads(document)["links"]
    }


def test_explain_walks_from_the_alias_over_the_evidence_to_the_data(promoted: Both, run: Run) -> None:
    second = promoted[1]
    code, out, err = run("explain", f"models:/{NAME}/2", "--json")
    assert code == 0, err
    links = links_of(out)
    assert list(links) == [
        "alias", "moved there", "evidence", "model", "trained because", "MLflow run",
        "in the process of the command", "computed on", "cost", "Prefect run", "data", "code", "parameters",
        "trained again",
    ]  # fmt: skip
    assert "by anna" in links["moved there"][0]
    page = runs() / second["key"] / "gate" / "gate.html"
    assert links["evidence"] == (
        f"the gate's verdict: promote; gate/gate.html of the run {second['key']}",
        True,
        str(page),
    )
    assert links["trained because"][0] == "parameters differ: train.epochs 3.0 → 12.0"
    assert links["MLflow run"][0].startswith(second["mlflow_run"])
    value, found, _see = links["Prefect run"]
    assert (value, found) == (f"{second['key']} {flow_name(second['key'])}, Promoted", True)
    digest = versioning.digest(store() / "digits")
    assert links["data"][:2] == (f"digits as it is checked out now ({digest}), in DVC's cache", True)
    assert links["trained again"] == ("never", None, f"./convoy reproduce models:/{NAME}/2")


def flow_name(key: str) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(key).name)


def test_explain_says_of_what_is_gone_that_it_is(
    promoted: Both, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.versioning.is_cached", lambda digest: False)
    monkeypatch.setattr("tasks.provenance.has_commit", lambda root, commit: False)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code, out, _err = run("explain", promoted[0]["key"], "--json")
    assert code == 0
    links = links_of(out)
    assert links["data"][1] is False
    assert "not in DVC's cache; it is nowhere else, and no remote is set" in links["data"][0]
    assert links["code"][1] is False
    assert "lacks it" in links["code"][0] or "no commit" in links["code"][0]
    assert links["Prefect run"][1] is None
    assert links["evidence"][0] == "none: no gate was asked"


def test_explain_says_why_a_retraining_was_skipped(promoted: Both, run: Run) -> None:
    summary = retrain(GOOD)
    assert summary["champion"] == promoted[1]["version"]
    code, out, err = run("explain", summary["key"], "--json")
    assert code == 0, err
    links = links_of(out)
    assert links["skipped because"][0] == summary["reason"]
    assert "computed on" not in links
    code, out, _err = run("explain", f"models:/{NAME}@champion", "--retrains", "--json")
    kept = json.loads(out)["retrainings"][0]
    assert (kept["key"], kept["outcome"], kept["reason"]) == (summary["key"], "skipped", summary["reason"])


def test_both_were_scored_afresh_on_one_version_and_the_evidence_is_kept(
    promoted: Both,
) -> None:
    second = promoted[1]
    files = {artifact.path for artifact in connect().list_artifacts(second["mlflow_run"], "gate")}
    assert files == {"gate/gate.html", "gate/gate.md", "gate/verdict.json"}
    verdict = json.loads((Path(second["folder"]) / "gate" / "verdict.json").read_text())
    assert verdict["about"]["version of the data"] == versioning.digest(store() / "digits")
    assert verdict["uses"] == 1
    champion = connect().get_run(promoted[0]["mlflow_run"]).data.metrics["test.accuracy"]
    accuracy = verdict["metrics"][0]
    assert (accuracy["name"], accuracy["champion"]) == ("accuracy", pytest.approx(champion))
    assert accuracy["challenger"] == pytest.approx(second["trained"]["metrics"]["accuracy"])
    assert verdict["cost"]["challenger"]["latency_ms"] > 0


def test_the_same_data_and_parameters_are_skipped_and_the_reason_is_kept(
    promoted: Both, listener: Listener
) -> None:
    digest = versioning.digest(store() / "digits")
    summary = retrain(GOOD)
    assert (summary["outcome"], summary["champion"]) == ("skipped", promoted[1]["version"])
    start = f"version 2, the champion of {NAME}, was trained on the same data ({digest[:8]}) by the same parameters"
    assert summary["reason"].startswith(start)
    assert state_of(summary["key"]) == ("Skipped", summary["reason"])
    assert not (runs() / summary["key"] / "model").exists()
    [run] = runs_with_key(summary["key"])
    assert run.data.tags["retrain.reason"] == summary["reason"]
    kept = retrainings.retrainings(NAME)[0]
    assert (kept.key, kept.outcome, kept.champion) == (summary["key"], "skipped", 2)
    assert f"{NAME}: skipped: {summary['reason']}" in listener.notes
    assert len(ledger.history(NAME)) == 3, "first registered, second registered, second promoted"


@pytest.mark.slow
def test_a_worse_model_is_held_and_not_trained_again_on_the_same(
    promoted: Both,
) -> None:
    worse = {"train": {"epochs": 4.0}}
    summary = retrain(worse)
    assert summary["outcome"] == "held"
    assert "accuracy gets worse by more than its margin" in summary["reason"]
    assert state_of(summary["key"]) == ("Held", summary["reason"])
    assert ledger.aliases(NAME)["champion"] == promoted[1]["version"]
    assert summary["gate"]["uses"] == 2
    again = retrain(worse)
    assert again["outcome"] == "skipped"
    assert f"the run {summary['key']} was trained on the same data" in again["reason"]
    assert "was held against the same champion, version 2: accuracy gets worse" in again["reason"]
    forced = retrain(worse, force=True, gate={"most_uses": 2})
    assert forced["why"].startswith("it was asked for, although the run")
    assert forced["outcome"] == "held", "what is worse is worse, however often the split was used"


def test_nobody_is_promoted_whom_a_person_declines(fresh: Callable[[str], str]) -> None:
    name = fresh("classifier-declined")
    set_asker(lambda evidence: Answer(False, "berta", "wait for the audit"))
    summary = retrain(GOOD, approval="ask")
    assert summary["outcome"] == "declined"
    assert summary["reason"] == "the gate would promote it, and berta did not: wait for the audit"
    assert ledger.aliases(name) == {"champion": 1, "challenger": 2}


def test_a_flow_run_whom_nobody_could_start_again_asks_nobody_and_says_so_before_it_trains(
    fresh: Callable[[str], str],
) -> None:
    name = fresh("classifier-alone")
    approval._asker.set(None)
    with pytest.raises(ValueError, match="nobody can be asked here: this flow run is of no deployment"):
        retrain(GOOD, approval="ask")
    assert ledger.aliases(name) == {"champion": 1, "challenger": 1}


SLOW = ("refresh", "compare", "champion", "approval", "told")
STEPS = ("trained", "verdict", *(pytest.param(step, marks=pytest.mark.slow) for step in SLOW))


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_cut_off_after_any_step_goes_on_to_one_record(
    fresh: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    name = fresh(f"classifier-cut-{step}")
    before = len(ledger.history(name))
    original = retraining.Journal.once

    def cut(journal: retraining.Journal, which: str, do: Callable[[], Any]) -> Any:
        if which == step:
            do()  # done, and not yet noted
            raise RuntimeError(f"cut off in {step}")
        return original(journal, which, do)

    with monkeypatch.context() as patch:
        patch.setattr(retraining.Journal, "once", cut)
        with pytest.raises(RuntimeError, match=f"cut off in {step}"):
            retrain(GOOD, approval="ask")
    key = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name
    summary = retrain_classifier("digits", resume=key)  # where it was begun
    assert (summary["outcome"], summary["key"]) == ("promoted", key)
    assert len(runs_with_key(key)) == 1
    assert [move.action for move in ledger.history(name)[before:]] == ["register", "promote"]
    assert ledger.aliases(name) == {"champion": 2, "previous": 1}
    split = retrainings.split_name(Dataset.open(store() / "digits"), "test")
    users = [run.info.run_id for run in retrainings._tagged("classification", {retrainings.SPLIT_TAG: split})]
    assert users.count(summary["mlflow_run"]) == 1, "one use of the split, however often it was tried"
    assert summary["gate"]["uses"] == len(users)


@pytest.mark.slow
def test_a_promotion_by_another_meanwhile_holds_the_challenger(
    fresh: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh("classifier-overtaken")
    judge = retraining.judge

    def slowly(*arguments: Any) -> Any:
        found = judge(*arguments)
        ledger.promote(name, 2, because="I could not wait", expected=1, who="dora")
        return found

    monkeypatch.setattr(retraining, "judge", slowly)
    summary = retrain(GOOD)
    assert summary["outcome"] == "held"
    assert "now version 2 is, by dora" in summary["reason"]


def test_the_outcome_is_sent_to_the_webhook_and_one_that_fails_stops_nothing(
    promoted: Both, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert promoted
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/secret-token"
    monkeypatch.setenv(WEBHOOK, url)
    summary = retrain(GOOD)
    server.shutdown()
    server.server_close()
    thread.join()
    [message] = sent
    assert message["event"] == "convoy.retrain.skipped"
    assert (message["model"], message["reason"], message["run"]) == (NAME, summary["reason"], summary["key"])
    assert retrain(GOOD)["outcome"] == "skipped"
    assert listener.notes[-1] == f"the webhook of {WEBHOOK} was not reached: ConnectError"
    assert not any("secret-token" in note for note in listener.notes)


def test_other_classes_than_the_champions_are_left_to_a_person(
    promoted: Both,
) -> None:
    from pipelines.judging import other_classes
    from tasks.modelfile import load_card
    from tasks.registry import resolve_model

    card = load_card(resolve_model(f"models:/{NAME}/{promoted[1]['version']}"))
    other = card.model_copy(update={"classes": (*card.classes[1:], "ten")})
    verdict = other_classes([card, other], (2, 3), 1)
    assert verdict["decision"] == "inconclusive"
    assert "knows other classes than this data has (new: ten; gone: 0)" in verdict["reasons"][0]


def test_a_family_without_a_paired_comparison_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = families.Pipeline(**{**vars(PIPELINES["classification"]), "pair": ""})
    monkeypatch.setitem(PIPELINES, "classification", alone)
    with pytest.raises(
        ValueError, match="classification has no paired comparison of two models, so no gate can"
    ):
        retrain(GOOD)


def test_a_run_that_is_no_retraining_is_not_resumed_as_one(
    promoted: Both,
) -> None:
    folder = runs() / "plain"
    folder.mkdir(exist_ok=True)
    job = Path(promoted[0]["folder"]) / "job.json"
    (folder / "job.json").write_text(job.read_text())
    with pytest.raises(
        ValueError, match=r"plain is no retraining: go on with it by ./convoy train --resume plain"
    ):
        retrain_classifier("digits", resume="plain", executor="in_process")


def test_commands_move_list_and_go_back(promoted: Both, run: Run) -> None:
    assert promoted
    code, out, _ = run("rollback", NAME, "--because", "it drifts", "--json")
    back = json.loads(out)
    assert (code, back["after"]["champion"], back["because"]) == (0, 1, "it drifts")
    digest = versioning.digest(store() / "digits")
    assert back["restored"]["data"] == f"digits as it is checked out now ({digest})"
    skipped = retrain(GOOD)
    assert skipped["outcome"] == "skipped", "what was rolled back does not come back by itself"
    assert skipped["reason"].startswith(
        f"version 2 was rolled back by {ledger.me()} because: it drifts, and it was"
    )
    code, out, _ = run("promote", NAME, "2", "--because", "it does not")
    assert code == 0 and f"models:/{NAME}@champion is version 2" in out
    code, out, _ = run("history", NAME, "--json")
    moves = json.loads(out)["moves"]
    assert [move["action"] for move in moves[:2]] == ["promote", "rollback"]
    aliases = json.loads(out)["aliases"]
    assert (aliases["champion"], aliases["previous"]) == (2, 1)
    code, out, _ = run("history", NAME)
    assert code == 0 and "it drifts" in out
    code, out, _ = run("history", NAME, "--retrains", "--json")
    outcomes = [each["outcome"] for each in json.loads(out)["retrainings"]]
    assert outcomes[-2:] == ["promoted", "first"]
    code, _, err = run("history", "nothing")
    assert code == 2 and "no registered model 'nothing'; known: " in err and NAME in err
    code, _, err = run("promote", NAME, "99")
    assert code == 2 and "no such version" in err


def test_a_deployment_for_each_family_and_its_schedule_is_paused() -> None:
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    deployments = {each["name"]: each for each in listed}
    for family, pipeline in PIPELINES.items():
        if not pipeline.retrain:
            continue
        name = pipeline.retrain.rpartition(":")[2].replace("_", "-")
        assert deployments[name]["entrypoint"] == pipeline.retrain
        assert deployments[name]["work_pool"]["work_queue_name"] == name
        assert not any(schedule["active"] for schedule in deployments[name]["schedules"])
        assert families.load(pipeline.retrain).name == name, family
        assert families.load(pipeline.pair) is not None
    assert {"promote", "rollback"} <= deployments.keys()
