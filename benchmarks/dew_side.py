"""The side of dew in bench.py: the convolutional U-Net of another JAX library (package `dewml`).

dew needs an environment of its own, because it pins other versions than this package. Its network
has the widths and the levels with attention of the recipe, but other blocks, so its times are
divided by the operations of a forward pass. The training step does the work of ours: noise, loss,
gradients and their norm, AdamW and a moving average. It is one program, whose state is donated.
"""

import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from dew.nn.attention import Stage
from dew.nn.backbones.unet import Unet

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import operations
from sides import serve

EMA_RATE = 1e-3
HEADS = 8
"""Heads of each level with attention, as in dew's default network."""
STATE = {}


def versions():
    """The versions of dew and of its JAX."""
    return {"dew": version("dewml"), "jax": jax.__version__}


def load(image_shape, batch_size, widths, attention):
    """Make the network with fresh parameters, and a batch.

    `attention` says for each width whether its level has attention.
    """
    stages = [Stage(HEADS) if has_attention else None for has_attention in attention]
    net = Unet(
        output_channels=image_shape[-1],
        feature_depths=tuple(widths),
        attention_configs=tuple(stages),
    )
    x = jax.random.uniform(jax.random.key(0), (batch_size, *image_shape), minval=-1.0)
    t = jnp.full(batch_size, 500.0)
    params = jax.jit(net.init)(jax.random.key(0), x, t)
    tx = optax.adamw(4e-4)
    STATE.update(net=net, tx=tx, x=x, t=t, forward=jax.jit(net.apply))
    STATE["state"] = (params, jax.tree.map(jnp.copy, params), tx.init(params))
    STATE["step"] = jax.jit(partial(step, net, tx), donate_argnums=0)


def size():
    """The parameters of the network, and the operations of a forward pass of a batch."""
    params = STATE["state"][0]
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return parameters, operations.count(STATE["net"].apply, params, STATE["x"], STATE["t"])


def step(net, tx, state, x0, key):
    """The new state, and the loss and the norm of its gradient, for images (b, h, w, c)."""
    params, ema_params, opt_state = state
    t_key, eps_key = jax.random.split(key)
    t = jax.random.uniform(t_key, x0.shape[:1])
    eps = jax.random.normal(eps_key, x0.shape)
    std = jnp.sin(t * jnp.pi / 2)[:, None, None, None]
    xt = jnp.sqrt(1 - std**2) * x0 + std * eps

    def loss(params):
        return jnp.mean((net.apply(params, xt, 1000 * t) - eps) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    ema_params = optax.incremental_update(params, ema_params, EMA_RATE)
    return (params, ema_params, opt_state), (value, optax.global_norm(grads))


def train(steps):
    """Run training steps and return the seconds. One step before them is not counted."""
    train_on(0)
    jax.block_until_ready(STATE["state"])
    began = time.perf_counter()
    for number in range(steps):
        train_on(number)
    jax.block_until_ready(STATE["state"])
    return time.perf_counter() - began


def train_on(number):
    """Start one training step, without waiting for it."""
    key = jax.random.fold_in(jax.random.key(1), number)
    STATE["state"], _ = STATE["step"](STATE["state"], STATE["x"], key)


def forward(passes):
    """Run forward passes and return the seconds. One pass before them is not counted."""
    params = STATE["state"][0]
    jax.block_until_ready(STATE["forward"](params, STATE["x"], STATE["t"]))
    began = time.perf_counter()
    for _ in range(passes):
        jax.block_until_ready(STATE["forward"](params, STATE["x"], STATE["t"]))
    return time.perf_counter() - began


if __name__ == "__main__":
    served = (versions, load, size, train, forward)
    serve({function.__name__: function for function in served})
