"""The parts of ``benchmarks/fold.py``: the table of patterns, speed, memory, inference."""
