"""Which models an evaluation is of: what every family's report keeps of them beside the split and the machine."""

from collections.abc import Sequence

from tasks.card import ModelCard


def tested(names: Sequence[str], cards: Sequence[ModelCard]) -> dict[str, str]:
    """`models` as they were called, and `runs`, those that trained their networks, each once."""
    runs = dict.fromkeys(member.run for card in cards for member in card.members)
    return {"models": ", ".join(names), "runs": ", ".join(runs)}
