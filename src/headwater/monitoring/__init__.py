"""Monitoring: what is measured becomes history, history is held against alert rules, and alerts act."""
