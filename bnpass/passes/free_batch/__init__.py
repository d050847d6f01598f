"""A fixed batch size made free: what follows axis 0 through a network, and the plan it makes."""

from bnpass.passes.free_batch.node import Batch, Repeat, Use
from bnpass.passes.free_batch.plan import BatchPlan, common_size, plan_free_batch

__all__ = ["Batch", "BatchPlan", "Repeat", "Use", "common_size", "plan_free_batch"]
