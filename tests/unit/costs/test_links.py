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
