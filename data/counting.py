"""Numbers with what they count, as a person reads them."""

ENDS = (("ies", "y"), ("xes", "x"), ("sses", "ss"), ("s", ""))  # of several, and of one: the first that fits


def counted(num: int, one: str, several: str = "") -> str:
    """`1 face`, `2 faces`; `several` where an s does not make it."""
    return f"{num:,} {one if num == 1 else several or one + 's'}"


def singular(several: str) -> str:
    """`test entry` of `test entries`, `box` of `boxes`; a word that ends otherwise as it is."""
    for end, instead in ENDS:
        if several.endswith(end):
            return several.removesuffix(end) + instead
    return several
