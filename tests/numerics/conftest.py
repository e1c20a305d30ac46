from functools import lru_cache

import pytest
from hypothesis import HealthCheck, settings

from precision_lab.numerics import reference

# the first example of a kernel may wait seconds for its compilation
settings.register_profile("compiled", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("compiled")


@pytest.fixture
def places_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a number lies among the values of a format is computed once for all modes and switches."""
    monkeypatch.setattr(reference, "candidates", lru_cache(2**13)(reference.candidates))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the sweeps out unless they are asked for by name: pytest -m exhaustive."""
    if "exhaustive" in str(config.getoption("-m")):
        return
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.skip(reason="a sweep of minutes: pytest -m exhaustive"))
