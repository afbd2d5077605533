"""Optimizers and schedules of the two parameter planes."""
