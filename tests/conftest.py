"""The table of deviations: what comparisons with recorded runs found, one line each, at the end of `pytest -s` or `pytest -v`."""

import math
import os

import pytest

# Read when torch is imported: two workers of two threads each would take turns on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DEVIATION = "deviation"  # a property of a test: (case, what was found, tolerance)


@pytest.fixture
def deviation(record_property):
    """`deviation(case, found, tolerance)` asserts found <= tolerance, and keeps the case's largest for the table."""

    def check(case: str, found: float, tolerance: float) -> None:
        found = float(found)
        record_property(DEVIATION, (case, found, tolerance))
        assert found <= tolerance, f"{case}: {found:.2e} is more than {tolerance:.0e}"

    return check


class Deviations:
    """Collects them from the reports of tests, which come from the workers too, and prints the table."""

    def __init__(self, config):
        self.config = config
        self.kept: dict[str, tuple[float, float]] = {}  # case -> (largest deviation, tolerance)

    def pytest_runtest_logreport(self, report):
        for case, found, tolerance in (value for key, value in report.user_properties if key == DEVIATION):
            before = self.kept.get(case, (0.0, tolerance))
            if math.isnan(found) or _ratio(found, tolerance) >= _ratio(*before):
                self.kept[case] = (found, tolerance)

    def pytest_terminal_summary(self, terminalreporter):
        config = self.config
        if not self.kept or (config.getoption("capture") != "no" and config.get_verbosity() < 0):
            return
        width = max(map(len, self.kept))
        terminalreporter.section("deviations from recorded runs")
        terminalreporter.write_line(f"{'case':<{width}}  largest  tolerance  ratio")
        for case, (found, tolerance) in sorted(self.kept.items()):
            note = "" if found <= tolerance else "  TOO LARGE"
            ratio = _ratio(found, tolerance)
            terminalreporter.write_line(f"{case:<{width}}  {found:7.1e}  {tolerance:9.1e}  {ratio:5.2f}{note}")


def _ratio(found: float, tolerance: float) -> float:
    return found / tolerance if tolerance else math.copysign(math.inf, found) if found else 0.0


def pytest_configure(config):
    config.pluginmanager.register(Deviations(config))
