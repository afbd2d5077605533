"""Samples by NVIDIA DALI; the only home of nvidia.dali."""
