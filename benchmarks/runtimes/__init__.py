"""What runs a model in the runtimes that benchmarks/compat.py installs: scripts of their own."""
