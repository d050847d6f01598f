"""The parts of ``benchmarks/insert.py``: known models, a growing chain."""
