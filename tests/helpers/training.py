"""A linear regression with a known gradient, its training, and recipes with batches of 8."""

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

# One object, so that its step is compiled once.
SGD = optax.sgd(0.1)


def recipe(*, model=CONV_UNET, optimizer=None, **training) -> Config:
    """A recipe with batches of 8 images."""
    training = Training(**{"batch_size": 8, "steps": 10} | training)
    return Config(
        model=model, data=Digits(), training=training, optimizer=Optimizer(**optimizer or {})
    )


def linear_loss(params, keys, batch):
    """A linear regression whose targets have noise from each example's key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    pixels = batch["image"][:, 0, 0]  # (b, 4)
    targets = pixels[:, :3] * 2 + 0.1 * noise  # (b, 3)
    output = pixels @ params["w"] + params["b"][None]
    return jnp.mean((output - targets) ** 2, -1)


def linear_params():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.standard_normal((4, 3), np.float32)), "b": jnp.ones(3)}


def linear_batch(step=0, n=8):
    """Images of 1x1 pixel with 4 channels, and keys."""
    images = np.random.default_rng(step).standard_normal((n, 1, 1, 4), np.float32)
    keys = example_keys(jax.random.key(0), step, jnp.arange(n))
    return {"image": jnp.asarray(images), "key": keys}


@functools.cache
def compiled_step(loss, tx, ema):
    return jax.jit(make_train_step(loss, tx, ema))


def train(tx, batches, *, ema=None, params=None, loss=linear_loss):
    """The states before and after each step on `batches`, and the metrics."""
    step = compiled_step(loss, tx, ema)
    states = [init_state(params or linear_params(), tx, ema)]
    metrics = []
    for batch in batches:
        state, metric = step(states[-1], batch)
        states.append(state)
        metrics.append(metric)
    return states, metrics


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)
