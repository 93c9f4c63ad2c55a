"""Shared strictness: no silent rank promotion, and no skip where CI forbids it."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# CI sets it: there every peer and all data are at hand, so that a skip means a broken set-up.
NO_SKIPS = os.environ.get("DEID_JAX_TEST_NO_SKIPS") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although DEID_JAX_TEST_NO_SKIPS=1: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real faces and recognisers that DEID_JAX_TEST_DATA names."""
    folder = os.environ.get("DEID_JAX_TEST_DATA")
    if not folder:
        pytest.skip("DEID_JAX_TEST_DATA names no folder of real faces")
    return Path(folder)
