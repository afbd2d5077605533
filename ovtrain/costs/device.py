"""What devices can do at most: dense bf16 TFLOP/s of their data sheets, no sparsity, for MFU."""

from __future__ import annotations

import re

PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 150.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Words in torch's device names; the first that is found counts."""


def peak_tflops(device: str) -> float | None:
    """Of a device name, None where it is not known."""
    found = (p for name, p in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device))
    return next(found, None)
