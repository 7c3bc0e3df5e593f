"""Tests with the marker wan are skipped, with the reason, where no emulated network can be made."""

import pytest

from tests.wan.netlab import why_not


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture starts something."""
    if item.get_closest_marker("wan") and (reason := why_not()):
        pytest.skip(reason)
