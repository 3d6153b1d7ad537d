"""Policies that shape what they learn from: the product on a world with known tastes, for days, in process."""

from headwater.evaluation.closed_loop.compare import Sizes, closed_loop
from headwater.evaluation.closed_loop.policies import POLICIES, Policy, delayed

__all__ = ["POLICIES", "Policy", "Sizes", "closed_loop", "delayed"]
