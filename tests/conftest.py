"""The table of deviations: what comparisons with recorded runs found, one line each, at the end of `pytest -s` or `pytest -v`."""

import math

import pytest

FOUND = pytest.StashKey[dict[str, tuple[float, float]]]()  # case -> (largest deviation, tolerance)


def pytest_configure(config):
    config.stash[FOUND] = {}


@pytest.fixture(scope="session")
def deviation(pytestconfig):
    """`deviation(case, found, tolerance)` asserts found <= tolerance, and keeps the case's largest for the table."""
    kept = pytestconfig.stash[FOUND]

    def check(case: str, found: float, tolerance: float) -> None:
        found = float(found)
        before = kept.get(case, (0.0, tolerance))
        if math.isnan(found) or _ratio(found, tolerance) >= _ratio(*before):
            kept[case] = (found, tolerance)
        assert found <= tolerance, f"{case}: {found:.2e} is more than {tolerance:.0e}"

    return check


def _ratio(found: float, tolerance: float) -> float:
    return found / tolerance if tolerance else math.copysign(math.inf, found) if found else 0.0


def pytest_terminal_summary(terminalreporter, config):
    kept = config.stash[FOUND]
    if not kept or (config.getoption("capture") != "no" and config.get_verbosity() < 0):
        return
    width = max(map(len, kept))
    terminalreporter.section("deviations from recorded runs")
    terminalreporter.write_line(f"{'case':<{width}}  largest  tolerance  ratio")
    for case, (found, tolerance) in sorted(kept.items()):
        note = "" if found <= tolerance else "  TOO LARGE"
        ratio = _ratio(found, tolerance)
        terminalreporter.write_line(f"{case:<{width}}  {found:7.1e}  {tolerance:9.1e}  {ratio:5.2f}{note}")
