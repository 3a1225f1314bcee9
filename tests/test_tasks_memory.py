"""The peak of memory: that it is seen, and seen again."""

import numpy as np
import pytest
import torch

from tasks.memory import PeakMemory, why_not_measurable

pytestmark = pytest.mark.skipif(bool(why_not_measurable()), reason=why_not_measurable() or "measurable")
CPU = torch.device("cpu")


def peak_mb(work_mb: int) -> float:
    with PeakMemory(CPU) as memory:
        block = torch.ones(work_mb * 2**18)  # float32
        del block
    assert memory.megabytes is not None
    return memory.megabytes


def test_a_peak_counts_although_it_is_over_when_one_looks() -> None:
    assert peak_mb(100) == pytest.approx(100, abs=15)


def test_the_second_of_two_equal_pieces_of_work_costs_as_much_as_the_first() -> None:
    def many_small_blocks() -> float:
        with PeakMemory(CPU) as memory:
            blocks = [np.ones(2**13) for _ in range(800)]  # 64 KiB each: the allocator keeps them when freed
            del blocks
        assert memory.megabytes is not None
        return memory.megabytes

    first = many_small_blocks()
    assert first == pytest.approx(50, abs=15)
    assert many_small_blocks() == pytest.approx(first, abs=15)


def test_an_earlier_higher_peak_is_forgotten() -> None:
    peak_mb(200)
    assert peak_mb(20) < 60
