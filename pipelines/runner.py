"""Runs a training flow in this process, with the engines that it needs."""

from importlib import import_module
from typing import Any

from pipelines import server
from pipelines.engines import start_engines
from pipelines.environment import STARTED_AT
from pipelines.families import PIPELINES, Executor, StopAfter
from pipelines.render import ConsoleReporter
from pipelines.reporting import set_reporter


def run_flow(
    family: str | None,
    dataset: str | None,
    recipe: str,
    changes: dict[str, Any],
    *,
    resume: str | None = None,
    stop_after: StopAfter = "promote",
    executor: Executor = "ray",
    accept: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run the family's training flow: its summary, with the seconds from the command to the first step.

    They are None where the run was trained already.

    `resume`, the key of a run, takes the place of family, dataset, recipe, changes and accept.
    """
    start_engines(executor)
    # Only now, for these imports take seconds that the engines can use.
    from pipelines.training import read_job, run_folder
    from tasks.cluster import disconnect

    if resume is not None:
        job = read_job(run_folder(resume))
        family, dataset, recipe = job.family, job.dataset, job.recipe
    assert family is not None
    module, _, name = PIPELINES[family].flow.partition(":")
    flow = getattr(import_module(module), name)
    server.wait()
    reporter = ConsoleReporter()
    set_reporter(reporter)
    try:
        summary = flow(
            dataset, recipe, changes or None, stop_after=stop_after, resume=resume, executor=executor,
            accept=accept,
        )  # fmt: skip
    except BaseException:
        disconnect()
        raise
    finally:
        reporter.close()
    first_step_at = summary.pop("first_step_at")
    summary["to_first_step_s"] = None if first_step_at is None else first_step_at - STARTED_AT
    return summary
