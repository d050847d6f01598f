"""The torch frontend: nn.Module, torch.fx.GraphModule or ExportedProgram <-> the neutral view.

``tracing`` makes a GraphModule, ``info`` finds its shapes, ``inplace`` makes writes explicit,
``read`` builds the view with the rows of ``vocabulary``, ``apply`` and ``inserting`` carry a plan out.
"""

from __future__ import annotations

from bnpass.frontends.fx.transform import fx_collapse, fx_fold, fx_insert, fx_inspect, fx_strip

__all__ = ["fx_collapse", "fx_fold", "fx_insert", "fx_inspect", "fx_strip"]
