"""The flow that frees what nothing needs any more: old checkpoints, DVC's cache, what dead processes left, and locked.

./convoy maintain             # what would go
./convoy maintain --apply
"""

from typing import Annotated, Any

from prefect import flow

from pipelines import environment, steps
from pipelines.artifacts import publish_freed
from pipelines.configuration import SectionForm
from pipelines.parameters import section
from pipelines.reporting import Reporter
from tasks.leftovers import Item
from tasks.maintenance import MaintainConfig, document, find, free


@flow(name="maintain", flow_run_name="maintain", persist_result=False)
def maintain(
    dry_run: bool = True, changes: Annotated[dict[str, Any] | None, SectionForm(MaintainConfig)] = None
) -> dict[str, Any]:
    """Free what no alias, no record, no version of a dataset and no run that can go on needs.

    Args:
        dry_run: list what would go, and remove nothing
        changes: what differs from the section `maintain` of params.yaml; an empty field stays as it says
    """
    environment.prepare()
    config = section("maintain", MaintainConfig, changes or {})
    reporter = steps.reporter_here()
    found = document(tidy(config, dry_run, reporter), dry_run)
    publish_freed(found)
    reporter.note(f"{'would free' if dry_run else 'freed'} {found['num_bytes'] / 1e6:,.1f} MB")
    return found


@steps.step("maintain")
def tidy(config: MaintainConfig, dry_run: bool, reporter: Reporter) -> list[Item]:
    """What was freed, or would be."""
    return find(config) if dry_run else free(config, reporter.note)
