"""What is counted stands in the singular and in the plural."""

import pytest

from data.counting import counted, singular


def test_one_is_told_from_several() -> None:
    assert [counted(num, "face") for num in (0, 1, 2000)] == ["0 faces", "1 face", "2,000 faces"]
    assert [counted(num, "person", "people") for num in (1, 2)] == ["1 person", "2 people"]


@pytest.mark.parametrize(
    ("several", "one"),
    [
        ("entries", "entry"), ("test boxes", "test box"), ("classes", "class"), ("identities", "identity"),
        ("test pictures", "test picture"), ("files", "file"), ("volumes", "volume"), ("split", "split"),
    ],
)  # fmt: skip
def test_the_singular_of_what_checks_count(several: str, one: str) -> None:
    assert singular(several) == one
