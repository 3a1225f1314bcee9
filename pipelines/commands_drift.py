"""`./convoy drift`: whether what a model is asked about has drifted from what it was trained on."""

from typing import Any

from pipelines.options import Changes, Json
from pipelines.parameters import parse_changes, section
from pipelines.render import emit, pairs, table
from tasks.drift import DriftConfig, Look, twice_running
from tasks.driftlooks import look, read_looks
from tasks.resolution import resolve

NUM_SHOWN = 10  # looks


def drift(model: str, /, *, changes: Changes = None, as_json: Json = False) -> int:
    """Compare features of recorded predictions with those of the model's own dataset: MMD, its p-value, its effect.

    Example: ./convoy drift models:/classifier-digits@champion
    Each look is at predictions that no look before it has seen. The exit code is 1 where the two newest looks both
    found drift: so may a schedule act on it. Record with ./convoy serve MODEL --record, or predict --record.

    Parameters
    ----------
    model
        A registered model, models:/NAME@ALIAS or models:/NAME/VERSION.
    changes
        A parameter of section `drift` of params.yaml, such as num_recent=200.
    """
    config = section("drift", DriftConfig, parse_changes(changes or []))
    resolved = resolve(model)
    now = look(resolved, config)
    looks = read_looks(resolved)
    twice = twice_running(looks, config)
    lines = [row_of(each, config) for each in looks[-NUM_SHOWN:]]
    document = {
        "model": model,
        "version": resolved.exact,
        "drifted": now.drifted(config),
        "twice_running": twice,
        "p_below": config.p_below,
        "effect_above": config.effect_above,
        "looks": lines,
    }
    columns = ("looked", "predictions from", "to", "how many", "reference", "MMD²", "p", "effect", "drifted")
    title = f"{resolved.exact}: features of predictions against those of its own dataset"
    verdict = {
        "now": verdict_of(now, config),
        "two looks running": "drift: retrain, or look what has changed" if twice else "no",
    }
    emit(document, [table(title, columns, [each.values() for each in lines]), pairs("", verdict)], as_json)
    return int(twice)


def verdict_of(now: Look, config: DriftConfig) -> str:
    """In words."""
    rule = f"p below {config.p_below:g} and an effect above {config.effect_above:g}"
    return f"drifted ({rule})" if now.drifted(config) else f"not drifted (drift has {rule})"


def row_of(each: Look, config: DriftConfig) -> dict[str, Any]:
    """A look, for a table."""
    return {
        "at": f"{each.at:%Y-%m-%d %H:%M:%S}",
        "first": f"{each.first:%Y-%m-%d %H:%M:%S}",
        "last": f"{each.last:%Y-%m-%d %H:%M:%S}",
        "num_recent": each.discrepancy.num_recent,
        "num_reference": each.discrepancy.num_reference,
        "mmd2": each.discrepancy.mmd2,
        "p": each.discrepancy.p,
        "effect": each.discrepancy.effect,
        "drifted": each.drifted(config),
    }
