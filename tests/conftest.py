"""Fixtures that files share, and Hypothesis profiles: ``fast`` (default), ``ci``, ``deep``; choose with
HYPOTHESIS_PROFILE."""

import os

import pytest
from hypothesis import HealthCheck, settings
from sensorium import _core

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=60, **_COMMON)
settings.register_profile("deep", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(params=_core.isa_available())
def isa(request):
    """Each instruction set in turn."""
    before = _core.isa_level()
    assert _core.set_isa(request.param) == request.param
    yield request.param
    _core.set_isa(before)
