"""Exact and near duplicates: hashes of content and looks -> edges -> components (docs/dedup.md)."""
