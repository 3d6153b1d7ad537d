"""Candidates: sources that each offer items with scores and a reason, and how they are merged."""
