"""Evaluation of frozen encoders: embeddings, probes, ranking of pseudo-labels."""
