"""Heads: the method's objective against class centers that are sharded over ranks."""
