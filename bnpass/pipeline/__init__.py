"""The whole job as one function: a model and data in, a folder with the deployed model out."""

from __future__ import annotations

from bnpass.pipeline.config import LR_GRID, Listener, RunConfig
from bnpass.pipeline.run import run_pipeline

__all__ = ["LR_GRID", "Listener", "RunConfig", "run_pipeline"]
