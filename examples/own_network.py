"""Train a network written in plain JAX: any function (params, xt, t) -> output works.

    python examples/own_network.py    # half a minute on two CPU cores

It writes runs/own_network.png.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.layers import sinusoidal_embedding

PIXELS, EMBEDDING, WIDTH = 64, 64, 512
LAYERS = [(PIXELS + EMBEDDING, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, PIXELS)]
BATCH_SIZE, STEPS = 128, 3000


def init(key):
    he_normal = jax.nn.initializers.he_normal(dtype=jnp.float32)
    layers = zip(jax.random.split(key, len(LAYERS)), LAYERS, strict=True)
    return [(he_normal(k, size), jnp.zeros(size[1], jnp.float32)) for k, size in layers]


def network(params, xt, t):
    """Predict x0 with a multilayer perceptron from all pixels and an embedding of t."""
    embedding = sinusoidal_embedding(t, EMBEDDING)  # (b, 64)
    h = jnp.concatenate([xt.reshape(len(xt), -1), embedding], axis=1)  # (b, 128)
    for kernel, bias in params[:-1]:
        h = jax.nn.silu(h @ kernel + bias[None])  # (b, 512)
    kernel, bias = params[-1]
    return (h @ kernel + bias[None]).reshape(xt.shape)


def loss(params, keys, batch):
    return dj.simple_loss(keys, schedule, Partial(network, params), batch["image"], "x0")


schedule = dj.from_betas(dj.squaredcos_betas(1000))
images = Digits().load(image_size=8, channels=1)
tx = optax.adam(1e-3)
init_key, step_key = dj.training_keys(seed=0)
state = dj.init_state(init(init_key), tx)
train_step = jax.jit(dj.make_train_step(loss, tx), donate_argnums=0)
for step in range(STEPS):
    batch = batch_at(images, seed=0, step=step, batch_size=BATCH_SIZE)
    batch["key"] = dj.example_keys(step_key, step, jnp.arange(BATCH_SIZE))
    state, metrics = train_step(state, batch)
print(f"loss {metrics['loss']:.4f}")
denoise = dj.make_denoiser(schedule, Partial(network, state.params), "x0")
keys = dj.sample_keys(seed=0, indices=jnp.arange(64))
grid = dj.make_grid(schedule, dj.spaced(1000, steps=50))
x0 = dj.sample(keys, denoise, dj.ddpm(), grid, dj.initial_noise(keys, (8, 8, 1)))
dj.save_images(dj.to_uint8(np.asarray(x0)), "runs/own_network.png")
