"""`./convoy explain MODEL` and `./convoy reproduce MODEL`: where a model comes from, and whether it comes again."""

import json
import os
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.counting import counted
from pipelines.commands_aliases import list_retrainings
from pipelines.options import Json, quiet_stdout
from pipelines.render import emit, table
from tasks.provenance import Link, Subject, chain, find_subject, name_of
from tasks.retrainings import MODEL_TAG

ANSWER_S = 10.0
SHOWN_DIGITS = 16  # of a hash
HERE = {True: "yes", False: "no", None: None}


def explain_model(
    model: str,
    /,
    *,
    retrains: Annotated[bool, Parameter(name="--retrains", negative=())] = False,
    as_json: Json = False,
) -> None:
    """Show where a model comes from: alias, evidence, MLflow run, Ray, Prefect, data, code, parameters.

    Each link with whether it can still be found from here, and the command to see it. Example:
    ./convoy explain models:/classifier-digits@champion

    Parameters
    ----------
    model
        models:/NAME@ALIAS, models:/NAME/VERSION, a run key or runs:/ID; a skipped retraining has a run too.
    retrains
        List the retrainings of the model instead: why each was trained or skipped, and what came of it.
    """
    subject = find_subject(model)
    if retrains:
        named = subject.name or subject.tags.get(MODEL_TAG, "")
        if not named:
            raise ValueError(f"{model} is a run of no registered model: name one, as models:/NAME@champion")
        list_retrainings(named, as_json)
        return
    links = chain(subject)
    flow = flow_link(subject.tags.get("prefect.flow_run_id", ""))
    after_job = 1 + max(
        i for i, link in enumerate(links) if link.what in ("MLflow run", "computed on", "cost")
    )
    links[after_job:after_job] = [flow]
    document = {
        "model": model, "name": subject.name, "version": subject.version, "run_id": subject.run_id,
        "key": subject.tags.get("convoy.key", ""), "links": [asdict(link) for link in links],
    }  # fmt: skip
    emit(document, [links_table(subject, links)], as_json)


def links_table(subject: Subject, links: list[Link]) -> Table:
    """A line a link."""
    rows = [(link.what, link.value, HERE[link.found], link.see or None) for link in links]
    return table(name_of(subject), ("", "", "found", "see it by"), rows)


def flow_link(flow_run_id: str) -> Link:
    """Whether the Prefect server that this command knows has the flow run; without one nobody can tell."""
    if not flow_run_id:
        return Link("Prefect run", "none: no flow run was recorded", False)
    see = f".venv/bin/prefect flow-run inspect {flow_run_id}"
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        return Link(
            "Prefect run", f"{flow_run_id}; no server runs that could be asked: ./convoy up", None, see
        )
    try:
        with urllib.request.urlopen(f"{url}/flow_runs/{flow_run_id}", timeout=ANSWER_S) as answer:
            run = json.load(answer)
    except urllib.error.HTTPError as error:
        lacks = error.code == 404
        why = f"{url} does not know it" if lacks else f"{url} answers with {error.code}"
        return Link("Prefect run", f"{flow_run_id}; {why}", False if lacks else None, see)
    except OSError as error:
        return Link("Prefect run", f"{flow_run_id}; {url} does not answer: {error}", None, see)
    return Link("Prefect run", f"{flow_run_id} {run['name']}, {run['state_name']}", True, see)


def reproduce(
    model: str,
    /,
    *,
    seconds_limit: float = 0.0,
    as_json: Json = False,
) -> int:
    """Train a model again by its own commit, data and parameters, and compare: weights, else the test's metrics.

    Needs a record of a clean commit, and data that DVC has. The exit code is 1 where something else came of it.
    Example: ./convoy reproduce models:/classifier-digits@champion

    Parameters
    ----------
    model
        models:/NAME@ALIAS, models:/NAME/VERSION, a run key or runs:/ID.
    seconds_limit
        Give up after so many seconds; 0: never.
    """
    if seconds_limit < 0:
        raise ValueError(f"--seconds-limit (={seconds_limit:g}) must be 0, for none, or more")
    # Only now, for torch takes seconds that a wrong command line should not wait for.
    from pipelines.reproduce import reproduce as train_again

    with quiet_stdout(as_json):
        report = train_again(model, seconds_limit)
    emit(report, report_views(report), as_json)
    return int(report["outcome"] not in ("equal", "within intervals"))


def report_views(report: dict[str, Any]) -> list[Table | str]:
    """What was made again, of what, and what is equal; of the metrics those of the registered view."""
    columns = ("", "recorded", "now", "")
    metrics = [each for each in report["metrics"] if "." not in each["name"]]
    rows = [
        (each["name"], shown(each["recorded"]), shown(each["now"]), each["verdict"])
        for each in [*report["weights"], *report["made_of"], *metrics]
    ]
    return [
        table(f"{report['model']}: {report['outcome']}", columns, rows),
        report["reason"],
        f"trained again in {report['seconds']:.0f} s by commit {report['commit'][:8]}, data {report['digest'][:8]}, "
        f"executor {report['executor']} with {counted(report['workers'], 'worker')}; the report is "
        f"kept with the MLflow run {report['run_id']}, in reproduced/",
    ]


def shown(value: Any) -> Any:
    """A hash by its first digits, other values as they are."""
    return value[:SHOWN_DIGITS] if isinstance(value, str) else value
