"""Ray Train's own list of a run's checkpoints, mended where a kill or a full disk left half of it."""

import json
from pathlib import Path

import torch
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from data.files import write_whole


def mend_snapshot(folder: Path, fewest_workers: int) -> None:
    """Write Ray Train's list of a run's checkpoints anew where it cannot be read; it names the newest whole one.

    Ray writes the list in place: a kill or a full disk leaves half of it, and Ray would not go on with the run.
    """
    file = folder / "checkpoint_manager_snapshot.json"
    if not file.is_file():
        return
    try:
        json.loads(file.read_text())
    except ValueError:
        names = sorted(place.name for place in folder.glob("checkpoint_*") if is_whole(place, fewest_workers))
        results = [_TrainingResultState(checkpoint_dir_name=name, metrics={}) for name in names[-1:]]
        state = _CheckpointManagerState(
            checkpoint_results=results, checkpoint_report_indices=[1] * len(results),
            latest_checkpoint_result=results[0] if results else None, pending_training_results=[],
            pending_validation_specs=[], current_report_index=len(results), validated_checkpoint_dir_names=[],
            timed_out_validation_checkpoint_dir_names=[], failed_validation_checkpoint_dir_names=[],
        )  # fmt: skip
        write_whole(file, state.model_dump_json())


def is_whole(checkpoint: Path, fewest_workers: int) -> bool:
    """Whether every file that the ranks of a run keep in a checkpoint is there and can be read."""
    try:
        for name in ("state", *(f"random-{rank}" for rank in range(fewest_workers))):
            torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True
