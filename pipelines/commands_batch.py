"""What `./convoy predict` does with more than a look: a folder or bucket into one file, and features into a log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.engines import start_engines
from pipelines.families import Executor
from pipelines.options import quiet_stdout
from pipelines.parameters import parse_changes, section
from pipelines.render import emit, pairs
from pipelines.runner import call_flow

FLOW = "pipelines.predict:predict_folder"
PIECE_IMAGES = 64  # read and embedded at a time


def predict_into(
    model: str, sources: Sequence[str], out: Path, executor: Executor, record: bool, changes: list[str] | None,
    one_look: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Predict one folder or bucket into a Parquet file; the exit code is 1 where a file could not be read."""
    given = [name for name, value in one_look.items() if value is not None]
    if given:
        raise ValueError(
            f"{given[0]} is for a look at few images: leave it out with --out, whose view is the registered one"
        )
    if len(sources) != 1:
        raise ValueError(f"--out takes one folder, or s3://BUCKET/PREFIX, got {len(sources)}")
    nested = parse_changes(changes or [])
    start_engines(executor)
    with quiet_stdout(as_json):
        summary = call_flow(FLOW, model, sources[0], str(out), executor, record, nested or None)
    emit(summary, [pairs("", shown(summary))], as_json)
    return int(summary["errors"] > 0)


def shown(summary: dict[str, Any]) -> dict[str, Any]:
    """What was predicted, by what, and where it lies."""
    return {
        "predictions": summary["out"],
        "of": summary["source"],
        "by": f"{summary['model']} (trained on {summary['dataset']})",
        "files": summary["files"],
        "without a prediction": summary["errors"],
        "parts": f"{summary['parts']}, {summary['parts_before']} of them there before",
    }


def record_files(model: str, files: Sequence[Path]) -> None:
    """Take features of files into the log of a registered model; those that cannot be read are left out."""
    from tasks.predictors import open_predictor
    from tasks.recordings import RecordConfig, Recorder, record
    from tasks.resolution import resolve

    resolved = resolve(model)
    predictor = open_predictor(resolved.folder)
    recorder = Recorder(section("record", RecordConfig, {}))
    there = [file for file in files if file.is_file()]
    for start in range(0, len(there), PIECE_IMAGES):
        record(
            recorder, resolved, predictor, [file.read_bytes() for file in there[start : start + PIECE_IMAGES]]
        )
    recorder.flush()
