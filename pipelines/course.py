"""The course of a run on its way to its record."""

from collections.abc import Mapping

from tasks import registry
from tasks.loop import Progress

CLOCK = ("images_per_s", "input_wait", "iteration_s")  # what the same step says otherwise each time


def values_of(progress: Progress) -> dict[str, float]:
    """What of a message is kept in the record."""
    return {
        **progress.metrics,
        "lr": progress.lr,
        "images_per_s": progress.images_per_s,
        "input_wait": progress.input_wait,
        "epoch": progress.epoch,
    }


class Course:
    """Logs what a run says on its way, but no step that its record has.

    A run that goes on repeats the steps since its checkpoint, and so does one whose process Ray has started again: the
    record would have them twice. What it has of them stands, but for what a kill has kept from it: the validation of
    the last step that it has.
    """

    def __init__(self, run_id: str, again: bool, mark: str = "epoch") -> None:
        """`again`: an earlier attempt may have logged something; `mark`: a metric that all messages have."""
        self.run_id, self.mark = run_id, mark
        self.newest = registry.logged_before(run_id) if again else {}
        self.begin()

    @property
    def newest_step(self) -> int:
        """The last step that the record has; -1: none."""
        step, _ = self.newest.get(self.mark, (-1, 0.0))
        return step

    def begin(self) -> None:
        """The first step is about to be taken, for the first time or again."""
        self.last = self.newest_step
        self.repeated: Mapping[str, float] | None = None

    def hear(self, step: int, values: Mapping[str, float]) -> None:
        """Log what is said of a step, unless the record has it; the mark is among `values`."""
        if self.last < step < self.newest_step:
            self.begin()  # nobody has told of a start, as with trials of a search
        if step > self.last:
            self.end()
            self.log(step, values)
        elif step == self.last:
            self.repeated = values  # a step may be told of twice: of the last message is its validation

    def end(self) -> None:
        """Log the last step that the record has, if it is not all there. To be called when the run has ended, too."""
        values, self.repeated = self.repeated, None
        if values is not None:
            self.log(self.last, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step, unless the record has them all."""
        kept = as_kept(values)
        if any(self.newest.get(name) != (step, value) for name, value in kept.items() if name not in CLOCK):
            registry.log_progress(self.run_id, step, values)
            self.newest |= {name: (step, value) for name, value in kept.items()}


def as_kept(values: Mapping[str, float]) -> dict[str, float]:
    """The values by the names that MLflow has them by."""
    return dict(zip(registry.metric_names([*values]), values.values(), strict=True))
