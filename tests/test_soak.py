"""A soak in small: flows in a row and at once leave nothing but what they store, and how that is told."""

import os
import subprocess
import sys

import pytest

from benchmarks.soak import growth, slope
from tasks.paths import ROOT

ROWS = [{"flows": 10.0 * n, "kept": 100.0, "lost": 100.0 + 4 * n, "square": 1.0 * n * n} for n in range(1, 9)]


def test_a_slope_is_of_a_hundred_flows_and_leaves_the_warm_up_out() -> None:
    assert slope(ROWS, "kept") == pytest.approx((0, 0))
    assert slope(ROWS, "lost") == pytest.approx((40, 0))  # 4 in 10 flows
    cold = [{**row, "lost": 0.0} if row["flows"] < 30 else row for row in ROWS]
    assert slope(cold, "lost") == pytest.approx((40, 0))
    # in the six rows left, 1, -1, 1, -1, 1, -1 beside the line: scipy.stats.linregress gives the same
    rough = [{**row, "lost": row["lost"] + (-1) ** n} for n, row in enumerate(ROWS)]
    assert slope(rough, "lost") == pytest.approx((38.28571429, 5.59883370), rel=1e-6)


def test_growth_is_of_one_flow_in_the_first_and_in_the_second_half() -> None:
    assert growth(ROWS, "lost") == pytest.approx((0.4, 0.4))
    assert growth(ROWS, "square") == pytest.approx(((25 - 1) / 40, (64 - 25) / 30))


@pytest.mark.slow
def test_flows_in_a_row_and_at_once_leave_nothing_but_what_they_store() -> None:
    options = ["--flows", "60", "--every", "5", "--commands", "2", "--parallel", "4"]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CONVOY_"))}
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", *options], env={**own, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
