"""The table of GPUs: names that torch gives, and figures that agree with one another."""

from __future__ import annotations

import pytest
import torch

from lib_accel.kernels.ahead_of_time import CAPABILITIES, LARGEST_SHARED
from lib_accel.kernels.gpus import GPUS, PROCESSORS, Gpu, floor_us, gpu_of, gpu_on

# FLOP of dense products in half precision, summed in float32, of a processor in a clock: GeForce, and others.
TENSOR = {
    75: (512, 1024),
    80: (0, 2048),
    86: (512, 1024),
    89: (512, 1024),
    90: (0, 4096),
    100: (0, 8192),
    120: (512, 0),
}
EACH = pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Tesla T4", "T4"),
        ("GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80 GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 3060 Ti", "RTX 3060 Ti"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(name: str, known: str) -> None:
    found = gpu_of(name)
    assert found is not None
    assert found.name == known


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 5090 D",
        "AMD Radeon RX 7900 XTX",
    ],
)
def test_what_is_not_in_the_table_is_none_of_it(name: str) -> None:
    assert gpu_of(name) is None


def test_a_cpu_is_no_gpu() -> None:
    assert gpu_on(torch.device("cpu")) is None


def test_names_and_files_tell_gpus_apart() -> None:
    assert len({gpu.name for gpu in GPUS}) == len({gpu.slug for gpu in GPUS}) == len(GPUS)


@EACH
def test_kernels_are_compiled_for_every_gpu(gpu: Gpu) -> None:
    assert gpu.capability in CAPABILITIES
    assert gpu.capability in PROCESSORS


@EACH
def test_the_rate_of_products_is_that_of_the_processors_at_their_clock(gpu: Gpu) -> None:
    rate = TENSOR[gpu.capability][not gpu.name.startswith("RTX")]
    assert gpu.tensor_tflops == pytest.approx(gpu.processors * gpu.clock_mhz * rate / 1e6, rel=0.02)


def test_a_program_has_all_shared_memory_but_what_is_reserved() -> None:
    whole = {each: 1024 * limits.shared_kib - limits.reserved for each, limits in PROCESSORS.items()}
    assert whole == dict(LARGEST_SHARED)


def test_a_floor_is_the_longer_of_products_and_bytes() -> None:
    gpu = GPUS[0]._replace(tensor_tflops=100.0, memory_gb_s=1000.0)
    assert floor_us(gpu, flop=2e9, size_bytes=1e6) == pytest.approx(20.0)
    assert floor_us(gpu, flop=2e7, size_bytes=1e6) == pytest.approx(1.0)
