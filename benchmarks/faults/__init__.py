"""A campaign of faults: short real training runs, disturbed at random moments, and judged.

docs/faults.md says what is done and what counts.
"""
