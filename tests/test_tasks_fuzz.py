"""Weights, models, descriptions, parameters and requests that are damaged are used, or refused by saying why."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import GOOD, Case, judge
from tests.corpus import Sound
from tests.corruption import corrupt
from tests.parsers import PARSERS

SOUND = {kind: Sound(kind, kind, make()) for kind, (make, _) in PARSERS.items()}


def end_of(kind: str, data: bytes) -> str:
    result, detail = judge(Case(0, "parser", SOUND[kind], data, "", Random(0)))
    assert result in GOOD, f"{kind}: {result}: {detail}"
    return result


@pytest.mark.parametrize("kind", list(PARSERS))
def test_what_is_not_damaged_is_used(kind: str) -> None:
    assert end_of(kind, SOUND[kind].data) == "used"


@pytest.mark.parametrize("kind", list(PARSERS))
@settings(max_examples=25)
@given(other=st.sampled_from(list(PARSERS)), seed=st.integers(0, 2**32))
def test_what_is_damaged_is_used_or_refused(kind: str, other: str, seed: int) -> None:
    data, _ = corrupt(SOUND[kind].data, Random(seed), SOUND[other].data)
    end_of(kind, data)


@pytest.mark.parametrize("kind", list(PARSERS))
@settings(max_examples=10)
@given(data=st.binary(max_size=300))
def test_noise_is_refused(kind: str, data: bytes) -> None:
    no_line = kind == "--set" and b"\n" not in data  # which changes nothing
    assert end_of(kind, data) == ("used" if no_line else "refused")
