"""The normal numbers of PyTorch's random generators, drawn with NumPy.

torch-cpu   torch.Generator("cpu"): MT19937, then Box-Muller on blocks of 16 values
torch-cuda  torch.Generator("cuda"): Philox4x32-10 with a counter per element, then Box-Muller

Values agree with PyTorch to float32 rounding. The names of the two are values of `TorchNoise`.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ddpm_jax.errors import check, check_choice, check_seed

TorchNoise = Literal["torch-cpu", "torch-cuda"]
BLOCK = 16
"""PyTorch's Box-Muller on the CPU works on blocks of 16 values."""
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
LOW_32 = np.uint64(0xFFFFFFFF)


def torch_normal(kind: str, seed: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """One float32 array N(0, 1) per shape, as successive `torch.randn` of one generator.

    Raise ValueError for an unknown kind, for a seed outside [0, 2**64), and for fewer than 16
    values of torch-cpu, which PyTorch draws by another algorithm.
    """
    check_choice(get_args(TorchNoise), noise=kind)
    check_seed(seed, "The seed", bits=64)
    draw = torch_cpu_normal if kind == "torch-cpu" else torch_cuda_normal
    return draw(seed, shapes)


def torch_cpu_normal(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays that `torch.randn` draws on the CPU after `manual_seed(seed)`.

    Only the low 32 bits of the seed count, as in PyTorch.
    """
    # RandomState(int) has MT19937's own seeding by one word, which PyTorch uses too.
    generator = np.random.RandomState(seed % 2**32)
    return [_cpu_normal(generator, int(np.prod(shape))).reshape(shape) for shape in shapes]


def _cpu_normal(generator: np.random.RandomState, n: int) -> np.ndarray:
    check(n >= BLOCK, f"torch-cpu noise needs at least {BLOCK} values, not {n}: draw more pixels.")
    values = _uniform_24_bits(generator, n)
    whole = n - n % BLOCK
    values[:whole] = _box_muller_blocks(values[:whole])
    if n % BLOCK:
        # The last 16 values are drawn again, from 16 fresh words.
        values[-BLOCK:] = _box_muller_blocks(_uniform_24_bits(generator, BLOCK))
    return values


def _uniform_24_bits(generator: np.random.RandomState, n: int) -> np.ndarray:
    words = generator.randint(0, 2**32, n, np.uint32)  # one word per value
    return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller_blocks(uniform: np.ndarray) -> np.ndarray:
    """Turn the first and last 8 values of each block of 16 into 8 pairs of normal numbers."""
    first, last = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)  # (blocks, 8) each
    radius = np.sqrt(-2 * np.log1p(-first))
    # PyTorch rounds the angle to float32 too. In float64 the result would be farther from its.
    angle = np.float32(2 * np.pi) * last
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)  # (blocks, 2, 8)
    return pairs.reshape(-1)


def torch_cuda_normal(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays that `torch.randn` draws on a CUDA GPU after `manual_seed(seed)`.

    Each draw may have as many values as the GPU has threads (about 270,000 on an H100); beyond that
    a thread draws several values.
    """
    return [_cuda_normal(seed, call, shape) for call, shape in enumerate(shapes)]


def _cuda_normal(seed: int, call: int, shape: tuple[int, ...]) -> np.ndarray:
    elements = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
    counter = np.zeros((4, elements.size), np.uint64)
    counter[0] = call
    counter[2] = elements
    words = philox(counter, seed).astype(np.float64)
    # Box-Muller keeps the sine branch. The half steps keep the uniform numbers above 0.
    uniform = (words[0] + 0.5) * 2.0**-32
    angle = (words[1] + 0.5) * (2 * np.pi * 2.0**-32)
    return (np.sqrt(-2 * np.log(uniform)) * np.sin(angle)).astype(np.float32).reshape(shape)


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011) of 32-bit counters (4, n), held in uint64."""
    low = key & 0xFFFFFFFF
    high = key >> 32
    a, b, c, d = counter
    for _ in range(PHILOX_ROUNDS):
        first = a * np.uint64(PHILOX_MULTIPLIERS[0])
        second = c * np.uint64(PHILOX_MULTIPLIERS[1])
        a = (second >> np.uint64(32)) ^ b ^ np.uint64(low)
        c = (first >> np.uint64(32)) ^ d ^ np.uint64(high)
        b = second & LOW_32
        d = first & LOW_32
        low = (low + PHILOX_KEY_STEPS[0]) & 0xFFFFFFFF
        high = (high + PHILOX_KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d])
