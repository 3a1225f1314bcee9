"""The gate as a step: champion and challenger scored afresh on the same data, compared, and the evidence kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.dataset import Dataset, Split
from data.files import write_whole
from pipelines.families import PIPELINES, load
from pipelines.reporting import Reporter, progress_of
from pipelines.steps import step
from tasks import gate, registry, retrainings
from tasks.card import ModelCard
from tasks.gate import Cost, GateConfig, Verdict
from tasks.gatecost import measure_costs
from tasks.gatepage import gate_markdown, gate_page
from tasks.modelfile import load_card
from tasks.pairing import Paired
from tasks.unseen import Unseen, unseen_part

SPLIT: Split = "test"
NUM_TIMED = 32  # samples that costs are measured on


def require_paired(family: str) -> None:
    """Raise ValueError for a family whose models cannot be compared in pairs."""
    if not PIPELINES[family].pair:
        known = ", ".join(name for name, pipeline in PIPELINES.items() if pipeline.pair)
        raise ValueError(
            f"{family} has no paired comparison of two models, so no gate can promote one (families that have one: "
            f"{known}); train it, and promote it by hand: ./convoy promote MODEL VERSION"
        )


@step("judge")
def judge(
    family: str, name: str, versions: tuple[int, int], dataset: Dataset, evaluate: Any, config: GateConfig,
    run_id: str, folder: Path, reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """The verdict over versions (champion, challenger) of a registered model, with all that it rests on.

    The evidence goes to the run's folder and record: gate/gate.html, gate/gate.md, gate/verdict.json. Looking counts
    as a use of the split, whatever comes of it.
    """
    models = [registry.resolve_model(f"models:/{name}/{version}") for version in versions]
    cards = [load_card(model) for model in models]
    uses = retrainings.count_use(run_id, family, retrainings.split_name(dataset, SPLIT))
    if cards[0].classes != cards[1].classes:
        return other_classes(cards, versions, uses)
    timed = dataset.table(SPLIT, ["image"])["image"][:NUM_TIMED].to_pylist()
    with unseen_part(dataset, SPLIT, cards[0]) as unseen:
        try:
            paired, device = compare(family, models, versions, unseen, evaluate, config, reporter)
        except gate.Incomparable as error:
            return undecided(f"the two cannot be compared: {error}; promote the challenger by hand", uses)
    costs = measure_costs((models[0], models[1]), timed, config.cost_rounds)
    verdict = gate.decide(paired, costs, uses, config, config.rules(family))
    about = {
        "model": name, "champion": versions[0], "challenger": versions[1], "dataset": dataset.info.name,
        "split": SPLIT, "version of the data": retrainings.split_name(dataset, SPLIT).partition("/")[0],
        "samples": paired.num_samples, "samples that the champion was fitted to": unseen.seen,
        "uses of the split": uses, "alpha": config.alpha, "power": config.power,
        "draws": config.num_draws, "device": device,
    }  # fmt: skip
    keep_evidence(about, paired, costs, verdict, config, folder, run_id, uses)
    return gate.document(paired, costs, verdict, uses)


def compare(
    family: str, models: Sequence[Path], versions: tuple[int, int], unseen: Unseen, evaluate: Any,
    config: GateConfig, reporter: Reporter,
) -> tuple[Paired, str]:  # fmt: skip
    """What both make of the same samples, and the device that they computed on; raises gate.Incomparable."""
    notes = [unseen.note] if unseen.note else []
    for note in notes:
        reporter.note(note)
    try:
        reports = [
            load(PIPELINES[family].evaluate)(
                [model], unseen.dataset, split=SPLIT, config=as_registered(evaluate, load_card(model)),
                on_progress=progress_of(reporter, f"score version {version}"),
            )
            for model, version in zip(models, versions, strict=True)
        ]  # fmt: skip
        paired = load(PIPELINES[family].pair)(*reports, unseen.dataset, SPLIT, config)
    except ValueError as error:
        if not unseen.num_left_out:
            raise
        raise gate.Incomparable(f"{unseen.note}; of those that are left: {error}") from None
    return replace(paired, notes=(*paired.notes, *notes)), str(reports[0].about["device"])


def as_registered(evaluate: Any, card: ModelCard) -> Any:
    """How to evaluate, by the one view that the model was registered with, and beside no optimisation."""
    changes: dict[str, Any] = {"views": (card.views,), "registered_view": card.views}
    if hasattr(evaluate, "optimise_pictures"):
        changes["optimise_pictures"] = 0
    return evaluate.model_copy(update=changes)


def undecided(reason: str, uses: int) -> dict[str, Any]:
    """The verdict where there is nothing to test."""
    return {"decision": "inconclusive", "reasons": [reason], "uses": uses}


def other_classes(cards: list[ModelCard], versions: tuple[int, int], uses: int) -> dict[str, Any]:
    """The verdict where the two do not answer the same question."""
    gone = sorted(set(cards[0].classes) - set(cards[1].classes))
    new = sorted(set(cards[1].classes) - set(cards[0].classes))
    what = "; ".join(
        part
        for part in (f"new: {', '.join(new)}" if new else "", f"gone: {', '.join(gone)}" if gone else "")
        if part
    )
    reason = (
        f"version {versions[0]}, the champion, knows other classes than this data has ({what or 'another order'}), so "
        "the two cannot be scored on the same samples: promote the challenger by hand"
    )
    return undecided(reason, uses)


def keep_evidence(
    about: dict[str, Any], paired: Paired, costs: tuple[Cost, Cost], verdict: Verdict, config: GateConfig,
    folder: Path, run_id: str, uses: int,
) -> None:  # fmt: skip
    """Write the evidence, and log it with the run."""
    place = folder / "gate"
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "gate.html", gate_page(about, paired, costs, verdict, config))
    write_whole(place / "gate.md", gate_markdown(about, paired, costs, verdict))
    values = {"about": about, **gate.document(paired, costs, verdict, uses)}
    write_whole(place / "verdict.json", json.dumps(values, indent=2) + "\n")
    registry.log_folder(run_id, place, "gate")
    gains = {f"gate.gain.{test.name}": test.gain for test in paired.metrics}
    latencies = {"gate.champion_ms": costs[0].latency_ms, "gate.challenger_ms": costs[1].latency_ms}
    registry.log_metrics(run_id, gains | latencies)
    registry.set_tags(run_id, {"gate.decision": verdict.decision})
