"""The chips that programs are compiled for: the makers' figures, and what XLA must know of each."""

from typing import NamedTuple

import jax
from jax.experimental import topologies

CUDNN = "dnn_version_info { major: 9 minor: 8 }"


class Chip(NamedTuple):
    """A chip, with the figures of its maker."""

    name: str
    peak: float
    """TFLOP/s of dense bfloat16."""
    bandwidth: float
    """GB/s of its memory."""
    memory: float
    """GB of memory."""
    link: float
    """GB/s that it can send to the other chips of its machine or torus."""
    source: str
    target: str = ""
    """XLA's description of a GPU; empty for a TPU."""

    @property
    def platform(self) -> str:
        """XLA's name of the platform."""
        return "cuda" if self.target else "tpu"

    def shortest_time(self, flops: float, moved: float, sent: float = 0.0) -> float:
        """The seconds for this many operations and bytes if all three kinds of work overlap."""
        rates = (self.peak * 1e12, self.bandwidth * 1e9, self.link * 1e9)
        return max(work / rate for work, rate in zip((flops, moved, sent), rates, strict=True))

    def mfu(self, flops: float, seconds: float) -> float:
        """The percentage of the peak that operations in this time use."""
        return 100 * flops / (seconds * self.peak * 1e12)


def gpu_target(
    name: str,
    capability: tuple[int, int],
    cores: int,
    lanes: int,
    clock: float,
    bandwidth: float,
    memory: int,
    cache: int,
    shared: int,
) -> str:
    """XLA's description of an NVIDIA GPU, from its device properties.

    `cores` are its multiprocessors and `lanes` the float32 units of each; `clock` is in GHz,
    `bandwidth` in GB/s. `memory`, the second-level `cache` and the `shared` memory of a
    multiprocessor are in bytes.
    """
    major, minor = capability
    properties = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": shared - 1024,
        "shared_memory_per_core": shared,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": round(bandwidth * 1e9),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": memory,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
    }
    fields = " ".join(f"{key}: {value}" for key, value in properties.items())
    compute = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f'gpu_device_info {{ {fields} {compute} }} platform_name: "CUDA" {CUDNN} '
        f'device_description_str: "{name}"'
    )


H100 = Chip(
    "H100 SXM 80 GB",
    989,
    3350,
    80,
    450,
    "NVIDIA, H100 Tensor Core GPU datasheet",
    gpu_target(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 3352, 84_978_434_048, 50 << 20, 228 << 10
    ),
)
H200 = Chip(
    "H200 SXM 141 GB",
    989,
    4800,
    141,
    450,
    "NVIDIA, H200 Tensor Core GPU datasheet",
    gpu_target("NVIDIA H200", (9, 0), 132, 128, 1.98, 4800, 150_110_011_392, 50 << 20, 228 << 10),
)
H100_PCIE = Chip(
    "H100 PCIe 80 GB",
    756,
    2000,
    80,
    300,
    "NVIDIA, H100 PCIe GPU product brief",
    gpu_target(
        "NVIDIA H100 PCIe", (9, 0), 114, 128, 1.755, 2039, 84_978_434_048, 50 << 20, 228 << 10
    ),
)
A100 = Chip(
    "A100 SXM 80 GB",
    312,
    2039,
    80,
    300,
    "NVIDIA, A100 Tensor Core GPU datasheet",
    gpu_target(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2039, 85_100_068_864, 40 << 20, 164 << 10
    ),
)
CHIPS = {
    "h100": H100,
    "h200": H200,
    "a100": A100,
    "v5e": Chip("TPU v5e", 197, 819, 16, 200, "Google Cloud, TPU v5e"),
    "v5p": Chip("TPU v5p", 459, 2765, 95, 600, "Google Cloud, TPU v5p"),
    "v6e": Chip("TPU v6e", 918, 1640, 32, 400, "Google Cloud, TPU v6e"),
}
GPUS = {"H100 PCIe": H100_PCIE, "H100": H100, "H200": H200, "A100": A100}
"""By a part of the name that JAX gives the device, the longest first."""


def chip_of(kind: str) -> Chip:
    """The chip of a kind of device. Raise SystemExit if it is unknown."""
    known = next((chip for name, chip in GPUS.items() if name in kind), None)
    if known is None:
        raise SystemExit(
            f"error: The peaks of {kind} are unknown: add it to benchmarks/chip_kinds.py."
        )
    return known


def devices(chip: str, shape: str) -> list[jax.Device]:
    """The devices of a topology that is not there, to compile for.

    The shape of GPUs is "hosts x GPUs of each", such as "1x8", that of TPUs its torus, such as
    "2x2". The plugin of the platform must be installed.
    """
    kind = CHIPS[chip]
    if kind.platform == "tpu":
        name = f"{chip}:{shape}"
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    name = f"1x{shape}"
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=name, topology=name, target_config=kind.target
    )
    return topology.devices
