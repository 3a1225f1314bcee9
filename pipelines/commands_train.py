"""`./convoy train` and `./convoy parameters`."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from data.findings import parse_accepted
from pipelines import server
from pipelines.families import Executor, FamilyName, StopAfter
from pipelines.options import Accept, Changes, Json, quiet_stdout, require_nothing_beside_resume
from pipelines.parameters import AUTO, choose_recipe, flatten, parse_changes, recipes
from pipelines.render import emit, pairs, table
from pipelines.runner import run_flow
from tasks.intervals import measured_on, metric_table


def train(
    family: FamilyName | None = None,
    /,
    *,
    dataset: str | None = None,
    recipe: str = AUTO,
    changes: Changes = None,
    teacher: str = "",
    resume: str | None = None,
    stop_after: StopAfter | None = None,
    executor: Executor | None = None,
    accept: Accept = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train a model on an ingested dataset, test it, register it, and promote it if it is the first.

    Example: ./convoy train classification --dataset digits --set optim.lr=0.002 --set train.epochs=5

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Name of an ingested dataset; ./convoy data list shows them.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    teacher
        A trained model to learn from, beside the labels: models:/NAME@ALIAS, a run key, a folder. Short for
        --set distil.teacher=.
    resume
        Key of a run that was cut off: go on with it, by its own parameters.
    stop_after
        The last step: train, evaluate (test, do not register), or promote (everything); otherwise
        everything, and with --resume what was asked for at first.
    executor
        Where to train: ray, or in_process, inside this process, for debugging; otherwise on Ray, and with
        --resume as it was begun.
    out
        Folder to copy the model, the course of training and the test's results to.
    """
    nested = parse_changes(
        [*(changes or []), *([f"distil.teacher={json.dumps(teacher)}"] if teacher else [])]
    )
    accepted = parse_accepted(accept or [])
    if out is not None:
        require_replaceable(out / "model")  # before hours of training, and again after
    if resume is not None:
        require_nothing_beside_resume(family, dataset, recipe != AUTO, nested, accepted)
    elif family is None or dataset is None:
        raise ValueError(
            "train needs a family and --dataset NAME, for example: train classification --dataset digits"
        )
    else:
        server.start()
        # Only now, for torch takes seconds that the server can use.
        from pipelines.beforehand import require_beginning
        from pipelines.configuration import configuration

        config = configuration(family, dataset, recipe, nested)
        require_beginning(family, dataset, [config], accepted, executor=executor or "ray")
    with quiet_stdout(as_json):
        summary = run_flow(
            family, dataset, recipe, nested, resume=resume, stop_after=stop_after, executor=executor,
            accept=accepted,
        )  # fmt: skip
        if out is not None:
            collect(Path(summary["folder"]), out)
    emit(summary, summary_views(summary), as_json)


def collect(run: Path, out: Path) -> None:
    """Copy what a run made to `out`: `model/`, history.csv, and the test's files where it was tested."""
    model = out / "model"
    require_replaceable(model)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=out) as partial:
        shutil.copytree(run / "model", Path(partial) / "new")
        if model.exists():
            model.rename(Path(partial) / "old")
        (Path(partial) / "new").rename(model)
    for file in [run / "history.csv", *sorted((run / "evaluation").glob("*"))]:
        if file.is_file():
            shutil.copy2(file, out / file.name)


def require_replaceable(model: Path) -> None:
    """Raise ValueError if something of other people's stands where a model is to be written."""
    if model.exists() and not (model / "model.json").is_file():
        raise ValueError(f"{model} is there and is no model; move it away, or give another --out")


def summary_views(summary: dict[str, Any]) -> list[Any]:
    """A run's summary, for a person."""
    first_step_s = summary["to_first_step_s"]
    values: dict[str, Any] = {
        "run": summary["key"],
        "recipe": f"{summary['recipe']}, {summary['architecture']}",
        "model": model_of(summary),
        **champion_of(summary),
        **({} if first_step_s is None else {"first step after": f"{first_step_s:.1f} s"}),
        "training": f"{summary['train_time_s']:.1f} s, {summary['num_steps']:,} steps, "
        f"{summary['images_per_s']:,.0f} images/s, {summary['input_wait']:.1%} of it waiting for input",
        **early_end_of(summary),
        **course_of(summary),
    }
    title = measured_on(summary["dataset"], "test", summary["view"])
    return [pairs(f"Trained on {summary['dataset']}", values), table(*metric_table(title, whole_of(summary)))]


def early_end_of(summary: dict[str, Any]) -> dict[str, str]:
    """Why a training ended before its epochs were over, where it did."""
    early = summary.get("ended_early")  # not in retrainings that were begun before it was kept
    return {"ended early": early} if early else {}


def whole_of(summary: dict[str, Any]) -> dict[str, float]:
    """The metrics of a run's test that are of all it looked at: not of a view or a class."""
    return {name: value for name, value in summary["metrics"].items() if "." not in name}


def model_of(summary: dict[str, Any]) -> str:
    """The registered model that came of a run, or the folder of one that was not registered."""
    if summary["version"]:
        alias = f" ({summary['alias']})" if summary["alias"] else ""
        return f"models:/{summary['model']}/{summary['version']}{alias}"
    return f"{summary['folder']}/model"


def champion_of(summary: dict[str, Any]) -> dict[str, str]:
    """Of a challenger: which version is champion, how good that is on the same data, and what would promote this."""
    champion = summary["champion"]
    if not champion:
        return {}
    metric = champion["metric"]
    measured = (
        f"{metric} {champion['value']:.4g} on the same test data, this one {summary['metrics'][metric]:.4g}"
        if metric
        else "with which no figure of a test on the same data is shared"
    )
    command = f"./convoy promote {summary['model']} {summary['version']}"
    return {"champion": f"version {champion['version']}, {measured}; to promote this one: {command}"}


def course_of(summary: dict[str, Any]) -> dict[str, str]:
    """How long this command's phases took, not those of a run before it went on, and where the run can be looked at."""
    report = Path(summary["folder"]) / "evaluation" / "report.html"
    return {
        "this command": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["phases_s"].items()),
        **({"report": str(report)} if report.is_file() else {}),
        "look at it": summary["mlflow_url"],
    }


def parameters(
    family: FamilyName, /, *, dataset: str = "", recipe: str = AUTO, as_json: Json = False
) -> None:
    """Explain a recipe: each parameter's key for --set, its value, and what it does.

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Show the recipe that this dataset would be trained by.
    recipe
        Show the recipe of this name.
    """
    from tasks.families import FAMILIES

    name = choose_recipe(family, dataset, recipe)
    values = flatten(recipes(family)[name])
    helps = descriptions(FAMILIES[family].config)
    rows = [(key, json.dumps(value), helps.get(key, "")) for key, value in values.items()]
    document = {
        "family": family,
        "recipe": name,
        "recipes": list(recipes(family)),
        "parameters": [
            {"key": key, "value": value, "description": helps.get(key, "")} for key, value in values.items()
        ],
    }
    title = f"{family}, recipe {name} (others: {', '.join(r for r in recipes(family) if r != name)})"
    emit(document, [table(title, ("key", "value", "what it does"), rows)], as_json)


def descriptions(model: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a parameter model and the help of each."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found.update(descriptions(field.annotation, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = field.description or ""
    return found
