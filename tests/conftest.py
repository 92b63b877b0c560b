"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A deadline would be a timing assertion. The same examples run everywhere, so a red run can be repeated.
settings.register_profile(
    "headrace", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headrace")
