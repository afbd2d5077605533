"""Clustering's costs: the published sizes, and that each bound bites where it should."""

from dataclasses import replace

import pytest

from ovtrain.costs import clustering as costs
from ovtrain.costs.device import DEVICES, find_device

IMAGE = costs.Problem(650_000_000, 1024, 2_000_000)
VIDEO = costs.Problem(100_900_000, 8192, 400_000)
H200 = costs.Machine(1, 600, 141, 4800, 450, disk_gbs=10)


def test_one_pass_of_the_papers_image_clusters_takes_1_23_h200_hours():
    cost = costs.label_pass(IMAGE, H200)
    assert cost.flops == pytest.approx(2.66e18, rel=2e-3)
    assert cost.total_s / 3600 == pytest.approx(1.23, rel=5e-3)
    assert (cost.bound, cost.sent) == ("products", 0)
    assert cost.read == pytest.approx(1.33e12, rel=2e-3)
    memory = costs.center_memory(IMAGE, costs.layout(IMAGE, H200))
    assert memory["bfloat16"] == pytest.approx(4.1e9, rel=2e-3)


def test_one_pass_of_the_papers_video_clusters():
    cost = costs.label_pass(VIDEO, H200)
    assert cost.flops == pytest.approx(6.6e17, rel=5e-3)
    assert costs.feature_bytes(VIDEO.samples, VIDEO.width) == pytest.approx(1.65e12, rel=3e-3)
    held = costs.center_memory(VIDEO, costs.layout(VIDEO, H200))
    assert held["bfloat16"] == pytest.approx(6.6e9, rel=8e-3)


def test_the_teachers_flops_are_the_published_ones():
    # ViT-H/14 at 224 pixels: 167 G multiply-adds (open_clip's table, image tower: 162 to 167)
    assert costs.tower_flops("vit-h-14") / 2e9 == pytest.approx(167, rel=0.02)


def test_stores_take_what_their_arrays_hold():
    assert costs.label_bytes(48, 5) == 48 * (8 + 8) + 240 * (4 + 4)
    assert costs.centroid_bytes(8, 100) == 3200


def test_work_divides_over_devices_and_centers_over_shards():
    eight = replace(H200, devices=8, disk_gbs=1e9)
    flat, sharded = costs.Layout(8, 1, 1), costs.Layout(2, 4, 1)
    one, other = (costs.search_pass(IMAGE, eight, placed, sums=True) for placed in (flat, sharded))
    assert one.flops == other.flops
    assert one.compute_s == other.compute_s == pytest.approx(one.flops / 8 / 600e12)
    keys = 16 * IMAGE.samples
    assert (other.read - keys) == 4 * (one.read - keys)  # each rank of a group reads its samples
    sums = 8 * IMAGE.clusters * IMAGE.width
    assert one.sent == pytest.approx(2 * 7 / 8 * sums)
    assert other.sent == pytest.approx(2 / 2 * sums / 4 + 2 * 3 / 4 * 8 * IMAGE.samples / 2)
    labels = costs.search_pass(IMAGE, eight, sharded, top=10)
    assert labels.sent == 8 * 10 * IMAGE.samples / 2 * 3
    memory = [sum(costs.center_memory(IMAGE, placed).values()) for placed in (flat, sharded)]
    blocks = costs.BLOCK_BYTES * costs.BLOCK_NUMBERS
    assert (memory[0] - blocks) == 4 * (memory[1] - blocks) == 24 * IMAGE.clusters * IMAGE.width


def test_centers_take_the_fewest_shards_that_fit_then_ranges():
    machine = replace(H200, devices=12)
    assert costs.layout(IMAGE, machine) == costs.Layout(12, 1, 1)
    small = replace(machine, memory_gb=24)  # 49.2 GB of centers; 18 of a device are for them
    assert costs.layout(IMAGE, small) == costs.Layout(4, 3, 1)
    assert costs.layout(IMAGE, replace(small, devices=2)) == costs.Layout(1, 2, 2)
    assert costs.layout(IMAGE, small, center_shards=1) == costs.Layout(12, 1, 3)
    once, thrice = (
        costs.search_pass(IMAGE, small, costs.Layout(12, 1, ranges), sums=True) for ranges in (1, 3)
    )
    keys = 16 * IMAGE.samples
    assert (thrice.read - keys) == 6 * (once.read - keys)  # three to search, three to add up


@pytest.mark.parametrize(
    ("machine", "bound"),
    [
        (H200, "products"),
        (replace(H200, disk_gbs=0.1), "disk"),
        (replace(H200, memory_gbs=1), "memory"),
        (replace(H200, devices=8, exchange_gbs=0.01), "exchange"),
    ],
)
def test_the_slowest_part_bounds_a_pass(machine, bound):
    cost = costs.kmeans_plan(IMAGE, machine).iteration
    assert cost.bound == bound
    slowest = max(cost.compute_s, cost.memory_s, cost.disk_s)
    assert cost.total_s == slowest + cost.exchange_s


def test_k_means_is_its_iterations_and_one_pass_that_assigns():
    plan = costs.kmeans_plan(IMAGE, H200, iterations=20, restarts=3)
    product = 2.0 * IMAGE.samples * IMAGE.width * IMAGE.clusters
    adds = IMAGE.samples * IMAGE.width
    assert plan.flops == pytest.approx(3 * (21 * product + 20 * adds))
    assert plan.bytes == 3 * (21 * 2 * adds + 20 * 16 * IMAGE.samples)
    assert plan.seconds == pytest.approx(63 * 1.232 * 3600, rel=1e-3)


def test_cells_save_most_of_the_products():
    flat = costs.kmeans_plan(IMAGE, H200, iterations=20)
    cells = costs.kmeans_plan(IMAGE, H200, iterations=20, coarse=1400)
    numbers = 2.0 * IMAGE.samples * IMAGE.width
    inside = 21 * (1400 + IMAGE.clusters / 1400)
    assert cells.flops == pytest.approx(numbers * (inside + IMAGE.clusters), rel=1e-3)
    assert cells.seconds < flat.seconds / 10


def test_decoding_may_bound_the_feature_pass():
    frame = costs.tower_flops("vit-h-14")
    free = costs.feature_pass(VIDEO, H200, frame, frames=8)
    assert free.total_s == pytest.approx(VIDEO.samples * 8 * frame / 600e12)
    bound = costs.feature_pass(VIDEO, H200, frame, frames=8, decoded_per_s=100)
    assert bound.total_s == VIDEO.samples / 100


def test_devices_are_found_by_their_names():
    assert find_device("h100-pcie") == DEVICES["H100 PCIe"]
    assert find_device("NVIDIA A100-SXM4-80GB") == DEVICES["A100"]
    assert find_device("NVIDIA GeForce RTX 4090") == DEVICES["RTX 4090"]
    assert find_device("gh200") == DEVICES["GH200"]
    assert find_device("h20") is find_device("cpu") is None
