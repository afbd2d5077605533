"""Time of collectives over two kinds of links: inside a node, and between nodes.

Hierarchical, as NCCL's trees and rings over nodes come to: n nodes of g GPUs, b bytes of payload
(``ovtrain.distributed.traffic``). An all-gather brings each GPU (g - 1) / g b over the links of its
node and each node (n - 1) / n b over the network; a reduce-scatter sends as much, an all-reduce is
both. The two kinds of links take turns.

    all_gather, reduce_scatter   (g - 1) / g b / link + (n - 1) / n b / network
    all_reduce                   twice that
    every call                   ``LATENCY`` per kind of link it uses

A node's network is shared by its GPUs; a link is one direction of one GPU's. Under tensor
parallelism ranks form groups of two kinds, all groups of a kind at work side by side: tensor groups
are neighbours, of a data group every T-th rank is a member. Those with members in the same node
share its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

ACHIEVED = 0.85
"""Share of a link's data-sheet rate that large messages reach. An assumption; nccl-tests on
reference designs print 80 to 95 %."""
LATENCY = {"node": 15e-6, "network": 40e-6}
"""Seconds of a small collective: an assumption, by the order of nccl-tests' small messages."""
PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}


@dataclass(frozen=True)
class Links:
    """GB/s: ``node_gbs`` of one GPU in one direction, ``network_gbs`` of a whole node."""

    nodes: int
    per_node: int
    node_gbs: float
    network_gbs: float


def of_group(links: Links, group: str, tensor_ranks: int) -> Links:
    """What one group of a kind has of the cluster: ``data``, ``tensor``, or ``world``."""
    inside = side_by_side(links, tensor_ranks)
    if group == "world" or tensor_ranks == 1:
        return links
    if group == "tensor":
        shared = links.network_gbs * inside / links.per_node
        return Links(tensor_ranks // inside, inside, links.node_gbs, shared)
    data_ranks, members = links.nodes * links.per_node // tensor_ranks, links.per_node // inside
    if inside not in (tensor_ranks, links.per_node):  # groups lie across nodes as they happen to
        nodes = min(data_ranks, links.nodes)
        members = -(-data_ranks // links.nodes)
        return Links(nodes, members, links.node_gbs, links.network_gbs / inside)
    return Links(data_ranks // members, members, links.node_gbs, links.network_gbs / inside)


def side_by_side(links: Links, tensor_ranks: int) -> int:
    """Ranks of a tensor group in one node: so many data groups have members there."""
    return gcd(tensor_ranks, links.per_node)


def node_bytes(kind: str, payload: float, nodes: int) -> float:
    """What a collective brings into a node from the others."""
    return PASSES[kind] * payload * (nodes - 1) / nodes


def seconds(traffic: Mapping[str, float], calls: int, links: Links) -> dict[str, float]:
    """By kind of link, of a step's collectives over all GPUs."""
    total = sum(PASSES[kind] * payload for kind, payload in traffic.items())
    found = {"node": 0.0, "network": 0.0}
    if links.per_node > 1:
        inside = total * (links.per_node - 1) / links.per_node
        found["node"] = inside / (ACHIEVED * links.node_gbs * 1e9) + calls * LATENCY["node"]
    if links.nodes > 1:
        between = sum(node_bytes(kind, payload, links.nodes) for kind, payload in traffic.items())
        found["network"] = (
            between / (ACHIEVED * links.network_gbs * 1e9) + calls * LATENCY["network"]
        )
    return found
