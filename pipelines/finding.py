"""What a check of the doctor has seen."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one check saw, and what to do about it."""

    check: str
    state: Literal["ok", "warn", "fail"]
    seen: str
    advice: str = ""
