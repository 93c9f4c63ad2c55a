"""The forecast against a simulation, event by event, and against arithmetic by hand."""

import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from deid_jax import pods
from deid_jax._validate import InputError
from deid_jax.pods import Forecast, Job, Rates

RATES = Rates(
    device_rate=10.0,
    read_rate=100.0,
    write_rate=50.0,
    startup_seconds=40.0,
    restart_seconds=30.0,
)
JOB = Job(num_images=4000, shard_size=100, devices_per_host=4, mtbf_hours=1.0)
SHARES = ("useful_share", "waiting_share", "uneven_share", "startup_share", "failure_share")


def simulate(rates, job, num_devices, random):
    """One run, event by event: (seconds, failures). Knows no rounds and no expected values.

    Hosts go on to their next shard when they are done with one; the storage is shared equally
    among those at work.
    """
    num_hosts = math.ceil(num_devices / job.devices_per_host)
    own = min(
        min(num_devices, job.devices_per_host) * rates.device_rate,
        rates.read_rate,
        rates.write_rate,
        rates.core_rate,
    )
    starts = range(0, job.num_images, job.shard_size)
    unfinished = {k: min(job.shard_size, job.num_images - k) for k in starts}
    now, failures = 0.0, 0
    while True:
        lives = random.exponential(3600 * job.mtbf_hours, num_devices)
        end = now + lives.min()
        now += rates.startup_seconds
        mine = [sorted(unfinished)[host::num_hosts] for host in range(num_hosts)]
        left = {host: unfinished[own[0]] for host, own in enumerate(mine) if own}
        while now < end and left:
            rate = min(own, rates.storage_rate / len(left))
            wait = min(left.values()) / rate
            if now + wait >= end:
                break
            now += wait
            left = {h: todo - wait * rate for h, todo in left.items()}
            for host in [h for h, todo in left.items() if todo <= 1e-6]:
                del unfinished[mine[host].pop(0)], left[host]
                if mine[host]:
                    left[host] = unfinished[mine[host][0]]
        if not unfinished:
            return now, failures
        failures += 1
        now = end + rates.restart_seconds


@pytest.mark.parametrize(
    ("num_devices", "rates", "job"),
    [
        (1, {}, {"mtbf_hours": 0.2}),
        (2, {"startup_seconds": 300.0}, {"mtbf_hours": 0.3}),
        (4, {"restart_seconds": 0.0}, {"mtbf_hours": 0.05}),
        (8, {"startup_seconds": 0.0}, {"mtbf_hours": 0.1}),
        (16, {}, {"mtbf_hours": 0.3, "num_images": 3950}),
        (12, {"write_rate": 15.0}, {"mtbf_hours": 0.2, "num_images": 3601}),
        (16, {"storage_rate": 90.0}, {"mtbf_hours": 0.2}),
        (12, {"core_rate": 20.0, "storage_rate": 70.0}, {"mtbf_hours": 0.2}),
        (64, {}, {"num_images": 700}),
    ],
)
def test_the_closed_form_is_what_a_simulation_comes_to(num_devices, rates, job):
    rates, job = dataclasses.replace(RATES, **rates), dataclasses.replace(JOB, **job)
    expected = pods.forecast(rates, job, num_devices)
    random = np.random.default_rng(1)
    runs = np.array([simulate(rates, job, num_devices, random) for _ in range(1500)])
    error = runs.std(axis=0) / math.sqrt(len(runs))
    assert runs[:, 1].max() >= 2
    seconds, failures = abs(runs.mean(axis=0) - (expected.seconds, expected.num_failures))
    assert seconds < 3.5 * error[0]
    assert failures < 3.5 * error[1]
    # The test has teeth: what failures cost is far more than the error allowed.
    assert expected.failure_share * expected.seconds > 10 * error[0]


@pytest.mark.parametrize("num_devices", [1, 2, 4, 12])
@pytest.mark.parametrize("num_images", [4000, 3901, 100, 7])
def test_without_failures_it_is_the_simulation(num_devices, num_images):
    job = dataclasses.replace(JOB, num_images=num_images, mtbf_hours=math.inf)
    found = pods.forecast(RATES, job, num_devices)
    assert found.num_failures == 0
    assert found.failure_share == pytest.approx(0, abs=1e-12)
    seconds, _ = simulate(RATES, job, num_devices, np.random.default_rng(0))
    assert found.seconds == pytest.approx(seconds)


def test_by_hand_without_failures():
    # 41 shards, the last of 20 pictures; 3 hosts of 4 devices, 40 pictures/s each: 13 rounds of
    # 100 pictures, 2.5 s, and one of two shards, as long.
    job = dataclasses.replace(JOB, num_images=4020, mtbf_hours=math.inf, price=3.0)
    found = pods.forecast(RATES, job, 12)
    seconds = 40 + 14 * 2.5
    assert found.num_hosts == 3
    assert found.seconds == pytest.approx(seconds)
    assert found.images_per_second == pytest.approx(4020 / seconds)
    assert found.useful_share == pytest.approx(4020 / 120 / seconds)
    assert found.uneven_share == pytest.approx((35 - 4020 / 120) / seconds)
    assert found.startup_share == pytest.approx(40 / seconds)
    assert found.waiting_share == 0
    assert found.device_hours == pytest.approx(12 * seconds / 3600)
    assert found.cost == pytest.approx(36 * seconds / 3600)
    assert found.efficiency == pytest.approx((40 + 402) / (12 * seconds))


