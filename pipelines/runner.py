"""Runs a training flow in this process, with the engines that it needs."""

from typing import Any

from pipelines import server
from pipelines.engines import start_engines
from pipelines.environment import STARTED_AT
from pipelines.families import PIPELINES, Executor, StopAfter, load
from pipelines.render import ConsoleReporter
from pipelines.reporting import set_reporter
from pipelines.runfolders import begun, run_folder


def run_flow(
    family: str | None,
    dataset: str | None,
    recipe: str,
    changes: dict[str, Any],
    *,
    resume: str | None = None,
    stop_after: StopAfter | None = None,
    executor: Executor | None = None,
    accept: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run the family's training flow: its summary, with the seconds from the command to the first step.

    They are None where the run was trained already.

    `resume`, the key of a run, takes the place of family, dataset, recipe, changes and accept. Without `stop_after` it
    ends where it was to end at first, a new run when everything is done; without `executor` it is trained where it was
    begun, a new run on Ray.
    """
    if resume is not None:  # first, for a key that is none needs no engines
        values = begun(run_folder(resume), "run")
        executor = executor or values.get("executor")  # not in runs of before it was kept
    executor = executor or "ray"
    start_engines(executor)
    if resume is not None:
        # Only now, for these imports take seconds that the engines can use.
        from pipelines.training import read_job

        job = read_job(run_folder(resume))
        family, dataset, recipe = job.family, job.dataset, job.recipe
        stop_after = stop_after or job.stop_after
    assert family is not None
    summary = call_flow(
        PIPELINES[family].flow, dataset, recipe=recipe, changes=changes or None, stop_after=stop_after or "promote",
        resume=resume, executor=executor, accept=accept,
    )  # fmt: skip
    first_step_at = summary.pop("first_step_at")
    summary["to_first_step_s"] = None if first_step_at is None else first_step_at - STARTED_AT
    return summary


def call_flow(address: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Call the flow at `module:function`, reporting to the console; `start_engines` must have been called."""
    from tasks.cluster import disconnect

    flow = load(address)
    server.wait()
    reporter = ConsoleReporter()
    set_reporter(reporter)
    try:
        summary: dict[str, Any] = flow(*arguments, **options)
    except BaseException:
        disconnect()
        raise
    finally:
        reporter.close()
    return summary
