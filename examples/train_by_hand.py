"""Train a U-Net on handwritten digits with the library's functions, then sample from it.

    python examples/train_by_hand.py    # a minute on two CPU cores

It writes digits.png.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.digits import Digits

images = Digits().load(image_size=8, channels=1)
schedule = dj.from_betas(dj.squaredcos_betas(1000))
size = {"widths": (16, 32), "attention": (False, False), "layers_per_level": 1, "groups": 8}
model = dj.UNet(image_size=8, channels=1, **size)


def network_of(params):
    return Partial(model.apply, params)  # (xt, t) -> the predicted noise


def loss(params, keys, batch):
    return dj.simple_loss(keys, schedule, network_of(params), batch["image"])


tx = optax.adam(2e-3)
init_key, step_key = dj.training_keys(seed=0)
state = dj.init_state(model.init(init_key), tx)
train_step = jax.jit(dj.make_train_step(loss, tx), donate_argnums=0)
for step in range(300):
    batch = batch_at(images, seed=0, step=step, batch_size=64)
    batch["key"] = dj.example_keys(step_key, step, jnp.arange(64))
    state, metrics = train_step(state, batch)
print(f"loss {metrics['loss']:.3f}")

denoise = dj.make_denoiser(schedule, network_of(state.params))
keys = dj.sample_keys(seed=0, indices=jnp.arange(64))
xT = dj.initial_noise(keys, model.image_shape)  # (64, 8, 8, 1)
grid = dj.make_grid(schedule, dj.spaced(1000, steps=50))
x0 = dj.sample(keys, denoise, dj.ddpm(), grid, xT)
dj.save_images(dj.to_uint8(np.asarray(x0)), "digits.png")
