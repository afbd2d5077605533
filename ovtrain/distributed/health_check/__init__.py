"""Whether every device and every link of a job is sound, before it trains: docs/health_check.md."""
