"""Ray Train's controller, which leaves its workers alone while nothing happens.

Ray Train asks each worker at a fixed interval how it is, and answers come from the process that trains. Often is well
where a run begins, reports or ends, since a report waits for the next look; in between, each look takes time that two
cores need for training.

The controller's process imports this module: torch must not come with it. What is private to Ray Train is named here,
in tasks.raytrain and in tasks.raysnapshot alone.
"""

from typing import Any

from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus
from ray.train.v2._internal.util import time_monotonic

AWAKE_S = 10.0  # after the workers began, and after a report: another one, or the end, may follow
DROWSY_INTERVAL_S = 1.0  # between two looks otherwise


class PatientTrainController(TrainController):
    """Looks every RAY_TRAIN_HEALTH_CHECK_INTERVAL_S while something may happen, and every second otherwise."""

    def __init__(self, **arguments: Any) -> None:
        self.awake_until_s = float("-inf")
        super().__init__(**arguments)
        self.awake_interval_s: float = self._health_check_interval_s

    def _start_worker_group(self, *arguments: Any, **named: Any) -> None:
        super()._start_worker_group(*arguments, **named)
        self.awake_until_s = time_monotonic() + AWAKE_S

    async def _poll_workers(self) -> WorkerGroupPollStatus:
        awake = time_monotonic() < self.awake_until_s
        drowsy_s = max(self.awake_interval_s, DROWSY_INTERVAL_S)
        self._health_check_interval_s = self.awake_interval_s if awake else drowsy_s
        status = await super()._poll_workers()
        if any(worker.training_report is not None for worker in status.worker_statuses.values()):
            self.awake_until_s = time_monotonic() + AWAKE_S
        return status
