"""How many examples a fuzz test draws: a few hundred in the normal run, thousands with LLM_NEO_FUZZ=thorough."""

import os

from hypothesis import HealthCheck, settings

THOROUGH = os.environ.get("LLM_NEO_FUZZ") == "thorough"


def examples(normal: int, thorough: int) -> settings:
    """Settings for a fuzz test; nothing is remembered between runs."""
    return settings(
        max_examples=thorough if THOROUGH else normal,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
