"""The model of a launch's time, against cases worked by hand and facts that hold for any GPU."""

from __future__ import annotations

import math

import pytest

from lib_accel.kernels.gpus import Gpu
from lib_accel.kernels.predict import LAUNCH_US, Launch, Needs, launch_us, resident, waves

# 100 processors of compute capability 8.0: 64 warps, 32 programs, 164 KiB of shared memory each.
GPU = Gpu(
    "paper", "paper", 80, processors=100, clock_mhz=1000, memory_gb_s=1000, l2_mib=40, tensor_tflops=100
)
FREE = Needs(registers=16, spilled=0, shared=0)

# All there at one time, and nothing but bytes.
BYTES = Launch(programs=800, warps=8, needs=FREE, memory_bytes=9e6, cache_bytes=9e6, waits_us=1.0)


@pytest.mark.parametrize(
    ("warps", "needs", "programs"),
    [
        (4, FREE, 16),  # 64 warps
        (1, FREE, 32),  # programs
        (4, Needs(128, 0, 0), 4),  # 65536 registers, 128 * 32 * 4 each
        (4, Needs(129, 0, 0), 3),  # 136, as registers of a warp are given by 256
        (4, Needs(32, 0, 48 * 1024), 3),  # 164 KiB, 49 each
        (8, Needs(255, 0, 0), 1),
        (32, Needs(128, 0, 0), 0),  # more registers than there are
        (4, Needs(32, 0, 164 * 1024), 0),  # with what is reserved more than there is
    ],
)
def test_a_processor_holds_as_many_programs_as_its_scarcest_part_allows(
    warps: int, needs: Needs, programs: int
) -> None:
    assert resident(GPU, warps, needs) == programs


def test_programs_run_in_waves_of_as_many_as_there_is_room_for() -> None:
    assert waves(BYTES, GPU) == (1, 0)
    assert waves(BYTES._replace(programs=2000), GPU) == (2, 400)


def test_bytes_take_their_share_of_the_bandwidth() -> None:
    assert launch_us(BYTES, GPU) == pytest.approx(LAUNCH_US + 10.0)  # 9 MB at 0.9 of 1 TB/s


def test_few_bytes_on_their_way_take_as_long_as_they_are_waited_for() -> None:
    # 800 programs have 11 kB each on their way for 20 us: 450 GB/s, by Little's law.
    assert launch_us(BYTES._replace(waits_us=20.0), GPU) == pytest.approx(LAUNCH_US + 20.0)


def test_a_last_wave_of_few_programs_costs_what_they_wait_for() -> None:
    more = BYTES._replace(programs=801, memory_bytes=9e6 * 801 / 800, cache_bytes=9e6 * 801 / 800)
    assert launch_us(more, GPU) == pytest.approx(launch_us(BYTES, GPU) + 1.0)


def test_products_wait_for_the_processor_that_has_most_of_them() -> None:
    # 150 programs of 1 GFLOP: two on some processors, of which each does 1 TFLOP/s.
    one = Launch(programs=150, warps=8, needs=FREE, memory_bytes=0, cache_bytes=0, waits_us=1.0, flop=150e9)
    assert launch_us(one, GPU) == pytest.approx(LAUNCH_US + 2000.0)


@pytest.mark.parametrize(
    ("field", "value", "us"),
    [
        ("cache_bytes", 800 * 64e3, 16.0),  # 8 programs, 32 bytes a clock
        ("operations", 800 * 64e3, 8.0),  # 8 programs, 64 lanes
        ("shared_bytes", 800 * 256e3, 16.0),  # 8 programs, 128 bytes a clock
    ],
)
def test_what_a_processor_does_in_a_clock_is_a_limit(field: str, value: float, us: float) -> None:
    launch = Launch(programs=800, warps=8, needs=FREE, memory_bytes=0, cache_bytes=0, waits_us=1.0)
    assert launch_us(launch._replace(**{field: value}), GPU) == pytest.approx(LAUNCH_US + us)


@pytest.mark.parametrize(
    "field", ["memory_bytes", "cache_bytes", "waits_us", "operations", "flop", "shared_bytes"]
)
def test_more_work_is_never_faster(field: str) -> None:
    times = [launch_us(BYTES._replace(**{field: 10.0**n}), GPU) for n in range(14)]
    assert times == sorted(times)
    assert times[-1] > times[0]


def test_more_programs_of_the_same_size_are_never_faster() -> None:
    times = [
        round(launch_us(BYTES._replace(programs=n, memory_bytes=1e4 * n, cache_bytes=1e4 * n), GPU), 9)
        for n in range(1, 2500)
    ]
    assert times == sorted(times)


def test_a_faster_memory_is_never_slower() -> None:
    times = [launch_us(BYTES, GPU._replace(memory_gb_s=speed)) for speed in (500, 1000, 2000, 4000)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


@pytest.mark.parametrize("needs", [Needs(64, 4, 0), Needs(32, 0, 164 * 1024)])
def test_what_spills_or_does_not_fit_is_refused(needs: Needs) -> None:
    assert launch_us(BYTES._replace(needs=needs), GPU) == math.inf
