"""Disk contracts and grid geometry; numpy and the standard library only."""
