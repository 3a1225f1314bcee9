"""`./convoy data watch`: one look for datasets that have changed."""

from typing import Any

from pipelines import server
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes
from pipelines.render import emit


def watch(*, changes: Changes = None, as_json: Json = False) -> None:
    """Look once for datasets with a new version, and tell Prefect's server, whose triggers start retrainings.

    The deployment `watch-data` does the same on a schedule, once somebody has turned it on.
    Example: ./convoy data watch --set watch.settle_s=0
    """
    if not server.is_named():
        raise ValueError("nobody would hear of a change: no Prefect server is named; start one: ./convoy up")
    given = parse_changes(changes or []) or None
    # Only now, for these imports take seconds.
    from pipelines.runner import call_flow

    with quiet_stdout(as_json):
        document = call_flow("pipelines.watch:watch_data", given)
    emit(document, views(document), as_json)


def views(document: dict[str, Any]) -> list[str]:
    """A look for a person; what changed was told while it looked."""
    kinds = {
        "changed": [each["name"] for each in document["changed"]], "wait": list(document["waiting"]),
        "seen for the first time": document["new"], "unchanged": document["unchanged"],
    }  # fmt: skip
    return [f"{what}: {', '.join(names)}" for what, names in kinds.items() if names] or [
        "no dataset is recorded here"
    ]
