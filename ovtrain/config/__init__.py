"""Typed frozen configuration: one file per section, strict loading, every rule where it belongs."""
