"""What a run keeps in its folder beside the model: what it began with, the course of its metrics, and what it says of
itself."""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.files import cut_tail, read_objects, write_whole
from tasks.loop import Progress


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says of itself."""

    model_folder: Path
    num_steps: int
    train_time_s: float  # of the loop, validation and checkpoints included, over all attempts
    first_step_s: float  # from the call to the first message of the loop, in this attempt
    images_per_s: float  # over the whole of the loop
    input_wait: float  # share of the training time in which the loop waited for its next batch
    resumed_from_step: int
    metrics: dict[str, float]
    cpu_s: float = 0.0  # processor seconds of the ranks in the loop, over all attempts
    # see tasks.machine; {} in runs of before it was kept
    trained_on: dict[str, str] = field(default_factory=dict)
    # why it ended before its epochs were over: `by its …, at epoch …`; "" where it did not
    ended_early: str = ""


class Listener:
    """Hears a run's progress on the driver: keeps `history.jsonl`, and passes each message on.

    What comes the other way is `stopping`: whether whoever listens wants the run to stop.
    """

    def __init__(
        self,
        folder: Path,
        on_progress: Callable[[Progress], None] | None,
        on_start: Callable[[int], None] | None,
        stopping: Callable[[], bool],
        on_features: Callable[[int, int], None] | None = None,
    ) -> None:
        self.features = on_features or (lambda _done, _total: None)  # that are computed before the first step
        self.file, self.on_progress, self.on_start = folder / "history.jsonl", on_progress, on_start
        self.stopping = stopping
        cut_tail(self.file)
        self.started = time.perf_counter()
        self.first_step_s = 0.0
        self.resumed_from_step = 0
        self.heard_any = False

    def start(self, step: int) -> None:
        """The loop is about to take its first step, number `step`."""
        self.first_step_s, self.resumed_from_step = time.perf_counter() - self.started, step
        if self.on_start is not None:
            self.on_start(step)

    def hear(self, progress: Progress) -> None:
        values = asdict(progress)
        row = {**values.pop("metrics"), **values}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_progress is not None:
            self.on_progress(progress)

    def close(self) -> None:
        """Write `history.csv`: one row a step, the last that was said of it (a resumed run repeats some)."""
        if not self.file.is_file():
            return
        rows = {row["step"]: row for row in read_objects(self.file, "remove that line")}
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        with self.file.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *(c for c in columns if c != "step")], restval="")
            writer.writeheader()
            writer.writerows(rows[step] for step in sorted(rows))


def write_result(folder: Path, result: TrainResult) -> None:
    """Write `result.json`, whole or not at all."""
    values = {**asdict(result), "model_folder": "model"}
    write_whole(folder / "result.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_result(folder: Path) -> TrainResult:
    """What a finished run in `folder` said."""
    values = json.loads((folder / "result.json").read_text())
    return TrainResult(**{**values, "model_folder": folder / values["model_folder"]})


def require_same_beginning(folder: Path, data: str, weights: str, teacher: str) -> None:
    """Keep the digests of what a run begins with ("": none); raises ValueError where it would go on with others.

    A checkpoint holds what is trained and what is frozen, so that training would not notice; but cached features would
    be of the new weights, and the model's card would name them.
    """
    file = folder / "begun-with.json"
    now = {"data": data, "weights": weights, "teacher": teacher}
    if not file.is_file():
        write_whole(file, json.dumps(now, indent=2) + "\n")
        return
    begun = json.loads(file.read_text())
    for what, digest in now.items():
        before = begun.get(what, digest)  # the teacher is not in those of before it was kept
        if digest != before:
            raise ValueError(
                f"{folder.name} began with {what} of digest {before or 'none'}, and now it is "
                f"{digest or 'none'}: bring that back (data by ./convoy data checkout, a model by its alias, else the "
                "file), or start anew without --resume"
            )
