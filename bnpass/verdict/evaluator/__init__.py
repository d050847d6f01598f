"""An evaluator of ONNX graphs in numpy and float64: the judge of every rewrite.

It shares no code with the rules, the weights or the importer, so that a mistake there cannot hide
behind the same mistake here; it is tested against onnxruntime and torch. Floating values are
float64 whatever type the file gives them (a Cast that narrows rounds nothing); integers and bools
keep their types.
"""

from bnpass.verdict.evaluator.call import Array, Invocation, UnknownOperatorError, known
from bnpass.verdict.evaluator.run import Evaluator, compute

__all__ = ["Array", "Evaluator", "Invocation", "UnknownOperatorError", "compute", "known"]
