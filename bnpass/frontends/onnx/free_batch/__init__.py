"""A fixed batch size made symbolic: what follows axis 0 through a model, and the plan it makes."""

from __future__ import annotations

from bnpass.frontends.onnx.free_batch.plan import BatchPlan, free_batch, plan_batch

__all__ = ["BatchPlan", "free_batch", "plan_batch"]
