"""From parameters to pictures: batches of samples, the same whatever the batch size or the devices."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddpm_jax import parallel
from ddpm_jax.config import Config
from ddpm_jax.diffusion import Sampling
from ddpm_jax.models import Params
from ddpm_jax.pictures import to_uint8
from ddpm_jax.samplers import sample_keys


def chunk_count(steps: int, at_least: int) -> int:
    """The smallest divisor of `steps` that is no less than `at_least`, or `steps` itself."""
    return next(count for count in range(min(at_least, steps), steps + 1) if steps % count == 0)


def generate(
    config: Config,
    params: Params,
    *,
    num: int,
    batch_size: int,
    seed: int,
    sampling: Sampling | None = None,
    stages: int = 1,
    on_stage: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """uint8 states (stages + 1, num, h, w, c), from noise to samples; sample i depends on (seed, i) alone.

    `stages` is the least number of equal parts the walk is seen in; `on_stage(images)` is called after each of them.
    """
    sampling = sampling or config.sampling
    chunks = chunk_count(config.objective.steps(sampling), stages)
    batch_size = -(-min(batch_size, num) // jax.local_device_count()) * jax.local_device_count()
    params = parallel.replicate(params)
    batches = []
    for start in range(0, num, batch_size):
        keys = parallel.shard(sample_keys(seed, jnp.arange(start, start + batch_size)))
        wanted = min(batch_size, num - start)
        states = [state[:wanted] for state in _walk(config, params, keys, sampling, chunks, wanted, on_stage)]
        batches.append(np.stack([states[i] for i in _spread_over(len(states), stages + 1)]))
    return np.concatenate(batches, axis=1)


def _walk(config, params, keys, sampling, chunks, wanted, on_stage) -> Iterator[np.ndarray]:
    network = Partial(config.model.apply, params)
    states = config.objective.walk(keys, network, config.model.image_shape, sampling, chunks)
    for i, state in enumerate(states):
        yield to_uint8(np.asarray(state), config.objective.low)
        if i:
            on_stage(wanted)


def _spread_over(count: int, wanted: int) -> np.ndarray:
    return np.round(np.linspace(0, count - 1, wanted)).astype(int)
