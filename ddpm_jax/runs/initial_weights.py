"""Initialise training from a run, a pretrained model or a PyTorch state dict."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from ddpm_jax.config import Config, RunConfig
from ddpm_jax.data import ImageSet
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.model_spec import LatentSpec
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.runs.provenance import check_trained_with, weights_hash
from ddpm_jax.runs.sources import base_params, lora_base, open_checkpoint
from ddpm_jax.training.lora import init_lora, merge_lora

OUTPUT_FIELDS = (
    "schedule",
    "timesteps",
    "beta_start",
    "beta_end",
    "zero_terminal_snr",
    "target",
    "sigma_data",
    "variance",
)
"""Fields of an objective that define what the network's output means."""


def with_pretrained_network(config: Config, ckpt: str) -> Config:
    """The config with the `pretrained_parts` of the model that `ckpt` names.

    Raise as `sources.open_checkpoint` does, and ValueError if the rest of the config does not fit.
    """
    return dataclasses.replace(config, **pretrained_parts(config, ckpt))


def pretrained_parts(config: Config, ckpt: str) -> dict[str, Any]:
    """The parts of a config that starts from the model that `ckpt` names.

    They have its network, noise schedule and target, and its autoencoder if it is one on latents.
    `training.init_from` is `ckpt`. Raise as `sources.open_checkpoint` does.
    """
    source = open_checkpoint(ckpt).spec
    objective = _merge_objectives(config.objective, source.objective)
    sampling = config.sampling
    if (sampling.steps or 0) > objective.timesteps:
        sampling = dataclasses.replace(sampling, steps=None)
    training = dataclasses.replace(config.training, init_from=ckpt)
    parts = {
        "model": source.model,
        "objective": objective,
        "sampling": sampling,
        "training": training,
    }
    if isinstance(config, LatentConfig) and isinstance(source, LatentConfig | LatentSpec):
        run = dataclasses.replace(config.autoencoder, model=source.image_autoencoder)
        parts["autoencoder"] = run
    return parts


def _merge_objectives(ours: Objective, theirs: Objective) -> Objective:
    """The objective with our losses for the output of their network."""
    inherited = {name: getattr(theirs, name) for name in OUTPUT_FIELDS}
    # A learned variance needs a loss that trains it, and a fixed variance needs none.
    has_same_kind = ours.learns_variance == theirs.learns_variance
    loss_kind = ours.loss_kind if has_same_kind else theirs.loss_kind
    return dataclasses.replace(ours, loss_kind=loss_kind, **inherited)


def warn_of_other_values(config: RunConfig, images: ImageSet) -> None:
    """Print to stderr if `training.init_from` was trained on values of another scale.

    Raise as `sources.open_checkpoint` does.
    """
    if config.training.init_from is None:
        return
    trained = open_checkpoint(config.training.init_from).values
    if trained != images.values:
        print(
            f"The network of {config.training.init_from} was trained on other values "
            f"({trained.describe()}) than these ({images.values.describe()}).",
            file=sys.stderr,
        )


def first_params(config: RunConfig, key: Key[Array, ""]) -> Params:
    """The parameters that training starts from.

    Draw them from `key`, or read them from `training.init_from` if it is set. With fsdp they are
    drawn on the devices that keep them. Raise ValueError if that model has another network than the
    config.
    """
    if config.training.init_from is not None:
        return base_params(config)
    fsdp = config.parallel.fsdp
    if fsdp == 1:
        return config.model.init(key)
    return config.model.init(key, parallel.state_shardings(config.model.shapes(), fsdp))


def first_trained(config: RunConfig, key: Key[Array, ""]) -> Params:
    """The parameters to train, before the first step: a LoRA, or those of `first_params`."""
    if lora_base(config) is not None:
        return init_lora(key, config.model.shapes(), config.lora)
    return first_params(config, key)


class Base(NamedTuple):
    """The frozen parameters under a LoRA, on the devices, and their hash."""

    params: Params
    hash: str


def load_base(config: RunConfig, folder: Path, step: int) -> Base | None:
    """Load the parameters under the LoRA of a recipe; None if all parameters are trained.

    Raise ValueError if the LoRA saved at `step` was trained on others. Step 0 is a new run.
    """
    if lora_base(config) is None:
        return None
    params = base_params(config)
    weights = weights_hash(params)
    if step:
        check_trained_with(folder, step, "base", weights, str(config.training.init_from))
    return Base(parallel.put_state(params, config.parallel.fsdp), weights)


def network_params(config: RunConfig, base: Base | None, trained: Params) -> Params:
    """The network's parameters: the trained ones, or the base with the LoRA merged."""
    return trained if base is None else _merge(base.params, trained, config.lora.scale)


_merge = jax.jit(merge_lora)
