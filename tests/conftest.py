"""What all tests have in common: no example of a law has a time limit, on whatever machine it is tried."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "vedette",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("vedette")
