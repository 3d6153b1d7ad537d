"""Rankers: feature rows in, one score a row out. Training them is the business of ``learning``."""
