"""Checkpoints: a step directory with a manifest, written whole or not at all."""
