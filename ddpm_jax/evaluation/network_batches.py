"""Batches of images with a key each, and the network with their condition."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax.data import Batch
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.errors import check_rows
from ddpm_jax.generation.generate import guided_network
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params
from ddpm_jax.samplers import sample_keys


class NetworkBatch(NamedTuple):
    """Images in [-1, 1], split over the devices, and the network (xt, t) -> output for them."""

    keys: Key[Array, " b"]
    x0: Float[Array, "b h w c"]
    network: Network


def network_batches(
    spec: ModelSpec, params: Params, batch: Batch, batch_size: int, seed: int
) -> Iterator[NetworkBatch]:
    """Yield the images of `batch` in order, in batches of one size.

    The key of image i depends only on (seed, i). The last batch is padded with the first images:
    drop the results of the padding.
    """
    num_images = len(batch["image"])
    check_rows(num_images, **batch)
    others = {name: array for name, array in batch.items() if name != "image"}
    batch_size = parallel.padded_batch_size(batch_size, num_images)
    for start in range(0, num_images, batch_size):
        rows = np.arange(start, start + batch_size)
        keys = sample_keys(seed, jnp.asarray(rows))
        images = batch["image"][rows % num_images]  # (b, h, w, c)
        condition = {name: array[rows % num_images] for name, array in others.items()}
        keys, x0, condition = parallel.shard((keys, images, condition))
        network = guided_network(spec.model, params, spec.model.condition_of(condition))
        yield NetworkBatch(keys, x0, network)
