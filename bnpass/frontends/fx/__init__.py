"""The torch frontend: nn.Module, torch.fx.GraphModule or ExportedProgram <-> the neutral view.

A module of the user's is run, not traced: ``recording`` notes what two runs of it compute, on an
example and with one sample more, and who makes each call; ``anchors`` finds the module whose output
or input a value is; ``normhook`` hangs a BatchNorm there, on a copy. Only where a value lies in the
middle of a forward does ``own_graph`` trace that one module, its children as they are.

A graph that the user gives stays one: ``tracing`` copies it, ``info`` finds its shapes.

Either way ``inplace`` makes writes explicit, ``read`` builds the view with the rows of
``vocabulary``, ``apply`` and ``inserting`` carry a plan out in graphs, ``module_insert`` and
``module_fold`` in modules, and ``checking`` runs both, at other sizes, too.
"""

from __future__ import annotations

from bnpass.frontends.fx.transform import fx_collapse, fx_fold, fx_insert, fx_inspect, fx_strip

__all__ = ["fx_collapse", "fx_fold", "fx_insert", "fx_inspect", "fx_strip"]
