"""Frontends: they build the neutral view of a model and apply a plan to it."""
