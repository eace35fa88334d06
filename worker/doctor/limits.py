"""Time limits of ``harvester doctor``."""

DEADLINE = 10.0
"""Seconds that one check may take."""

CALL_SECONDS = 9
"""Seconds that a call within a check may take."""
