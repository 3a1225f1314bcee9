"""Metrics for a reader: the 95% interval of a figure, kept as `NAME_low` and `NAME_high`, stands beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = ("metric", "value")  # columns of a table of metrics
WITH_INTERVALS = (*PLAIN, "95% interval")


Rows = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # a title, columns, rows


def measured_on(dataset: str, split: str, view: str) -> str:
    """What metrics are of, as their table's title; `view`: the registered one, "" where nothing was tested."""
    if not view:
        return f"{dataset}, not tested: what begins with val_ is of the validation split"
    return f"{dataset}, {split} split: the registered view is {view}"


def metric_table(title: str, metrics: Mapping[str, float]) -> Rows:
    """Title, columns and rows: one row a figure, and a column of intervals where some figure has one."""
    rows = [
        [name, value, interval_of(metrics, name)]
        for name, value in metrics.items()
        if not is_end(metrics, name)
    ]
    if not any(row[-1] for row in rows):
        return title, PLAIN, [row[:2] for row in rows]
    return title, WITH_INTERVALS, rows


def with_intervals(shown: Rows) -> Rows:
    """The same where a report's table is of metrics; any other table as it is."""
    title, columns, rows = shown
    return metric_table(title, {row[0]: row[1] for row in rows}) if tuple(columns) == PLAIN else shown


def interval_of(metrics: Mapping[str, float], name: str) -> str:
    """`0.97 to 0.99`; "" of a figure without an interval."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def is_end(metrics: Mapping[str, float], name: str) -> bool:
    """Whether a figure is an end of another one's interval."""
    whole = name.removesuffix("_low").removesuffix("_high")
    return whole != name and whole in metrics and interval_of(metrics, whole) != ""
