"""Shared strictness: no silent rank promotion, and no skip where CI forbids it."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Workers and binaries started by tests share what any of them has compiled. Made anew for every
# session, so that nothing old is tested.
_OWN_CACHE = "DEID_JAX_TEST_CACHE" not in os.environ
if _OWN_CACHE:
    os.environ["DEID_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="deid_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["DEID_JAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", os.environ["DEID_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# CI sets it: there every peer and all data are at hand, so that a skip means a broken set-up.
NO_SKIPS = os.environ.get("DEID_JAX_TEST_NO_SKIPS") == "1"


def pytest_unconfigure():
    if _OWN_CACHE:
        shutil.rmtree(os.environ["DEID_JAX_TEST_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Slow tests may take longer until they count as hanging."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Compiled programs go with their module.

    Each maps memory several times, and Linux ends a process that maps too often.
    """
    yield
    jax.clear_caches()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although DEID_JAX_TEST_NO_SKIPS=1: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A module that skips as a whole, for want of a peer, is a skip too."""
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped although DEID_JAX_TEST_NO_SKIPS=1: {report.longrepr[2]}"
    return report


def _real(name: str) -> Path:
    """A folder below the one that DEID_JAX_TEST_DATA names."""
    folder = Path(os.environ.get("DEID_JAX_TEST_DATA", "")) / name
    if not folder.is_dir():
        pytest.skip(f"DEID_JAX_TEST_DATA names no folder that holds {name}")
    return folder


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """celeba30_align/<person>/*.jpg."""
    return _real("celeba30_align")


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """celeba_photos/*.jpg, whole photos."""
    return _real("celeba_photos")


@pytest.fixture(scope="session")
def recogniser_files() -> dict[str, Path]:
    """NAME -> recognisers/NAME.npz."""
    names = ("mobilefacenet_ms1m", "mobilefacenet_casia")
    return {name: _real("recognisers") / f"{name}.npz" for name in names}
