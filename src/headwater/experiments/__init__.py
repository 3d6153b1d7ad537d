"""Experiments: who sees what, what was seen, and what came of it."""
