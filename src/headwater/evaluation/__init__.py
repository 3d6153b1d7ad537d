"""Judging lists: protocols walk the log, metrics and their intervals say how good the answers were."""
