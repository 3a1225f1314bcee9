"""What commands show: tables on stdout, progress on stderr, or one JSON document on stdout."""

import json
import math
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.address import without_password
from pipelines.reporting import Status, shown

FILE_WIDTH = 160  # columns of a table that goes to a file or a pipe
LINE_EVERY_S = 5.0  # between two lines of progress where stderr is not a terminal


class ConsoleReporter:
    """Shows notes and one progress bar a step on stderr; plain lines now and then where that is not a terminal.

    One thread at a time speaks.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.lock = threading.RLock()
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.step = ""
        self.last_s = 0.0
        self.line = ""  # the last one of progress

    def note(self, text: str) -> None:
        with self.lock:
            self.close()
            self.console.print(escape(shown(text)), soft_wrap=True)

    def show(self, status: Status) -> None:
        with self.lock:
            self._show(status)

    def _show(self, status: Status) -> None:
        if not self.console.is_terminal:
            self._line(status)
            return
        if status.step != self.step or self.progress is None:
            self.close()
            self._open(status)
        assert self.progress is not None and self.task is not None
        self.progress.update(
            self.task,
            completed=status.done,
            total=status.total,
            rate=status.rate,
            text=escape(shown(status.text)),
        )
        if status.over:
            self.close()

    def _open(self, status: Status) -> None:
        self.step = status.step
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True), TextColumn("left"),
            TextColumn("{task.fields[text]}"), console=self.console,
        )  # fmt: skip
        self.task = self.progress.add_task(f"{status.step:<9}", total=status.total, rate="", text="")
        self.progress.start()

    def _line(self, status: Status) -> None:
        if not status.over and status.step == self.step and time.monotonic() - self.last_s < LINE_EVERY_S:
            return
        if status.ended and str(status) == self.line:
            return
        self.step, self.last_s, self.line = status.step, time.monotonic(), str(status)
        self.console.print(escape(shown(self.line)), soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and give the line back."""
        with self.lock:
            if self.progress is not None:
                self.progress.stop()
            self.progress, self.task, self.step = None, None, ""


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table; numbers are aligned right and shortened to what a reader can use."""
    values = [list(row) for row in rows]
    view = Table(
        title=escape(shown(title)), title_justify="left", title_style="bold", header_style="bold", box=None
    )
    for i, column in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in values)
        view.add_column(escape(shown(column)), justify="right" if numeric else "left", overflow="fold")
    for row in values:
        view.add_row(*(escape(shown(cell(value))) for value in row))
    return view


def cell(value: Any) -> str:
    """A value as a reader wants it: 0.9731, 1,797, 12.4 s is left to the column's name."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return str(value)


def pairs(title: str, values: dict[str, Any]) -> Table:
    """Names and values, one a line."""
    view = table(title, ("", ""), [(name, cell(value)) for name, value in values.items()])
    view.show_header = False
    return view


def plain(value: Any) -> Any:
    """A value as JSON can hold it, without passwords: NaN and infinities become null, paths texts, tuples lists."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return without_password(str(value))


def document_text(document: Any) -> str:
    """A document as JSON text."""
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def emit(document: Any, views: Iterable[Table | str], as_json: bool) -> None:
    """Print a command's result: the tables, or with `--json` the document alone."""
    if as_json:
        sys.stdout.write(document_text(document))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_WIDTH)
    for view in views:
        console.print(escape(shown(view)) if isinstance(view, str) else view, soft_wrap=isinstance(view, str))
