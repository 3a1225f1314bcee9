"""Ray Train's own list of a run's checkpoints, mended where half of it was left, or of what it names."""

import json
from pathlib import Path

import torch
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from data.files import write_whole


def mend_snapshot(folder: Path, fewest_workers: int) -> None:
    """Write Ray Train's list of a run's checkpoints anew where Ray could not go on with it: with the newest whole one.

    Ray writes the list in place, and copies the checkpoints of an embedded cluster without flushing them: a kill or a
    full disk leaves half of the list, a power cut half of a checkpoint. Where no checkpoint is whole, a list that can
    be read stays.
    """
    file = folder / "checkpoint_manager_snapshot.json"
    if not file.is_file():
        return
    try:
        newest = json.loads(file.read_text())["latest_checkpoint_result"]
        if newest is None or is_whole(folder / newest["checkpoint_dir_name"], fewest_workers):
            return
    except ValueError:
        newest = None
    names = sorted(place.name for place in folder.glob("checkpoint_*") if is_whole(place, fewest_workers))
    if newest is not None and not names:
        return
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
    except MemoryError:  # which tells nothing of the file
        raise
    except Exception:
        return False
    return True
