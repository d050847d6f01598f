"""The scale of questions 2 and 3: what is allowed, in units of the network's own noise."""

from __future__ import annotations

FACTOR = 8.0
"""How many times the noise a difference may be."""

FLOOR = 16
"""Units in the last place, at the largest magnitude of an output, that any difference may be."""

STEPPED = 1e-3
"""Share of entries behind a rounding or a comparison that may be another step."""

DEVIATIONS = 4.0
"""Standard deviations by which the number of such entries may exceed that share by chance."""

SPARE = 2
"""More such entries that may be where every edit was proven for itself: small outputs have few."""
