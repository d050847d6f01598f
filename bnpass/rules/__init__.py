"""How a per-channel affine map crosses each kind of operator, and when that is exact.

The rules of a family live in one file; which operator has which rule says ``bnpass.ir.operators``.
"""

from __future__ import annotations

from bnpass.rules.base import MapRefusedError, Rule, RuleContext, Step

__all__ = ["MapRefusedError", "Rule", "RuleContext", "Step"]
