"""The network of the Frechet Inception Distance: Inception v3 (Szegedy et al. 2016) of 2015-12-05.

It differs from other versions in its pools: averages do not count the padding, and the last block
takes a maximum. The weights, preprocessing and names of layers are those of pytorch-fid.
"""

import http.client
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax import home
from ddpm_jax.data import ImageSet
from ddpm_jax.errors import one_line
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.features._networks import (
    Layer,
    average_pool,
    bilinear_matrix,
    convolve,
    fold,
    max_pool,
    named_hash,
    on_devices,
    read_arrays,
    resize,
)
from ddpm_jax.files import atomic_file

FILE = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SECONDS = 20
"""The longest wait for an answer of the server."""
SIZE = 299  # pixels
EPS = 1e-3  # of the batch norms
CONV = ".conv.weight"


def load(images: ImageSet | None = None) -> Features:
    """The 2048 pooled features.

    Raise FileNotFoundError if the weights are not there and cannot be downloaded, and ValueError
    if their file is damaged.
    """
    path = find_weights(ADDRESS)
    weights = named_hash(path, FILE, "delete it")
    apply = on_devices(pooled, network(read_arrays(path)))
    return Features("inception", weights, f"bilinear to {SIZE}, without antialiasing", apply)


def find_weights(address: str) -> Path:
    """Find the weights in the cache of this package or of PyTorch's hub, or else download them."""
    path = home.cache_folder("the FID network", "set XDG_CACHE_HOME to a folder") / FILE
    for existing in (path, _torch_hub() / FILE):
        if existing.is_file():
            return existing
    try:
        _download(address, path)
    # A response may be cut short, or another page.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = one_line(error)
        raise FileNotFoundError(
            f"The weights of the FID network are missing, and the download failed ({reason}): "
            f"put {address} into {path.parent}."
        ) from error
    return path


def _torch_hub() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch_home = os.environ.get("TORCH_HOME") or f"{caches}/torch"
    return Path(os.path.expanduser(torch_home)) / "hub" / "checkpoints"


def _download(address: str, path: Path) -> None:
    """Download a file whose SHA-256 begins with the hash in its name. Raise ValueError if not."""
    print(f"Downloading {address} to {path}.", file=sys.stderr)
    with urllib.request.urlopen(address, timeout=SECONDS) as response, atomic_file(path) as file:
        shutil.copyfileobj(response, file)
        file.flush()
        named_hash(Path(file.name), path.name, "check the connection")


def network(arrays: Mapping[str, np.ndarray]) -> dict[str, Layer]:
    """The layers by name, such as Mixed_5b.branch1x1, from PyTorch's tensors."""
    names = [name.removesuffix(CONV) for name in arrays if name.endswith(CONV)]
    return {name: fold(arrays, f"{name}.conv", f"{name}.bn", EPS) for name in names}


def pooled(layers: dict[str, Layer], images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """The mean of the last feature map over its 8x8 pixels."""
    run = partial(_chain, layers, "")
    x = 2 * (resize(images, bilinear_matrix, SIZE) / 255) - 1
    x = run(x, "Conv2d_1a_3x3", stride=2, padding="VALID")
    x = run(x, "Conv2d_2a_3x3", padding="VALID")
    x = run(x, "Conv2d_2b_3x3")
    x = max_pool(x)
    x = run(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3", padding="VALID")
    x = max_pool(x)  # (b, 35, 35, 192)
    for name, block in BLOCKS.items():
        branches = block(partial(_chain, layers, f"{name}."), x)
        x = jnp.concatenate(branches, -1)
    return x.mean((1, 2))


def _chain(
    layers: dict[str, Layer],
    prefix: str,
    x: Float[Array, "b h w c"],
    *names: str,
    stride: int = 1,
    padding: str = "SAME",
) -> Float[Array, "b h2 w2 c2"]:
    """Apply some layers, each with a ReLU, one after the other."""
    for name in names:
        x = jax.nn.relu(convolve(x, layers[prefix + name], stride, padding))
    return x


def _block_35(run: Callable, x: Array) -> list[Array]:
    """The branches of a block at 35x35 pixels (Fig. 5)."""
    return [
        run(x, "branch1x1"),
        run(x, "branch5x5_1", "branch5x5_2"),
        run(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        run(average_pool(x), "branch_pool"),
    ]


def _to_17(run: Callable, x: Array) -> list[Array]:
    """The branches of the block from 35x35 to 17x17 pixels (Fig. 10)."""
    double = run(x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        run(x, "branch3x3", stride=2, padding="VALID"),
        run(double, "branch3x3dbl_3", stride=2, padding="VALID"),
        max_pool(x),
    ]


def _block_17(run: Callable, x: Array) -> list[Array]:
    """The branches of a block at 17x17 pixels (Fig. 6)."""
    return [
        run(x, "branch1x1"),
        run(x, *(f"branch7x7_{i}" for i in range(1, 4))),
        run(x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
        run(average_pool(x), "branch_pool"),
    ]


def _to_8(run: Callable, x: Array) -> list[Array]:
    """The branches of the block from 17x17 to 8x8 pixels."""
    single = run(x, "branch3x3_1")
    separable = run(x, *(f"branch7x7x3_{i}" for i in range(1, 4)))
    return [
        run(single, "branch3x3_2", stride=2, padding="VALID"),
        run(separable, "branch7x7x3_4", stride=2, padding="VALID"),
        max_pool(x),
    ]


def _block_8(pool: Callable, run: Callable, x: Array) -> list[Array]:
    """The branches of a block at 8x8 pixels (Fig. 7)."""
    single = run(x, "branch3x3_1")
    double = run(x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        run(x, "branch1x1"),
        run(single, "branch3x3_2a"),
        run(single, "branch3x3_2b"),
        run(double, "branch3x3dbl_3a"),
        run(double, "branch3x3dbl_3b"),
        run(pool(x), "branch_pool"),
    ]


BLOCKS: dict[str, Callable[[Callable, Array], list[Array]]] = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _block_35),
    "Mixed_6a": _to_17,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _block_17),
    "Mixed_7a": _to_8,
    "Mixed_7b": partial(_block_8, average_pool),
    "Mixed_7c": partial(_block_8, partial(max_pool, stride=1, padding="SAME")),
}
