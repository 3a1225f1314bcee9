"""What every parameter model has in common: frozen, closed to unknown names, and clear about bad values."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from data.address import has_secret, public_url


class Parameters(BaseModel):
    """Base of every configuration: immutable, finite, and an unknown name is an error rather than a silent no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Build from plain values; raises a ValueError of one line per fault, each naming `where` and the key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = error.errors()
            kept = [fault for fault in faults if not _follows(fault, faults)]
            raise ValueError("\n".join(describe(fault, cls, where) for fault in kept)) from None


def describe(fault: Any, model: type[BaseModel], where: str) -> str:
    """One line for one pydantic fault: what was wrong, what we got, what is allowed."""
    key = ".".join([where, *(str(part) for part in fault["loc"])]).strip(".")
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        meant = _meant(".".join(str(part) for part in fault["loc"]), model)
        return f"{key} is not a parameter; known here: {', '.join(sorted(known))}{meant}"
    if fault["type"] == "missing":
        return f"{key} is required"
    if fault["type"] == "model_type":
        names = ", ".join(sorted(_fields_at(model, fault["loc"])))
        return f"{key} (={fault['input']!r}) is a section: change one of its parameters, {names}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "literal_error":
        message += did_you_mean(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    if isinstance(fault["input"], dict):  # a check across fields names what it means itself
        return f"{key}: {message}".removeprefix(": ")
    if fault["type"] in ("tuple_type", "list_type"):  # which says nothing of what is in it
        message += _description(model, fault["loc"])
    given = fault["input"]
    shown = public_url(given) if isinstance(given, str) and has_secret(given) else given
    return f"{key} (={shown!r}): {message}"


def _description(model: type[BaseModel], location: tuple[Any, ...]) -> str:
    """`; it is …`, of the parameter at or above a location, or nothing."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return f"; it is {field.description}" if field.description else ""
        model = field.annotation
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean resnet18?`, for the end of an error, or nothing where no known name is like this one."""
    of_lower = {each.lower(): each for each in known}
    likely = get_close_matches(name.lower(), of_lower, 1)
    return f"; did you mean {of_lower[likely[0]]}?" if likely else ""


def _follows(fault: Any, faults: list[Any]) -> bool:
    """Whether a list is called too short only because of items that are named as faults themselves."""
    depth = len(fault["loc"])
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == fault["loc"] for other in faults
    )


def _meant(key: str, model: type[BaseModel]) -> str:
    """`; did you mean train.epochs?`, or nothing: the key of that last name elsewhere, else the one most like it.

    A name and its initials are like each other: learning_rate and lr.
    """
    keys = list(_keys(model))
    section, _, last = key.rpartition(".")
    likely = [each for each in keys if _last(each) == last]
    if not likely:
        short = [each for each in keys if last in _initials(_last(each)) or _last(each) in _initials(last)]
        likely = [each for each in short if each.rpartition(".")[0] == section] or short
    if not likely:
        likely = get_close_matches(key, keys, 1)
        if section:  # which would make any key of the same section alike
            likely = [each for each in likely if get_close_matches(last, [_last(each)])]
    return f"; did you mean {' or '.join(likely)}?" if likely else ""


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(name: str) -> list[str]:
    """`["wd"]` of weight_decay; none of a single word."""
    words = name.split("_")
    return ["".join(word[:1] for word in words)] if len(words) > 1 else []


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)
