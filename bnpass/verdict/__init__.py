"""The verdict on a rewritten model: three questions, asked apart.

1. Is every edit right? (:mod:`bnpass.verdict.proof`, in float64, edit by edit)
2. Does the whole compute the same in float32?
3. Does onnxruntime's optimizer keep it?
"""
