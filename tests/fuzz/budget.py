"""How many examples a fuzz test draws: a few hundred in the normal run, thousands with LLM_NEO_FUZZ=thorough."""

import os

from hypothesis import HealthCheck, Phase, settings

THOROUGH = os.environ.get("LLM_NEO_FUZZ") == "thorough"


def examples(normal: int, thorough: int, *, shrink: bool = True) -> settings:
    """Settings for a fuzz test; nothing is remembered between runs.

    Args:
        shrink: look for the smallest failing example; not where each takes seconds.
    """
    return settings(
        max_examples=thorough if THOROUGH else normal,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
