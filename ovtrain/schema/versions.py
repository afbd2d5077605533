"""What made a file counts as an input of it: raised when the same inputs give other outputs."""

GENERATOR = 3
"""Of the generated clips."""
PIPELINE = 4
"""Of shards made from the same videos with the same settings."""
