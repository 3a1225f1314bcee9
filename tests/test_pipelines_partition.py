"""A network that is cut between two nodes, while all others reach both.

In a file of its own: the machines of tests/test_pipelines_clusters.py live as long as that file, and one process has
one set of machines at a time.
"""

from pathlib import Path

import pytest

from tests.namespaces import hindrance, machines, wait_for_port
from tests.test_pipelines_clusters import TRAIN, convoy, finish, sets


@pytest.mark.slow
@pytest.mark.chaos
def test_two_nodes_that_do_not_reach_each_other_end_a_run_in_minutes(tmp_path: Path) -> None:
    """All else reaches both of them: the head, and the desk."""
    if reason := hindrance():
        pytest.skip(reason)
    with machines(4, tmp_path / "machines") as place:
        head, one, other, desk = place.nodes
        for node, num_cpus in ((head, 0), (one, 1), (other, 1), (desk, 0)):
            place.join(node, num_cpus)
            if node is head:
                wait_for_port(*place.ray_address.split(":"))
        place.wait_for_nodes(4)
        convoy(place, "data", "add", "sklearn:digits", "--name", "digits", "--family", "classification")
        one.part_from(other)
        other.part_from(one)
        code, _, err = finish(place.popen(*TRAIN, *sets()))  # which waits for COMMAND_S
        assert code == 1, err
        assert (
            "the workers' nodes did not reach each other, which they must on all ports"
            in err.splitlines()[-1]
        )
