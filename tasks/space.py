"""What a search may change: for some parameters a range or a choice, by a notation for the command line.

    optim.weight_decay=0..0.1          a range, evenly
    optim.lr=log:1e-4..1e-1            a range, evenly in its logarithm
    train.batch_size=log:16..256       whole numbers, since the parameter is one
    model.name=lenet5,resnet8_cifar    a choice; [[1, 1], [0.3, 1]] where the values are lists

Every value is held against the family's own parameters before anything starts.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field

from data.parameters import Parameters

# They decide where a trial runs, how it is looked at, or by which dice, not what it learns.
NOT_SEARCHED = (
    "dataset", "evaluate", "transfer.weights", "distil.teacher", "train.seed", "train.num_workers",
    "train.min_workers", "train.cpus_per_worker", "train.gpus_per_worker", "train.augment_workers",
    "train.data_mode", "train.data_gb", "train.checkpoint_every_steps", "train.validate_every_epochs",
)  # fmt: skip
EXAMPLE = "optim.lr=log:1e-4..1e-1, optim.momentum=0.8..0.99 or model.name=lenet5,resnet8_cifar"
Config = TypeVar("Config", bound=Parameters)
SearchMetric = Literal["val_accuracy", "val_loss", "val_ap"]
Value = Any  # of a parameter: a number, a text, a switch, or a list of them


class SearchConfig(Parameters):
    """How a space is searched, and for how long."""

    trials: int = Field(ge=1, description="sets of values to try, those that are stopped early included")
    metric: SearchMetric = Field(
        description="what a better trial is: higher val_accuracy (of detectors val_ap) or lower val_loss, at its last "
        "validation"
    )
    reduction: int = Field(
        ge=2, description="after 1, reduction, reduction², … validations the best in so many trials goes on"
    )
    seed: int = Field(
        ge=0, description="decides what is suggested; trials train by train.seed. With one trial at a time, "
        "the same seed suggests the same"
    )  # fmt: skip
    max_concurrent: int = Field(ge=0, description="trials at a time; 0: as many as the cluster holds")
    time_budget_s: float = Field(
        ge=0, description="seconds of trials, over all attempts, after which none goes on; 0: none"
    )


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; `whole` ones where the parameter is an int."""

    low: float
    high: float
    log: bool
    whole: bool

    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def holds(self, value: Value) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """Some values, none better than another from the start."""

    options: tuple[Value, ...]

    def ends(self) -> tuple[Value, ...]:
        return self.options

    def holds(self, value: Value) -> bool:
        return value in self.options


Space = dict[str, Span | Choice]  # dotted key → where its values come from


def parse_space(texts: Sequence[str], config: Parameters) -> Space:
    """The space that `texts` describe, around the parameters `config`, which stand for all that is not searched.

    Raises ValueError for a text that is not KEY=RANGE or KEY=A,B, an unknown key, one given twice or that is not to be
    searched, and for a range or choice of which an end or an option is refused by the parameters.
    """
    if not texts:
        raise ValueError(f"a search needs at least one --space, such as {EXAMPLE}")
    space: Space = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"--space {text!r} must be KEY=RANGE or KEY=A,B, such as {EXAMPLE}")
        if key in space:
            raise ValueError(f"--space gives {key} twice")
        if any(key == name or key.startswith(f"{name}.") for name in NOT_SEARCHED):
            raise ValueError(f"--space {text!r}: {key} is not to be searched; set it with --set")
        try:
            space[key] = parse_values(value, current(config, key))
            for end in space[key].ends():
                changed(config, {key: end})
        except ValueError as error:
            raise ValueError(f"--space {text!r}: {error}") from None
    return space


def current(config: Parameters, key: str) -> Value:
    """The value of a dotted key; raises ValueError where there is no such parameter, or it is a section."""
    found: Any = config
    for name in key.split("."):
        if not isinstance(found, Parameters) or name not in type(found).model_fields:
            changed(config, {key: None})  # says what is known there, and what may be meant
        found = getattr(found, name)
    if isinstance(found, Parameters):
        names = ", ".join(f"{key}.{name}" for name in type(found).model_fields)
        raise ValueError(f"{key} is a section; search one of {names}")
    return found


def parse_values(value: str, present: Value) -> Span | Choice:
    """A range, which `..` tells from a choice."""
    if ".." in value:
        return parse_span(value, present)
    options = read(value)
    if len(options) < 2:
        raise ValueError(
            "it leaves no choice: give several values with commas between them, or a range LOW..HIGH"
        )
    plain = [json.dumps(option, sort_keys=True) for option in options]
    if len(set(plain)) < len(plain):
        raise ValueError("it names a value twice")
    return Choice(tuple(options))


def parse_span(value: str, present: Value) -> Span:
    scale, colon, bounds = value.rpartition(":")
    if isinstance(present, bool) or not isinstance(present, int | float):
        raise ValueError(f"{present!r} is no number, so give values with commas between them")
    if colon and scale != "log":
        raise ValueError(f"{scale}: is no scale; a range is LOW..HIGH or log:LOW..HIGH")
    try:
        low, high = (float(bound) for bound in bounds.split(".."))
    except ValueError:
        raise ValueError("a range is LOW..HIGH, two numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the range must rise (got {low:g} to {high:g})")
    if colon and low <= 0:
        raise ValueError(f"a logarithmic range must begin above 0 (got {low:g})")
    if not isinstance(present, int):
        return Span(low, high, bool(colon), whole=False)
    if not (low.is_integer() and high.is_integer()):
        raise ValueError(f"the parameter is a whole number (got {low:g} to {high:g})")
    return Span(int(low), int(high), bool(colon), whole=True)


def read(listed: str) -> list[Value]:
    """Values with commas between them, in brackets or not."""
    try:
        options = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError:
        raise ValueError("the values are not valid YAML") from None
    if len(options) == 1 and isinstance(options[0], list):
        [options] = options
    return [number(option) if isinstance(option, str) else option for option in options]


def number(text: str) -> float | str:
    """1e-3 is a number, which YAML 1.1 reads as a text."""
    try:
        return float(text)
    except ValueError:
        return text


def changed(config: Config, changes: Mapping[str, Value]) -> Config:
    """The parameters with other values for some dotted keys; raises ValueError, one line a fault."""
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        section = values
        *path, name = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ValueError(f"{key} is not a parameter; {part} is one, and has none below it")
        section[name] = value
    return type(config).parse(values, "")


def own_values(config: Parameters, space: Space) -> dict[str, Value] | None:
    """The parameters' own values of what is searched; None if the space leaves one of them out."""
    plain = config.model_dump(mode="json")
    values: dict[str, Value] = {}
    for key, values_of in space.items():
        found = plain
        for name in key.split("."):
            found = found[name]
        if not values_of.holds(found):
            return None
        values[key] = found
    return values


def end_configs(config: Config, space: Space) -> Iterator[Config]:
    """The parameters at each end of each range, and at each option, the others as they are."""
    for key, values in space.items():
        for end in values.ends():
            yield changed(config, {key: end})
