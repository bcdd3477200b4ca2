"""The chips that programs are compiled for: the makers' figures, and what XLA must know of each."""

import re
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
    device_names: tuple[str, ...] = ()
    """JAX's names of a GPU with these figures."""
    adapter: float = 0.0
    """GB/s that it can send to other machines, with one adapter for each chip."""

    @property
    def platform(self) -> str:
        """XLA's name of the platform."""
        return "cuda" if self.target else "tpu"

    @property
    def capability(self) -> tuple[int, int]:
        """NVIDIA's version of what a GPU can do; (0, 0) for a TPU."""
        found = re.search(r"cuda_compute_capability { major: (\d+) minor: (\d+) }", self.target)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def allotted(self) -> float:
        """GB of memory that JAX gives to a program by default, of a GPU three quarters."""
        return self.memory * (0.75 if self.target else 1)

    def shortest_time(self, flops: float, moved: float, sending: float = 0.0) -> float:
        """The seconds for this many operations and bytes, which overlap with `sending` seconds."""
        return max(flops / (self.peak * 1e12), moved / (self.bandwidth * 1e9), sending)

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
    device_names=("NVIDIA H100 80GB HBM3",),
    adapter=50,
)
H200 = Chip(
    "H200 SXM 141 GB",
    989,
    4800,
    141,
    450,
    "NVIDIA, H200 Tensor Core GPU datasheet",
    gpu_target("NVIDIA H200", (9, 0), 132, 128, 1.98, 4800, 150_110_011_392, 50 << 20, 228 << 10),
    device_names=("NVIDIA H200",),
    adapter=50,
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
    device_names=("NVIDIA H100 PCIe",),
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
    device_names=("NVIDIA A100-SXM4-80GB",),
    adapter=25,
)
A100_40 = Chip(
    "A100 SXM 40 GB",
    312,
    1555,
    40,
    300,
    "NVIDIA, A100 Tensor Core GPU datasheet",
    gpu_target(
        "NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 1.41, 1555, 42_505_273_344, 40 << 20, 164 << 10
    ),
    device_names=("NVIDIA A100-SXM4-40GB",),
    adapter=25,
)
CHIPS = {
    "h100": H100,
    "h200": H200,
    "h100-pcie": H100_PCIE,
    "a100": A100,
    "a100-40gb": A100_40,
    "v5e": Chip("TPU v5e", 197, 819, 16, 200, "Google Cloud, TPU v5e"),
    "v5p": Chip("TPU v5p", 459, 2765, 95, 600, "Google Cloud, TPU v5p"),
    "v6e": Chip("TPU v6e", 918, 1640, 32, 400, "Google Cloud, TPU v6e"),
}


def chip_of(kind: str) -> Chip:
    """The chip by its name in `CHIPS` or JAX's name of the device.

    Raise SystemExit if it is unknown. A part of the name is not enough: an H100 NVL or a GH200 has
    other figures than an H100.
    """
    for name, chip in CHIPS.items():
        if kind == name or kind in chip.device_names:
            return chip
    raise SystemExit(f"error: The peaks of {kind} are unknown: add it to benchmarks/chip_kinds.py.")


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
