"""Simulated pods: how fast and how dear a run over many devices would be, from measured rates.

A run of N pictures is cut into K = ⌈N/S⌉ numbered shards of S pictures, the last one of what
is left. Of n devices, D to a host, the H = ⌈n/D⌉ hosts each take every H-th unfinished shard.
A host reads, attacks and writes in a pipeline, so that its rate is the least of those of its
parts; a finished shard is kept. Where one device fails all hosts stop, and the run is started
again with the shards that are not finished. Rates are pictures per second, times are seconds
unless the name says hours. `forecast` has the equations, `assumptions` what they rest on.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from deid_jax import _validate
from deid_jax._validate import InputError

# Device-hours between failures that stop a run: 419 unexpected interruptions, whatever their
# cause, in 54 days of training on 16,384 H100 (Llama Team: "The Llama 3 Herd of Models", 2024,
# section 3.3.4).
MTBF_HOURS = round(54 * 24 * 16_384 / 419)
# By when the processes that still run notice that another one died.
NOTICE_SECONDS = 30.0

# Okabe and Ito's colours, told apart by the colour-blind.
_BLUE, _GREY = "#0072B2", "0.55"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured of one device, of one host, and of what hosts share.

    Attributes:
      device_rate: pictures/s that a device attacks.
      read_rate: pictures/s that a host reads, were that all it did.
      write_rate: pictures/s that a host writes, were that all it did.
      core_rate: pictures/s that a host's cores can both read and write; infinite if unknown.
      storage_rate: pictures/s that the shared file system can serve to all hosts together, read
        and written; infinite for no bound.
      startup_seconds: from the start of the processes to the first batch, compiling included.
      restart_seconds: from a failure to the next start of the processes.

    Raises:
      InputError: a rate is not > 0, or a time is negative or infinite.
    """

    device_rate: float
    read_rate: float
    write_rate: float
    core_rate: float = math.inf
    storage_rate: float = math.inf
    startup_seconds: float
    restart_seconds: float = NOTICE_SECONDS

    def __post_init__(self) -> None:
        for name in ("device_rate", "read_rate", "write_rate", "core_rate", "storage_rate"):
            _check_positive(name, getattr(self, name))
        if math.isinf(self.device_rate):
            raise InputError(f"device_rate must be finite, got {self.device_rate}")
        for name in ("startup_seconds", "restart_seconds"):
            _validate.finite_non_negative(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done, and on what.

    Attributes:
      num_images: N, pictures in all.
      shard_size: S, pictures of a shard.
      devices_per_host: D.
      mtbf_hours: mean time between failures of one device; infinite for none.
      price: of a device for an hour, in any currency; None where nobody asks.

    Raises:
      InputError: a count below 1, a time that is not > 0, or a negative price.
    """

    num_images: int
    shard_size: int
    devices_per_host: int
    mtbf_hours: float = MTBF_HOURS
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_images", "shard_size", "devices_per_host"):
            _validate.count(name, getattr(self, name), least=1)
        _check_positive("mtbf_hours", self.mtbf_hours)
        if self.price is not None:
            _validate.finite_non_negative("price", self.price)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"{name} must be a number > 0, got {value}")


class Forecast(NamedTuple):
    """What a run on so many devices comes to; expected values where failures play a part.

    The five shares are of the wall time, and add up to 1.

    Attributes:
      num_devices: n.
      num_hosts: H.
      images_per_second: N over `seconds`.
      efficiency: `images_per_second` over n times that of one device; NaN if that is 0.
      seconds: wall time, start-up included; infinite if the run practically never ends.
      num_failures: how many of them stop the run.
      useful_share: of attacking at the full rate of all devices.
      waiting_share: devices waiting for files to be read or written.
      uneven_share: hosts without a shard, or with the short one, while others work on theirs.
      startup_share: of the first start.
      failure_share: of work done twice, and of starting again.
      device_hours: n times the hours of wall time.
      cost: `device_hours` times the price; None without one.
      bottleneck: the part that bounds the rate of hosts: "computing", "reading", "writing",
        "cores" (reading and writing together) or "storage" (what all hosts share).
    """

    num_devices: int
    num_hosts: int
    images_per_second: float
    efficiency: float
    seconds: float
    num_failures: float
    useful_share: float
    waiting_share: float
    uneven_share: float
    startup_share: float
    failure_share: float
    device_hours: float
    cost: float | None
    bottleneck: str


class _Round(NamedTuple):
    """What the hosts do at the same time, a shard each: `times` rounds alike."""

    times: int
    longest: int
    images: int


class _Expected(NamedTuple):
    """Expected wall time, failures, and the wall time of the work if nothing failed."""

    seconds: float
    num_failures: float
    work_seconds: float


def forecast(rates: Rates, job: Job, num_devices: int) -> Forecast:
    """What the run comes to on n devices.

    A host with d = min(n, D) devices does h = min(d · device_rate, read_rate, write_rate,
    core_rate) pictures/s. The run is ⌈K/H⌉ rounds of a shard a host; a round of m pictures,
    the largest shard of which has l, takes τ = max(l/h, m/storage_rate). With mtbf the mean
    time between failures of a device, Λ = n/mtbf, s the start-up and r the restart,

        seconds = F (1/Λ + r),   F = e^{Λs} − 1 + e^{Λs} Σ (e^{Λτ} − 1) failures,

    the sum over rounds; for Λ → 0 that is s + Σ τ. `_expected` derives it.

    Args:
      rates: what was measured.
      job: what is to be done.
      num_devices: n.

    Raises:
      InputError: n is no integer >= 1, or leaves one of several hosts with fewer devices.
    """
    num_hosts = _hosts(job, num_devices)
    expected = _expected(rates, job, num_devices)
    one = _expected(rates, job, 1).seconds
    device_hours = num_devices * expected.seconds / 3600
    return Forecast(
        num_devices=num_devices,
        num_hosts=num_hosts,
        images_per_second=job.num_images / expected.seconds,
        efficiency=one / (num_devices * expected.seconds) if math.isfinite(one) else math.nan,
        seconds=expected.seconds,
        num_failures=expected.num_failures,
        **_shares(rates, job, num_devices, expected),
        device_hours=device_hours,
        # Nothing times an infinite time is nothing.
        cost=job.price * device_hours if job.price else job.price,
        bottleneck=_bottleneck(rates, job, num_devices),
    )


def _shares(rates: Rates, job: Job, num_devices: int, expected: _Expected) -> dict[str, float]:
    """The five shares of the wall time."""
    host_rate = min(_host_rates(rates, job, num_devices).values())
    computing = job.num_images / (num_devices * rates.device_rate)
    # Were the pictures spread over the hosts to the last one.
    even = job.num_images / min(_hosts(job, num_devices) * host_rate, rates.storage_rate)
    spent = {
        "useful_share": computing,
        "waiting_share": even - computing,
        "uneven_share": expected.work_seconds - even,
        "startup_share": rates.startup_seconds,
    }
    shares = {name: max(0.0, part) / expected.seconds for name, part in spent.items()}
    # As what is left: of an infinite time it is all.
    return shares | {"failure_share": max(0.0, 1 - sum(shares.values()))}


def _bottleneck(rates: Rates, job: Job, num_devices: int) -> str:
    num_shards = -(-job.num_images // job.shard_size)
    # Hosts that never get a shard ask nothing of the storage.
    busy = min(_hosts(job, num_devices), num_shards)
    bounds = _host_rates(rates, job, num_devices) | {"storage": rates.storage_rate / busy}
    return min(bounds, key=lambda name: bounds[name])


def _hosts(job: Job, num_devices: int) -> int:
    _validate.count("devices", num_devices, least=1)
    per_host = job.devices_per_host
    if num_devices > per_host and num_devices % per_host:
        raise InputError(
            f"devices beyond one host must be a multiple of devices_per_host {per_host}, "
            f"got {num_devices}"
        )
    return -(-num_devices // per_host)


def _host_rates(rates: Rates, job: Job, num_devices: int) -> dict[str, float]:
    """Pictures/s of each part of a host, by name; the first of equals is the bottleneck."""
    return {
        "computing": min(num_devices, job.devices_per_host) * rates.device_rate,
        "reading": rates.read_rate,
        "writing": rates.write_rate,
        "cores": rates.core_rate,
    }


def _rounds(job: Job, num_hosts: int) -> list[_Round]:
    """Rounds of a full shard for every host, and the last one, which has the short shard."""
    num_shards = -(-job.num_images // job.shard_size)
    full = (num_shards - 1) // num_hosts
    in_full = num_hosts * job.shard_size
    left = job.num_images - full * in_full
    last = _Round(times=1, longest=min(job.shard_size, left), images=left)
    if full == 0:
        return [last]
    return [_Round(times=full, longest=job.shard_size, images=in_full), last]


def _expected(rates: Rates, job: Job, num_devices: int) -> _Expected:
    """Expected wall time and failures: the closed form of `forecast`.

    Failures are a Poisson process of rate Λ. A piece of work of x seconds that a failure
    undoes, and after which a pause of R on average begins it anew, takes

        E(x) = (e^{Λx} − 1) (1/Λ + R).

    For: it fails e^{Λx} − 1 times on average (geometric, success e^{−Λx}); a failure loses
    1/Λ − x/(e^{Λx} − 1) seconds of work on average (x/2 − Λx²/12 + …: about half a shard of
    every host) and R; and x itself is done in the end. The sum is E(x).

    The start is such a piece, of s seconds and R = r: E(s) = (e^{Λs} − 1)(1/Λ + r). So is each
    round, of τ seconds and R = r + E(s), whence 1/Λ + R = e^{Λs} (1/Λ + r). Their sum is
    F (1/Λ + r), and F the failures, since 1/Λ seconds of running lie between two of them. Daly
    ("A higher order estimate of the optimum checkpoint interval for restart dumps", 2006) has
    the same for r = 0.
    """
    failing = num_devices / (job.mtbf_hours * 3600)
    host_rate = min(_host_rates(rates, job, num_devices).values())
    running, work = _running_seconds(failing, rates.startup_seconds), 0.0
    again = 1 + failing * running  # e^{Λs}
    for times, longest, images in _rounds(job, _hosts(job, num_devices)):
        tau = max(longest / host_rate, images / rates.storage_rate)
        running += times * again * _running_seconds(failing, tau)
        work += times * tau
    seconds = (1 + failing * rates.restart_seconds) * running
    return _Expected(seconds, failing * running if failing else 0.0, work)


def _running_seconds(failing: float, seconds: float) -> float:
    """(e^{Λx} − 1)/Λ: how long devices run until x seconds have passed without a failure."""
    if failing == 0:
        return seconds
    try:
        return math.expm1(failing * seconds) / failing
    except OverflowError:
        return math.inf


def assumptions(rates: Rates, job: Job) -> list[str]:
    """What the figures of `forecast` rest on, a sentence or two each."""
    shared = "The shared file system bounds nothing: no storage_rate is given."
    if math.isfinite(rates.storage_rate):
        shared = (
            f"The shared file system serves {rates.storage_rate:,.6g} pictures/s to all hosts, "
            "which share it as they need it."
        )
    cores = "share the host's cores, and a thread at work keeps one busy"
    if math.isinf(rates.core_rate):
        cores = "do not compete for the host's cores"
    failures = ["Nothing fails."]
    if math.isfinite(job.mtbf_hours):
        failures = [
            "Failures are independent and memoryless: a device, with its part of host and "
            f"network, has one in {job.mtbf_hours:,.6g} hours on average, busy or not.",
            "One failure stops all hosts. Shards under way are done again, finished ones kept.",
            "After a failure working machines are at hand: the processes start after "
            f"{rates.restart_seconds:,.6g} s, and attack {rates.startup_seconds:,.6g} s later, "
            "as at first. Starting may fail as well.",
            "Times are expected values; pictures/s are the pictures over the expected time.",
        ]
    return [
        "Hosts are in step: equally fast, each with a shard at a time, one after the other "
        "without a gap.",
        "A host reads, attacks and writes at the same time: it is as fast as its slowest part, "
        "and all else, as measuring the pictures, takes no time beside them. Its devices share "
        f"a batch without loss. Reading and writing {cores}.",
        f"Rates and start-up are those measured, whatever the number of hosts. {shared}",
        *failures,
        "Every device counts, and costs the same, until the last one is done, idle or not.",
    ]


def draw(forecasts: Sequence[Forecast], *, title: str) -> bytes:
    """Draws pictures/s against devices, both on a log scale, and the line of no loss.

    Args:
      forecasts: of increasing numbers of devices, at least one. Those that never end, and that
        without an efficiency, are left out.
      title: what stands above.

    Returns:
      A PNG file; the same forecasts give the same bytes.
    """
    from matplotlib.figure import Figure

    shown = [one for one in forecasts if one.efficiency > 0]
    figure = Figure(figsize=(7.5, 5.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    x = [one.num_devices for one in shown]
    if shown:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ideal = [one.images_per_second / one.efficiency for one in shown]
        axis.plot(x, ideal, color=_GREY, linestyle="--", label="one device times their number")
        rate = [one.images_per_second for one in shown]
        axis.plot(x, rate, color=_BLUE, marker="o", markersize=5, label="expected")
        axis.legend(loc="upper left", fontsize=9)
    # Every label has its place.
    ticks = [b for a, b in itertools.pairwise([0, *x]) if b >= 1.3 * a]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:,.6g}")
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    axis.set_xlabel("devices")
    axis.set_ylabel("pictures per second, over the whole run")
    axis.set_title(title, fontsize=10)
    file = io.BytesIO()
    # Without the version of matplotlib, so that only the figures decide the bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
