"""Serving: one base in memory, every variant of a store, mixed in one batch."""
