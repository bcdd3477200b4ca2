"""A linear regression whose gradient is known, its training, and recipes of 8 images a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.training.optimizer import Optimizer
from ddpm_jax.training.step import example_keys, init_state, make_train_step

CONV_UNET = ConvUNet(image_size=4, channels=1, widths=(8,), time_embedding_dim=8, groups=4)


SGD = optax.sgd(0.1)
"""One object, so that its step is compiled once."""


def recipe(*, model=CONV_UNET, optimizer=None, **training) -> Config:
    """A recipe of 8 images a step."""
    training = Training(**{"batch_size": 8, "steps": 10} | training)
    return Config(
        model=model, data=Digits(), training=training, optimizer=Optimizer(**optimizer or {})
    )


def linear_loss(params, keys, batch):
    """A linear regression with noise of each example's key: small, and its gradient is known."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    wanted = batch["image"][:, 0, 0, :3] * 2 + 0.1 * noise
    return jnp.mean((batch["image"][:, 0, 0] @ params["w"] + params["b"][None] - wanted) ** 2, -1)


def linear_params():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.standard_normal((4, 3), np.float32)), "b": jnp.ones(3)}


def linear_batch(step=0, count=8):
    """Images of 1x1 pixel with 4 channels, and keys."""
    images = np.random.default_rng(step).standard_normal((count, 1, 1, 4), np.float32)
    return {
        "image": jnp.asarray(images),
        "key": example_keys(jax.random.key(0), step, jnp.arange(count)),
    }


@functools.cache
def compiled_step(loss, tx, ema):
    return jax.jit(make_train_step(loss, tx, ema))


def train(tx, batches, *, ema=None, params=None, loss=linear_loss):
    """The states before and after each step on `batches`, and the metrics."""
    step = compiled_step(loss, tx, ema)
    states, metrics = [init_state(params or linear_params(), tx, ema)], []
    for batch in batches:
        state, metric = step(states[-1], batch)
        states.append(state)
        metrics.append(metric)
    return states, metrics


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)
