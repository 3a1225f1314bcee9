"""`./convoy maintain`: free what nothing needs any more."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes, section
from pipelines.render import ConsoleReporter, emit, table
from tasks.leftovers import Item
from tasks.maintenance import MaintainConfig, document, find, free

MAX_LISTED = 10  # of a kind


def maintain(
    *,
    apply: Annotated[bool, Parameter(name="--apply", negative=())] = False,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """List what no alias, record, version or resumable run needs: checkpoints, cache, leftovers of dead processes.

    Nothing is removed without --apply, nothing that a living process holds, and nothing that changed in the last days
    (maintain.keep_days), but for processes, jobs and DVC's locks whose owner has ended.
    Example: ./convoy maintain --apply --set keep_days=30

    Parameters
    ----------
    apply
        Remove it.
    """
    config = section("maintain", MaintainConfig, parse_changes(changes or []))
    with quiet_stdout(as_json):
        items = free(config, ConsoleReporter().note) if apply else find(config)
        unasked = items or as_json or not config.keep_days
        young = [] if unasked else find(config.model_copy(update={"keep_days": 0.0}))
    found = document(items, not apply)
    emit(found, views(found, config, young), as_json)


def views(found: dict[str, Any], config: MaintainConfig, young: Sequence[Item]) -> list[Any]:
    """What goes, by kind: the largest first, with what it was kept by till now.

    Where nothing goes, how much is only `young`: what would go if nothing was kept for its age.
    """
    if not found["items"]:
        told = f"nothing to free: what is left is needed, or changed in the last {config.keep_days:g} days"
        size = megabytes(sum(item.num_bytes for item in young))
        return [f"{told}; {len(young):,} of the latter, {size} MB: --set keep_days=0" if young else told]
    shown: list[Any] = []
    for kind in dict.fromkeys(item["kind"] for item in found["items"]):
        own = sorted(
            (item for item in found["items"] if item["kind"] == kind), key=lambda item: -item["num_bytes"]
        )
        rows = [[item["path"], item["num_files"], megabytes(item["num_bytes"]), item["why"]] for item in own]
        total = megabytes(sum(item["num_bytes"] for item in own))
        title = f"{kind.capitalize()}: {len(own):,}, {total} MB"
        shown.append(table(title, ("path", "files", "MB", "why"), rows[:MAX_LISTED]))
        if len(rows) > MAX_LISTED:
            shown.append(f"and {len(rows) - MAX_LISTED:,} more: --json")
    total = megabytes(found["num_bytes"])
    return [*shown, f"would free {total} MB: --apply does" if found["dry_run"] else f"freed {total} MB"]


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"
