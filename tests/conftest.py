"""What tests say at the end, whichever worker they ran in: lines of their own, and, with `pytest -s` or `-v`, the table of deviations
that comparisons with recorded runs found."""

import math
import os
import sys
from functools import partial

import pytest

# Read when torch is imported: two workers of two threads each would take turns on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Properties of a test, which travel with its report from the workers to the process that prints.
DEVIATION = "deviation"  # (case, what was found, tolerance)
SAID = "said"  # a line


@pytest.fixture
def deviation(record_property):
    """`deviation(case, found, tolerance)` asserts found <= tolerance, and keeps the case's largest for the table."""

    def check(case: str, found: float, tolerance: float) -> None:
        found = float(found)
        record_property(DEVIATION, (case, found, tolerance))
        assert found <= tolerance, f"{case}: {found:.2e} is more than {tolerance:.0e}"

    return check


@pytest.fixture
def said(record_property):
    """`said(line)` prints the line at the end of the run."""
    return partial(record_property, SAID)


class Summary:
    """Collects both from the reports, and prints them."""

    def __init__(self, config):
        self.config = config
        self.kept: dict[str, tuple[float, float]] = {}  # case -> (largest deviation, tolerance)
        self.said: dict[str, None] = {}

    def pytest_runtest_logreport(self, report):
        self.said |= dict.fromkeys(value for key, value in report.user_properties if key == SAID)
        for case, found, tolerance in (value for key, value in report.user_properties if key == DEVIATION):
            before = self.kept.get(case, (0.0, tolerance))
            if math.isnan(found) or _ratio(found, tolerance) >= _ratio(*before):
                self.kept[case] = (found, tolerance)

    def pytest_terminal_summary(self, terminalreporter):
        config = self.config
        for line in self.said:
            terminalreporter.write_line(line)
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
    config.pluginmanager.register(Summary(config))
    cache = getattr(config, "cache", None)
    if sys.dont_write_bytecode and cache:
        # Otherwise each of the processes that tests start would compile all of torch again.
        os.environ["PYTHONPYCACHEPREFIX"] = str(cache.mkdir("bytecode"))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
