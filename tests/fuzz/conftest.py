"""How hypothesis searches here: as many examples as FUZZ_EXAMPLES says, and no deadline on a busy machine."""

from __future__ import annotations

from attempt import EXAMPLES
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fuzz")
