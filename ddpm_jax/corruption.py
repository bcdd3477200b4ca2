"""S4's toy: mix images with uniform noise by an amount, learn to predict the clean image, sample in a few steps.

Pixels are in [0, 1] from data to loss, because the network it is made for (`basic_unet`) ends in a SiLU. There is no
noise schedule, and the network is not told the amount.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion import Sampling
from ddpm_jax.editing import Edit
from ddpm_jax.prediction import Network
from ddpm_jax.schedule import per_example

DEFAULT_STEPS = 5


def corrupt(
    x0: Float[Array, "b h w c"], amount: Float[Array, " b"], noise: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """x0 (1 - amount) + noise amount, with amount in [0, 1] and noise uniform on [0, 1]."""
    amount = per_example(amount, x0)
    return x0 * (1 - amount) + noise * amount


def corruption_loss(keys: Key[Array, " b"], network: Network, x0: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean squared error of the predicted clean image at a uniform amount, an example each."""
    keys_amount, keys_noise = jax.vmap(jax.random.split, out_axes=1)(keys)
    amount = jax.vmap(jax.random.uniform)(keys_amount)
    noisy = corrupt(x0, amount, uniform_noise(keys_noise, x0.shape[1:]))
    return jnp.mean((network(noisy, jnp.zeros(len(x0), jnp.int32)) - x0) ** 2, axis=(1, 2, 3))


def uniform_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Uniform noise on [0, 1) of each example's own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def mixing_histories(
    network: Network, x: Float[Array, "b h w c"], steps: int = DEFAULT_STEPS
) -> tuple[Float[Array, "n b h w c"], Float[Array, "n b h w c"]]:
    """The states and predictions of x <- x (1 - mix) + prediction mix, mix = 1 / (steps - i) for i = 0..steps-1."""

    def step(x, mix):
        prediction = network(x, jnp.zeros(len(x), jnp.int32))
        x = x * (1 - mix) + prediction * mix
        return x, (x, prediction)

    return jax.lax.scan(step, x, jnp.asarray(1 / (steps - np.arange(steps)), jnp.float32))[1]


_mixing_histories = jax.jit(mixing_histories, static_argnames="steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """Learn the clean image from one mixed with uniform noise."""

    low: ClassVar[float] = 0.0
    times: ClassVar[Literal["uniform"]] = "uniform"
    learns_variance: ClassVar[bool] = False

    def loss(self, keys: Key[Array, " b"], network: Network, images: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """The loss of each example, images in [0, 1]."""
        return corruption_loss(keys, network, images)

    def resolved(self, sampling: Sampling) -> Sampling:
        """The sampling as it is."""
        return sampling

    def steps(self, sampling: Sampling, edit: Edit | None = None) -> int:
        """How many mixing steps, 5 by default. Raises ValueError for less than 1, any other setting, or an edit."""
        if edit is not None:
            raise ValueError("the corruption toy cannot edit pictures: leave those settings out")
        if dataclasses.replace(sampling, steps=None) != Sampling():
            raise ValueError("the corruption toy has one way to sample: of the sampling settings only steps may be set")
        if sampling.steps is not None and sampling.steps < 1:
            raise ValueError(f"steps must be at least 1, not {sampling.steps}")
        return sampling.steps or DEFAULT_STEPS

    def walk(
        self,
        keys: Key[Array, " b"],
        network: Network,
        shape: tuple[int, int, int],
        sampling: Sampling,
        chunks: int,
        edit: Edit | None = None,
    ) -> Iterator[Float[Array, "b h w c"]]:
        """Yields uniform noise, then the state after each of `chunks` equal parts; the last is the sample in [0, 1]."""
        x, steps = uniform_noise(keys, shape), self.steps(sampling, edit)
        yield x
        yield from _mixing_histories(network, x, steps)[0][steps // chunks - 1 :: steps // chunks]

    def noisy(
        self, keys: Key[Array, " b"], images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h w c"], Int[Array, " b"]]:
        """Image i mixed with noise by the i-th of b amounts from 0 to 1, and the t that the network ignores."""
        amount = jnp.linspace(0.0, 1.0, len(images))
        return corrupt(images, amount, uniform_noise(keys, images.shape[1:])), jnp.zeros(len(images), jnp.int32)

    def predict(self, network: Network, xt: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """The network's estimate of the clean image, in [0, 1]."""
        return network(xt, t)