def test_by_hand_of_one_shard_with_failures():
    # Start and shard are lost together: (e^{Λ(s + τ)} − 1)(1/Λ + r).
    job = dataclasses.replace(JOB, num_images=90, mtbf_hours=0.1)
    failing = 2 / 360
    seconds = math.expm1(failing * (40 + 90 / 20)) * (1 / failing + 30)
    found = pods.forecast(RATES, job, 2)
    assert found.seconds == pytest.approx(seconds)
    assert found.num_failures == pytest.approx(math.expm1(failing * 44.5))


def test_a_rare_failure_loses_half_a_shard_and_a_start():
    job = dataclasses.replace(JOB, mtbf_hours=1e6)
    found = pods.forecast(RATES, job, 8)
    work = 20 * 100 / 40
    # A failure in the start loses half of that, and no shard.
    lost = (40 / 2 + 30) * 40 + (2.5 / 2 + 30 + 40) * work
    failing = 8 / 3.6e9
    assert found.num_failures == pytest.approx(failing * (40 + work), rel=1e-6)
    assert found.failure_share * found.seconds == pytest.approx(failing * lost, rel=1e-4)


@pytest.mark.parametrize("mtbf_hours", [1e8, 1e12, 1e15, 1e300])
def test_rare_failures_tend_to_none(mtbf_hours):
    rare = pods.forecast(RATES, dataclasses.replace(JOB, mtbf_hours=mtbf_hours), 8)
    none = pods.forecast(RATES, dataclasses.replace(JOB, mtbf_hours=math.inf), 8)
    assert rare.seconds == pytest.approx(none.seconds, rel=1e-6)
    assert rare.num_failures == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("price", [None, 0.0, 2.0])
@pytest.mark.parametrize("num_devices", [1, 4096])
def test_what_never_ends(num_devices, price):
    job = dataclasses.replace(JOB, mtbf_hours=1e-5, price=price)
    found = pods.forecast(RATES, job, num_devices)
    assert found.seconds == found.num_failures == found.device_hours == math.inf
    assert found.images_per_second == 0
    assert found.failure_share == 1
    assert math.isnan(found.efficiency)
    assert found.cost == {None: None, 0.0: 0.0, 2.0: math.inf}[price]
    assert pods.draw([found], title="").startswith(b"\x89PNG")


@pytest.mark.parametrize("num_devices", [1, 3, 4, 8, 20, 400])
@pytest.mark.parametrize("change", [{}, {"storage_rate": 60.0}, {"read_rate": 7.0}])
def test_shares_add_up(num_devices, change):
    for job in (JOB, dataclasses.replace(JOB, num_images=3999, mtbf_hours=math.inf)):
        found = pods.forecast(dataclasses.replace(RATES, **change), job, num_devices)
        shares = [getattr(found, name) for name in SHARES]
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(1)
        work = found.useful_share * found.seconds * num_devices * 10
        assert work == pytest.approx(job.num_images)


def test_devices_beyond_the_shards_gain_nothing():
    # 40 shards: 40 hosts have work.
    counts = (160, 320, 1280)
    none = dataclasses.replace(JOB, mtbf_hours=math.inf)
    most = [pods.forecast(RATES, none, n) for n in counts]
    assert len({found.seconds for found in most}) == 1
    assert most[-1].uneven_share == pytest.approx(2.5 * 7 / 8 / 42.5)
    # They fail all the same.
    failing = [pods.forecast(RATES, JOB, n).seconds for n in counts]
    assert failing == sorted(set(failing))


def test_more_of_a_good_thing_is_no_worse():
    none = dataclasses.replace(JOB, num_images=3990, mtbf_hours=math.inf)
    counts = (1, 2, 3, 4, *range(8, 200, 4))
    # Where the storage is the bound, the round of a single host may make more hosts slower.
    for rates in (RATES, dataclasses.replace(RATES, write_rate=35.0)):
        seconds = [pods.forecast(rates, none, n).seconds for n in counts]
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(seconds))
        one, many = pods.forecast(rates, none, 1), pods.forecast(rates, none, 196)
        assert one.efficiency == 1
        assert many.efficiency < 1
    for name, values in (
        ("device_rate", (1.0, 5.0, 10.0, 100.0)),
        ("read_rate", (1.0, 30.0, 200.0)),
        ("write_rate", (1.0, 30.0, 200.0)),
        ("core_rate", (1.0, 30.0, 200.0)),
        ("storage_rate", (1.0, 100.0, 1000.0)),
        ("startup_seconds", (50.0, 10.0, 0.0)),
        ("restart_seconds", (50.0, 10.0, 0.0)),
    ):
        better = [dataclasses.replace(RATES, **{name: value}) for value in values]
        seconds = [pods.forecast(rates, JOB, 8).seconds for rates in better]
        assert seconds == sorted(seconds, reverse=True), name
        assert seconds[0] > seconds[-1], name
    longer = [
        dataclasses.replace(JOB, mtbf_hours=hours) for hours in (0.1, 1.0, 10.0, math.inf)
    ]
    seconds = [pods.forecast(RATES, job, 8).seconds for job in longer]
    assert seconds == sorted(set(seconds), reverse=True)


