"""Population statistics of BatchNorms: what is pooled and how, once; an engine for each runtime.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2, steps 8 to 12. Two engines walk over
the data: :mod:`bnpass.statistics.onnx_engine` on onnxruntime, :mod:`bnpass.statistics.torch_engine`
in torch. Both take the batches of :mod:`bnpass.statistics.source` and pool them with
:mod:`bnpass.statistics.moments`, so that on one network they differ by rounding alone.
"""

from __future__ import annotations

from bnpass.statistics.moments import METHODS

__all__ = ["METHODS"]
