"""Shared strictness: no rank promotion, no slow unmarked test, no skip where CI forbids it."""

import dataclasses
import os
import shutil
import signal
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Workers and the commands they start share one compilation cache, new in every session.
_OWN_CACHE = "DEID_JAX_TEST_CACHE" not in os.environ
if _OWN_CACHE:
    os.environ["DEID_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="deid_jax_tests_")
# Nor do they see or touch the user's own files.
os.environ["DEID_JAX_CACHE"] = f"{os.environ['DEID_JAX_TEST_CACHE']}/files"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["DEID_JAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", os.environ["DEID_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# A shell that starts pytest in the background makes it ignore Ctrl-C, and the commands that
# tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# CI sets it: there every peer and all data are available, so that a skip means a broken set-up.
NO_SKIPS = os.environ.get("DEID_JAX_TEST_NO_SKIPS") == "1"


# The longest that a test not marked slow may take, both by the clock and in CPU time: the clock
# alone would depend on what else the machine does.
MOST_SECONDS = 10
_CPU_SECONDS = pytest.StashKey[float]()


def pytest_unconfigure():
    if _OWN_CACHE:
        shutil.rmtree(os.environ["DEID_JAX_TEST_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Slow tests may take longer until they count as hanging."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="module")
def light_attack():
    """Faces are attacked with transformations that compile fast."""
    from deid_jax.photos import face_attack

    with pytest.MonkeyPatch.context() as patch:
        light = dataclasses.replace(face_attack.ATTACK, processing="noise")
        patch.setattr(face_attack, "ATTACK", light)
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Drops compiled programs when a process nears its limit of memory mappings."""
    yield
    limit, maps = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > int(limit.read_text()) / 2:
        jax.clear_caches()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    begun = sum(os.times()[:4])  # Of this process and the commands that it waited for.
    try:
        return (yield)
    finally:
        item.stash[_CPU_SECONDS] = sum(os.times()[:4]) - begun


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although DEID_JAX_TEST_NO_SKIPS=1: {report.longrepr[2]}"
    slow = item.get_closest_marker("slow") or item.config.option.usepdb
    if report.passed and call.when == "call" and not slow:
        seconds = min(call.duration, item.stash[_CPU_SECONDS])
        if seconds > MOST_SECONDS:
            report.outcome = "failed"
            report.longrepr = f"{seconds:.0f} s: make this test faster or mark it slow"
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
def wild_photos() -> Path:
    """celeba_wild/photos/<person>/*.jpg, whole photos; landmarks.csv beside `photos`."""
    return _real("celeba_wild")


@pytest.fixture(scope="session")
def recogniser_files() -> dict[str, Path]:
    """NAME -> recognisers/NAME.npz."""
    names = ("mobilefacenet_ms1m", "mobilefacenet_casia")
    return {name: _real("recognisers") / f"{name}.npz" for name in names}
