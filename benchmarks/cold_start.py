"""How long until a first training step of the butterflies U-Net is done: python benchmarks/cold_start.py

18,536,323 parameters, batch 16, AdamW and EMA, from the start of the process, without the compilation cache.
"""

import time

BEGAN = time.perf_counter()

import os  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from ddpm_jax import command_line, parallel  # noqa: E402
from ddpm_jax.training import example_keys, init_state, make_optimizer, make_train_step, model_loss  # noqa: E402

BATCH = 16


def main() -> None:
    """Prints the seconds of each part."""
    times = {"import": time.perf_counter()}
    config = command_line.load_recipe("butterflies", Path(__file__).parent.parent / "configs")
    parallel.use_cpu_cores(BATCH)
    tx = make_optimizer(config, images=1000)
    params = jax.block_until_ready(config.model.init(jax.random.key(0)))
    times["draw parameters"] = time.perf_counter()
    state = jax.block_until_ready(parallel.replicate(jax.jit(init_state, static_argnums=1)(params, tx)))
    image = jnp.zeros((BATCH, *config.model.image_shape))
    batch = parallel.shard({"image": image, "key": example_keys(jax.random.key(1), 0, jnp.arange(BATCH))})
    times["optimizer state and batch"] = time.perf_counter()
    step = parallel.jit_step(make_train_step(model_loss(config.model, config.objective), tx, config.ema))
    lowered = step.lower(state, batch)
    times["trace the step"] = time.perf_counter()
    compiled = lowered.compile()
    times["compile the step"] = time.perf_counter()
    jax.block_until_ready(compiled(state, batch))
    times["first step"] = time.perf_counter()
    before = BEGAN
    print(f"jax {jax.__version__}, {parallel.describe_devices()}, {os.cpu_count()} cores")
    for name, after in times.items():
        print(f"{name:<28}{after - before:6.1f} s")
        before = after
    print(f"{'all':<28}{before - BEGAN:6.1f} s")


if __name__ == "__main__":
    main()
