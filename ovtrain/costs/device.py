"""What devices can do at most, by their data sheets: dense bf16 TFLOP/s (no sparsity), memory in
GB, its bandwidth and that of the links between devices of a node in GB/s, both directions together
(NVLink where there is one, else PCIe). GB: 10^9 bytes. Beside them what a node has for each device
to reach other nodes, in GB/s and one direction, which is no property of the device: one adapter of
400 Gb/s as in the reference designs of Hopper and later, of 200 Gb/s in those of Ampere, of
100 Gb/s for cards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Device:
    """Peaks of one device; the module docstring gives the units."""

    tflops: float
    memory_gb: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float = 12.5


DEVICES = {
    "GB200": Device(2500, 186, 8000, 1800, 50),
    "B200": Device(2250, 180, 8000, 1800, 50),
    "GH200": Device(989, 96, 4000, 900, 50),
    "H200": Device(989, 141, 4800, 900, 50),
    "H100 PCIe": Device(756, 80, 2000, 128),
    "H100 NVL": Device(835, 94, 3900, 600),
    "H100": Device(989, 80, 3350, 900, 50),
    "H800": Device(989, 80, 3350, 400, 50),
    "A100": Device(312, 80, 2039, 600, 25),
    "A800": Device(312, 80, 2039, 400, 25),
    "L40S": Device(362, 48, 864, 64),
    "L4": Device(121, 24, 300, 64),
    "A40": Device(150, 48, 696, 112.5),
    "A10": Device(125, 24, 600, 64),
    "RTX 4090": Device(165, 24, 1008, 64),
    "RTX 3090": Device(71, 24, 936, 112.5),
}
"""Words in torch's device names; the first that is found counts. Where there are several models,
the larger memory of the SXM one (A100, A800: 80 GB; GH200: 96), unless the name says another."""


def find_device(name: str) -> Device | None:
    """Of a device's name, in any case, ``-`` or ``_`` for spaces; None where it is not known. A
    memory in the name (``a100-40gb``) is that of the device."""
    text = re.sub(r"[-_ ]+", " ", name)
    found = (d for words, d in DEVICES.items() if re.search(rf"\b{words}\b", text, re.IGNORECASE))
    device, size = next(found, None), re.search(r"\b(\d+) ?GB\b", text, re.IGNORECASE)
    return replace(device, memory_gb=float(size[1])) if device and size else device


def peak_tflops(name: str) -> float | None:
    """Of a device's name, None where it is not known."""
    device = find_device(name)
    return device.tflops if device else None
