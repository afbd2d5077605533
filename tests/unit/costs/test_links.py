"""Time of collectives over the links of a node and between nodes."""

import pytest

from ovtrain.costs import links
from ovtrain.costs.links import ACHIEVED, LATENCY, Links

CLUSTER = Links(nodes=16, per_node=8, node_gbs=200, network_gbs=100)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    payload = 10**9
    both = links.seconds({"reduce_scatter": payload, "all_gather": payload}, 2, CLUSTER)
    assert links.seconds({"all_reduce": payload}, 2, CLUSTER) == pytest.approx(both)


def test_a_gather_crosses_each_kind_of_link_once():
    spent = links.seconds({"all_gather": 10**9}, 0, CLUSTER)
    assert spent["node"] == pytest.approx(7 / 8 / (ACHIEVED * 200))
    assert spent["network"] == pytest.approx(15 / 16 / (ACHIEVED * 100))
    assert links.node_bytes("all_gather", 16, 16) == 15


def test_links_that_a_job_does_not_have_take_no_time():
    assert links.seconds({"all_reduce": 10**9}, 9, Links(1, 1, 200, 100)) == {
        "node": 0.0,
        "network": 0.0,
    }
    assert links.seconds({"all_reduce": 10**9}, 9, Links(1, 8, 200, 100))["network"] == 0
    assert links.seconds({"all_reduce": 10**9}, 9, Links(4, 1, 200, 100))["node"] == 0


def test_every_call_has_a_latency():
    spent = links.seconds({}, 10, CLUSTER)
    assert spent == {kind: 10 * each for kind, each in LATENCY.items()}


@pytest.mark.parametrize(
    ("tensor_ranks", "data", "tensor"),
    [
        # Eight GPUs a node: in each two tensor groups of four, and two members of four data groups.
        (4, Links(16, 2, 200, 25), Links(1, 4, 200, 50)),
        (8, Links(16, 1, 200, 12.5), Links(1, 8, 200, 100)),
        (1, CLUSTER, CLUSTER),
        # Wider than a node: a tensor group has two to itself.
        (16, Links(8, 1, 200, 12.5), Links(2, 8, 200, 100)),
    ],
)
def test_groups_of_a_kind_share_the_networks_of_their_nodes(
    tensor_ranks: int, data: Links, tensor: Links
):
    assert links.of_group(CLUSTER, "data", tensor_ranks) == data
    assert links.of_group(CLUSTER, "tensor", tensor_ranks) == tensor
    assert links.of_group(CLUSTER, "world", tensor_ranks) == CLUSTER


@pytest.mark.parametrize("tensor_ranks", [3, 6])
def test_data_groups_that_lie_across_nodes_use_the_network(tensor_ranks: int):
    found = links.of_group(Links(3, 8, 200, 100), "data", tensor_ranks)
    assert found.nodes == 3


def test_data_groups_side_by_side_take_the_network_as_long_as_all_ranks_together():
    """Each of four groups sends a quarter, with a quarter of the network."""
    whole = links.seconds({"all_gather": 4 * 10**9}, 0, CLUSTER)["network"]
    part = links.seconds({"all_gather": 10**9}, 0, links.of_group(CLUSTER, "data", 4))["network"]
    assert part == pytest.approx(whole)