@pytest.mark.parametrize(
    ("num_devices", "change", "part"),
    [
        (4, {}, "computing"),
        (4, {"read_rate": 30.0}, "reading"),
        (4, {"write_rate": 30.0}, "writing"),
        (1, {"write_rate": 30.0}, "computing"),
        (4, {"core_rate": 30.0}, "cores"),
        (4, {"read_rate": 40.0, "write_rate": 40.0, "storage_rate": 40.0}, "computing"),
        (4, {"storage_rate": 70.0}, "computing"),
        (8, {"storage_rate": 70.0}, "storage"),
    ],
)
def test_bottleneck(num_devices, change, part):
    found = pods.forecast(dataclasses.replace(RATES, **change), JOB, num_devices)
    assert found.bottleneck == part
    assert (found.waiting_share > 0) == (part != "computing")


def test_storage_is_shared_by_hosts_with_work():
    rates = dataclasses.replace(RATES, storage_rate=90.0)
    job = dataclasses.replace(JOB, num_images=200, mtbf_hours=math.inf)
    found = pods.forecast(rates, job, 400)
    assert found.bottleneck == "computing"
    assert found.seconds == 40 + 2.5


def test_the_mean_time_between_failures_has_a_source():
    assert pods.MTBF_HOURS == round(54 * 24 * 16384 / 419) == 50677
    assert Job(num_images=1, shard_size=1, devices_per_host=1).mtbf_hours == 50677


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device_rate", 0.0, "device_rate must be a number > 0, got 0.0"),
        ("device_rate", math.inf, "device_rate must be finite, got inf"),
        ("read_rate", -1.0, "read_rate must be a number > 0, got -1.0"),
        ("write_rate", math.nan, "write_rate must be a number > 0, got nan"),
        ("core_rate", 0, "core_rate must be a number > 0, got 0"),
        ("storage_rate", 0, "storage_rate must be a number > 0, got 0"),
        ("startup_seconds", -1.0, "startup_seconds must be a number >= 0, got -1.0"),
        ("restart_seconds", math.inf, "restart_seconds must be finite, got inf"),
        ("num_images", 0, "num_images must be an integer >= 1, got 0"),
        ("shard_size", 1.5, "shard_size must be an integer >= 1, got 1.5"),
        ("devices_per_host", 0, "devices_per_host must be an integer >= 1, got 0"),
        ("mtbf_hours", 0.0, "mtbf_hours must be a number > 0, got 0.0"),
        ("price", -0.1, "price must be a number >= 0, got -0.1"),
    ],
)
def test_bad_input_is_refused(name, value, message):
    whole = RATES if hasattr(RATES, name) else JOB
    with pytest.raises(InputError) as caught:
        dataclasses.replace(whole, **{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("num_devices", "message"),
    [
        (0, "devices must be an integer >= 1, got 0"),
        (6, "devices beyond one host must be a multiple of devices_per_host 4, got 6"),
    ],
)
def test_bad_numbers_of_devices_are_refused(num_devices, message):
    with pytest.raises(InputError) as caught:
        pods.forecast(RATES, JOB, num_devices)
    assert str(caught.value) == message


def test_assumptions_follow_the_figures():
    plain = " ".join(pods.assumptions(RATES, JOB))
    assert "has one in 1 hours" in plain
    assert "start after 30 s, and attack 40 s later" in plain
    assert "no storage_rate is given" in plain
    assert "do not compete for the host's cores" in plain
    rates = dataclasses.replace(RATES, storage_rate=5000.0, core_rate=3.0)
    other = " ".join(pods.assumptions(rates, dataclasses.replace(JOB, mtbf_hours=math.inf)))
    assert "serves 5,000 pictures/s to all hosts" in other
    assert "share the host's cores" in other
    assert "Nothing fails." in other
    assert "memoryless" not in other


def test_the_picture_is_the_same_every_time():
    forecasts = [pods.forecast(RATES, JOB, n) for n in (1, 2, 4, 8)]
    assert all(isinstance(one, Forecast) for one in forecasts)
    picture = pods.draw(forecasts, title="of a test")
    assert picture == pods.draw(forecasts, title="of a test")
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.width > 800
    assert pods.draw(forecasts[:1], title="").startswith(b"\x89PNG")
