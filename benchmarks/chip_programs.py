"""The programs of a recipe that chips.py compiles, with abstract arguments on a chip's devices."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import operations
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.config import Config
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.generation.sampling import Sampling, build_sampler
from ddpm_jax.generation.walk import sampling_denoiser, sampling_grid
from ddpm_jax.models import Model
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.samplers import initial_noise, sample, sample_keys
from ddpm_jax.training.step import (
    example_keys,
    init_state,
    make_train_step,
    model_loss,
    training_keys,
)

NUM_IMAGES = 50_000
"""Images of the data set; they only set the length of an epoch."""
DTYPE = "bfloat16"
STEPS = 50
STABLE_DIFFUSION = "stable_diffusion"
LATENTS = 8
"""Images of a call of Stable Diffusion's U-Net."""
LARGE = "unet_of_10_billion"
LARGE_UNET = UNet(
    image_size=32,
    channels=3,
    widths=(2048, 4096, 8192),
    attention=(False, False, False),
    layers_per_level=1,
)
"""Its state of 165 GB fits on no chip."""


class Work(NamedTuple):
    """A jitted function, its abstract arguments, and the operations that it must do."""

    function: Any
    arguments: tuple
    flops: float
    """FLOP of all devices, see `operations`."""


def place(tree: Any, mesh: Mesh, *axes: Any) -> Any:
    """Shapes with a sharding: the first axis over the mesh's `axes`, or replicated without."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def labels_of(model: Model, batch_size: int) -> jax.ShapeDtypeStruct | None:
    """The abstract labels of a batch, which are token ids for captions. None without labels."""
    if not model.takes_labels:
        return None
    tokens = (model.max_length,) if isinstance(model, TextUNet) else ()
    return jax.ShapeDtypeStruct((batch_size, *tokens), jnp.int32)


def training_step(config: Config, devices: Sequence[jax.Device], route: str, fsdp: int) -> Work:
    """The training step on all devices, each with a micro-batch of the recipe's size."""
    batch_size = config.training.micro_batch_size * len(devices)
    mesh = parallel.training_mesh(fsdp, devices)
    tx = config.make_optimizer(NUM_IMAGES)
    loss = model_loss(config.model, config.objective, DTYPE)
    make_step = partial(make_train_step, loss, tx, config.ema, objective=config.objective)
    step = parallel.parallelize(make_step, route, fsdp, mesh=mesh)
    shapes = jax.eval_shape(partial(init_state, tx=tx, ema=config.ema), config.model.shapes())
    shardings = parallel.state_shardings(shapes, fsdp, mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    keys = jax.eval_shape(lambda rows: example_keys(training_keys(0)[1], 0, rows), rows)
    image = jax.ShapeDtypeStruct((batch_size, *config.model.image_shape), jnp.float32)
    batch = {"image": image, "key": keys}
    if config.model.takes_labels:
        batch["label"] = labels_of(config.model, batch_size)
    batch = place(batch, mesh, mesh.axis_names)
    forward = batch_size * operations.of_image(config.model, DTYPE)
    return Work(step.mapped, (state, batch), operations.PASSES_OF_A_STEP * forward)


def sampler(config: Config, devices: Sequence[jax.Device]) -> Work:
    """DDIM of 50 steps on the first device, of as many images as a micro-batch has."""
    batch_size = config.training.micro_batch_size
    mesh = Mesh(devices[:1], ("data",))
    model = config.model
    sampling = Sampling(sampler="ddim", steps=STEPS)
    method = build_sampler(config.objective, sampling)
    grid = sampling_grid(config.objective, sampling)

    def draw(params, keys, labels):
        apply = partial(model.apply, dtype=jnp.dtype(DTYPE))
        network = bind(Partial(apply, params), labels)
        denoise = sampling_denoiser(config.objective, network, sampling)
        return sample(keys, denoise, method, grid, initial_noise(keys, model.image_shape))

    keys = jax.eval_shape(lambda rows: sample_keys(0, rows), jnp.arange(batch_size))
    arguments = place((model.shapes(), keys, labels_of(model, batch_size)), mesh)
    flops = STEPS * batch_size * operations.of_image(model, DTYPE)
    return Work(jax.jit(draw), arguments, flops)


def initialisation(devices: Sequence[jax.Device], fsdp: int) -> Work:
    """The state of `LARGE_UNET` before the first step, drawn on the devices that keep it."""
    model = LARGE_UNET
    config = load("cifar10")
    mesh = parallel.training_mesh(fsdp, devices)
    tx = config.make_optimizer(NUM_IMAGES)
    init = partial(init_state, tx=tx, ema=config.ema)
    shardings = parallel.state_shardings(jax.eval_shape(init, model.shapes()), fsdp, mesh)

    def first_state(key):
        return init(model.init(key, shardings.params))

    key = place(jax.eval_shape(lambda: training_keys(0)[0]), mesh)
    return Work(jax.jit(first_state, out_shardings=shardings), (key,), 0.0)


def stable_diffusion_pass(devices: Sequence[jax.Device]) -> Work:
    """One call of Stable Diffusion 1's U-Net, for images of 512 x 512 pixels."""
    mesh = Mesh(devices[:1], ("data",))
    model = ConditionalUNet()

    def apply(params, xt, t, states):
        return model.apply(params, xt, t, TextCondition(states), dtype=jnp.dtype(DTYPE))

    side = model.sample_size
    shapes = (
        # `load_stable_diffusion` gives them this dtype.
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, DTYPE), model.shapes()),
        jax.ShapeDtypeStruct((LATENTS, side, side, model.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((LATENTS,), jnp.int32),
        jax.ShapeDtypeStruct((LATENTS, 77, model.context_dim), jnp.float32),
    )
    return Work(jax.jit(apply), place(shapes, mesh), operations.count(apply, *shapes))


def load(recipe: str) -> Config:
    """The recipe's config."""
    return load_recipe(recipe)
