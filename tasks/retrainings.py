"""What MLflow keeps of retrainings beside what every run has: why it was, what came of it, how often a split decided.

A retraining's record is its training's run, or one of its own where nothing was trained. All of it stands in tags.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities import Run

from data.dataset import Dataset, Split
from tasks import registry, versioning
from tasks.lineage import Lineage
from tasks.modelstore import version_at
from tasks.recordstore import connect

Outcome = Literal["first", "promoted", "held", "inconclusive", "declined", "skipped"]

SPLIT_TAG, MODEL_TAG, OUTCOME_TAG = "gate.split", "retrain.model", "retrain.outcome"
REASON_TAG, WHY_TAG, CHAMPION_TAG = "retrain.reason", "retrain.why", "retrain.champion"
LONGEST = 4000  # characters of a sentence in a tag


@dataclass(frozen=True)
class Retraining:
    """One retraining, as it is kept."""

    key: str
    model: str
    outcome: str
    reason: str
    why: str  # why it was trained; "" where it was not
    champion: int | None  # that it was judged against
    digest: str
    when: str  # UTC
    run_id: str


@dataclass(frozen=True)
class Champion:
    """The champion, and what it was made of."""

    version: int
    run_id: str
    digest: str
    params_sha256: str
    commit: str


def champion_of(name: str, version: int) -> Champion:
    """What the champion's version says of itself."""
    found = version_at(connect(), f"models:/{name}/{version}")
    tags = found.tags
    return Champion(
        version, found.run_id or "", tags.get("dvc.digest", ""), tags.get("params.sha256", ""),
        tags.get("git.commit", ""),
    )  # fmt: skip


def split_name(dataset: Dataset, split: Split) -> str:
    """What a comparison's samples are counted by: the version of the data, and the split."""
    digest = versioning.digest(dataset.path) or f"sha256-{dataset.info.source_sha256[:32]}"
    return f"{digest}/{split}"


def count_use(run_id: str, family: str, split: str) -> int:
    """Note that a run's comparison uses this split, and return how many have, this one included."""
    registry.set_tags(run_id, {SPLIT_TAG: split})
    return len(_tagged(family, {SPLIT_TAG: split}))


def judged_before(name: str, family: str, lineage: Lineage, champion: int) -> Retraining | None:
    """The latest retraining by the same data and parameters that was judged against this champion, and not promoted."""
    wanted = {
        MODEL_TAG: name, CHAMPION_TAG: str(champion),
        "dvc.digest": lineage.dvc_digest, "params.sha256": lineage.params_sha256,
    }  # fmt: skip
    judged = [
        run
        for run in _tagged(family, wanted)
        if run.data.tags.get(OUTCOME_TAG) in ("held", "inconclusive", "declined")
    ]
    return retraining_of(judged[0]) if judged else None


def record_outcome(
    run_id: str, name: str, outcome: Outcome, reason: str, why: str, champion: int | None
) -> None:
    """Keep what came of a retraining with its run."""
    registry.set_tags(
        run_id,
        {
            MODEL_TAG: name, OUTCOME_TAG: outcome, REASON_TAG: reason[:LONGEST], WHY_TAG: why[:LONGEST],
            CHAMPION_TAG: "" if champion is None else str(champion),
        },
    )  # fmt: skip


def record_skip(family: str, name: str, dataset: str, lineage: Lineage, reason: str, champion: int) -> str:
    """A run of its own for a retraining that trained nothing; returns its id."""
    run_id = registry.start_run(
        key=lineage.key, experiment=f"convoy/{family}", name=f"{dataset}-skipped-{lineage.dvc_digest[:8]}",
        tags=lineage.tags(), parameters={},
    )  # fmt: skip
    record_outcome(run_id, name, "skipped", reason, "", champion)
    registry.finish_run(run_id, "FINISHED")
    return run_id


def retrainings(name: str) -> list[Retraining]:
    """All retrainings of a registered model, the latest first."""
    family = connect().get_registered_model(name).tags["convoy.family"]
    return [retraining_of(run) for run in _tagged(family, {MODEL_TAG: name})]


def retraining_of(run: Run) -> Retraining:
    """A retraining by its run's tags."""
    tags = run.data.tags
    champion = tags.get(CHAMPION_TAG, "")
    return Retraining(
        key=tags.get("convoy.key", ""), model=tags[MODEL_TAG], outcome=tags.get(OUTCOME_TAG, ""),
        reason=tags.get(REASON_TAG, ""), why=tags.get(WHY_TAG, ""), champion=int(champion) if champion else None,
        digest=tags.get("dvc.digest", ""),
        when=datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        run_id=run.info.run_id,
    )  # fmt: skip


def _tagged(family: str, tags: dict[str, str]) -> list[Run]:
    """The runs of a family with these tags, the latest first."""
    client = connect()
    experiment = client.get_experiment_by_name(f"convoy/{family}")
    found: list[Run] = []
    token: str | None = ""
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    while token is not None and experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id], condition, order_by=["attributes.start_time DESC"],
            page_token=token or None,
        )  # fmt: skip
        found += page
        token = page.token or None
    return found
