"""The flow that looks for datasets that have changed, and tells of them, so that triggers start what follows.

    ./convoy data watch

It looks once; `watch-data` in prefect.yaml has the schedule.
"""

from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow

from pipelines import environment, steps
from pipelines.configuration import SectionForm
from pipelines.events import tell_change
from pipelines.parameters import section
from tasks.watching import Change, WatchConfig, difference_of, watch


@flow(name="watch-data", flow_run_name="watch-data", persist_result=False)
def watch_data(changes: Annotated[dict[str, Any] | None, SectionForm(WatchConfig)] = None) -> dict[str, Any]:
    """Tell of each dataset that has another version than at the last look, once it has been left alone for a while.

    Args:
        changes: what differs from the section `watch` of params.yaml; an empty field stays as it says
    """
    environment.prepare()
    config = section("watch", WatchConfig, changes or {})
    reporter = steps.reporter_here()
    told: list[dict[str, Any]] = []

    def tell(change: Change) -> None:
        difference = difference_of(change)
        tell_change(change, difference, reporter)
        told.append({**asdict(change), "difference": difference})

    look = watch(config, tell)
    for name, why in look.waiting.items():
        reporter.note(f"{name} changed and waits: {why}")
    return {
        "changed": told, "waiting": look.waiting, "new": list(look.new), "unchanged": list(look.unchanged),
    }  # fmt: skip
