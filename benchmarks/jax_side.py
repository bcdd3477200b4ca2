"""Our side of bench.py: training steps, forward passes and samples, by what train.py and sample.py run."""

import dataclasses
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from sides import serve  # noqa: E402

from ddpm_jax import command_line, parallel  # noqa: E402
from ddpm_jax.diffusion import Sampling  # noqa: E402
from ddpm_jax.generation import generate  # noqa: E402
from ddpm_jax.pretrained.folders import save_pretrained  # noqa: E402
from ddpm_jax.training import (  # noqa: E402
    by_micro_batches,
    example_keys,
    init_state,
    make_optimizer,
    make_train_step,
    model_loss,
)

CORES_EACH = 2  # as train.py has it
STATE = {}


def versions():
    """What the figures are of."""
    return {"jax": jax.__version__, "devices": parallel.describe_devices()}


def load(recipe, batch_size, folder=None, devices=None, route="pmap", accumulation=1):
    """The recipe's net without dropout, on fresh parameters, which go to `folder` too; `devices` of the CPU."""
    config = command_line.load_recipe(recipe, ROOT / "configs")
    model = dataclasses.replace(config.model, dropout=0.0)
    parallel.use_cpu_cores(batch_size, devices, CORES_EACH)
    training = dataclasses.replace(config.training, batch_size=batch_size * accumulation, accumulation=accumulation)
    config = dataclasses.replace(config, model=model, training=training)
    params = jax.tree.map(lambda x: x + 0.01, model.init(jax.random.key(0)))
    if folder is not None:
        save_pretrained(config, params, folder)
    tx = make_optimizer(config, 1000)
    state = parallel.replicate(jax.jit(init_state, static_argnums=(1, 2))(params, tx, config.ema))
    loss = model_loss(model, config.objective)
    step = parallel.spread(lambda axis: make_train_step(loss, tx, config.ema, axis), route)
    image = np.random.default_rng(0).uniform(-1, 1, (batch_size * accumulation, *model.image_shape)).astype(np.float32)
    STATE.clear()
    STATE.update(config=config, params=jax.tree.map(jnp.copy, params), state=state, step=step, image=image)


def train(steps):
    """Seconds of so many training steps."""
    config, image = STATE["config"], STATE["image"]
    began = time.perf_counter()
    for i in range(steps):
        keys = example_keys(jax.random.key(1), i, jnp.arange(len(image)))
        batch = {"image": image, "key": keys}
        STATE["state"], _ = by_micro_batches(STATE["step"], STATE["state"], batch, config.training.accumulation)
    jax.block_until_ready(STATE["state"])
    return time.perf_counter() - began


def forward(times):
    """Seconds of so many passes."""
    if "forward" not in STATE:
        STATE["forward"] = jax.jit(parallel.by_device(STATE["config"].model.apply))
        STATE["params"] = parallel.replicate(STATE["params"])
    x = parallel.shard(STATE["image"])
    t = parallel.shard(np.full(len(x), 500))
    began = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(STATE["forward"](STATE["params"], x, t))
    return time.perf_counter() - began


def sample(steps, count):
    """Seconds of drawing so many pictures by DDIM."""
    began = time.perf_counter()
    sampling = Sampling(sampler="ddim", steps=steps)
    generate(STATE["config"], STATE["params"], num=count, batch_size=count, seed=0, sampling=sampling)
    return time.perf_counter() - began


def peak():
    """The most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve({function.__name__: function for function in (versions, load, train, forward, sample, peak)})
