"""`./convoy drift`: whether what a model is asked about has drifted from what it was trained on."""

from pipelines.options import Changes, Json
from pipelines.parameters import parse_changes, section
from pipelines.render import emit, pairs, table
from tasks.drift import DriftConfig
from tasks.driftlooks import drift_document
from tasks.resolution import resolve


def drift(model: str, /, *, changes: Changes = None, as_json: Json = False) -> int:
    """Compare features of recorded predictions with those of the model's own dataset: MMD, its p-value, its effect.

    Example: ./convoy drift models:/classifier-digits@champion
    Each look is at predictions that no look before it has seen. The exit code is 1 where the two newest looks both
    found drift: so may a schedule act on it. The deployment `watch-drift` does the same, and starts a retraining.
    Record with ./convoy serve MODEL --record, or predict --record.

    Parameters
    ----------
    model
        A registered model, models:/NAME@ALIAS or models:/NAME/VERSION.
    changes
        A parameter of section `drift` of params.yaml, such as num_recent=200.
    """
    config = section("drift", DriftConfig, parse_changes(changes or []))
    document = drift_document(resolve(model), config)
    columns = ("looked", "predictions from", "to", "how many", "reference", "MMD²", "p", "effect", "drifted")
    title = f"{document['version']}: features of predictions against those of its own dataset"
    verdict = {
        "now": verdict_of(document["drifted"], config),
        "two looks running": "drift: retrain, or look what has changed"
        if document["twice_running"]
        else "no",
    }
    lines = [each.values() for each in document["looks"]]
    emit(document, [table(title, columns, lines), pairs("", verdict)], as_json)
    return int(document["twice_running"])


def verdict_of(drifted: bool, config: DriftConfig) -> str:
    """In words."""
    rule = f"p below {config.p_below:g} and an effect above {config.effect_above:g}"
    return f"drifted ({rule})" if drifted else f"not drifted (drift has {rule})"
