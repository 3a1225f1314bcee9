"""`./convoy export`: a model as one file for other runtimes, kept only if it predicts what the model predicts."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.dataset import Dataset
from pipelines.options import Json, quiet_stdout
from pipelines.render import emit, pairs, table
from tasks import registry
from tasks.card import ModelCard
from tasks.export import Format
from tasks.export import export as export_model
from tasks.modelfile import load_card, model_sha256
from tasks.versions import open_stored


def export(
    model: str,
    /,
    *,
    format: Annotated[Format, Parameter(name="--format")],
    out: Path | None = None,
    check_on: str | None = None,
    log: Annotated[bool, Parameter(negative=())] = False,
    as_json: Json = False,
) -> None:
    """Write a classifier of pictures, signals or volumes as one file, ONNX or torch.export, preprocessing inside.

    The file takes decoded items of any size and gives probabilities. It is kept only if it predicts what the model
    predicts on the test split of a dataset; check.json beside it says what was seen.
    Example: ./convoy export models:/classifier-digits@champion --format onnx

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    format
        onnx: for onnxruntime and others; torch: for torch.export.load.
    out
        A new folder for the file and its check.json; otherwise out/exports/SHA256-FORMAT, by the model's hash.
    check_on
        Name of an ingested dataset of the model's family; otherwise the one that the model was trained on.
    log
        Keep the file with the model's MLflow run, too, below exports/.
    """
    folder = registry.resolve_model(model)
    card = load_card(folder)
    dataset = dataset_to_check_on(card, check_on)
    runs = list(dict.fromkeys(member.run for member in card.members))
    run_ids = [registry.run_id_of(run) for run in runs] if log else []
    sha256 = model_sha256(folder)
    target = out or Path("out") / "exports" / f"{sha256[:12]}-{format}"
    source = {"model": model, "model_sha256": sha256}
    with quiet_stdout(as_json):
        seen = export_model(folder, format, target, dataset, source)
        for run_id in run_ids:
            registry.log_folder(run_id, target, f"exports/{sha256[:12]}-{format}")
    emit({"model": model, "out": target, **seen, "logged_to": run_ids}, views(seen, target), as_json)


def dataset_to_check_on(card: ModelCard, name: str | None) -> Dataset:
    """What predictions are compared on; raises FileNotFoundError where it is not here.

    Made-up pictures would do no better than close tensors: a model says nearly the same of all of them.
    """
    try:
        return open_stored(name or card.dataset)
    except FileNotFoundError as error:
        if name is not None:
            raise
        raise FileNotFoundError(
            f"an export is checked on real items, and the model's own dataset is not here: {error}; "
            "or check on another dataset of its family with --check-on NAME"
        ) from None


def views(seen: dict[str, Any], target: Path) -> list[Table | str]:
    """What was seen, for a person."""
    rows = [[look[name] for name in ("items", "batch_size", "num_items", "agreement", "max_difference")]
            for look in [*seen["looks"], *whole_look(seen)]]  # fmt: skip
    title = f"Predictions on {seen['dataset']}, {seen['split']}: {seen['format']} against the model"
    columns = ("input", "batch", "items", "same class", "largest difference of a probability")
    speed = {
        "items/s of the model": seen["model_items_per_s"],
        "items/s of the file": seen["program_items_per_s"],
        "size of the file": f"{seen['bytes'] / 2**20:,.1f} MiB",
        "view": seen["view"],
    }
    return [table(title, columns, rows), pairs("", speed), f"wrote {target / seen['file']}"]


def whole_look(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for JPEGs decoded at full size, which is told, not demanded."""
    whole = seen.get("jpegs_decoded_at_full_size")
    return [{"items": "JPEGs decoded at full size (not demanded)", "batch_size": 1, **whole}] if whole else []
