"""Between the ranks of a training and its driver: what the run reports, and whether it is to stop.

The mailbox is a process of its own, and imports this module: torch must not come with it.
"""

from typing import Any

import ray

from tasks.nodes import beside_driver


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds what a training run reports until the driver reads it. It outlives the workers that write to it."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.has_failed = False
        self.is_stopping = False

    def put(self, message: tuple[str, Any]) -> None:
        self.messages.append(message)
        self.has_failed |= message[0] == "error"

    def take(self) -> list[tuple[str, Any]]:
        messages, self.messages = self.messages, []
        return messages

    def failed(self) -> bool:
        return self.has_failed

    def stop(self) -> None:
        self.is_stopping = True

    def stopping(self) -> bool:
        return self.is_stopping


def open_mailbox(name: str | None = None) -> Any:
    """A mailbox that ends with this driver, and that no node's loss takes away from it.

    `name` lets others see that there is one.
    """
    start: Any = Mailbox
    return start.options(name=name, scheduling_strategy=beside_driver()).remote()


def read_mailbox(mailbox: Any) -> list[tuple[str, Any]]:
    """Messages since the last call: ("start", step), ("progress", values) or ("error", exception)."""
    return ray.get(mailbox.take.remote())


class Bell:
    """A rank's view of whether the run is to stop: no call of it waits for an answer."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.question = mailbox.stopping.remote()

    def rings(self) -> bool:
        """The answer to the question of the last call, where it has come; asks the next."""
        answered, _ = ray.wait([self.question], timeout=0)
        if not answered:
            return False
        answer = bool(ray.get(self.question))
        self.question = self.mailbox.stopping.remote()
        return answer
