"""The engine: config -> parts, the step, the loop, the backends."""
