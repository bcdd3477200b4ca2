"""Initialise training from a run, a model in the diffusers layout or a PyTorch state dict."""

import dataclasses

from jaxtyping import Array, Key

from ddpm_jax.config import Config, to_json
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.runs.sources import open_checkpoint
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS

IGNORED_MODEL_FIELDS = {"image_size", "dropout", "init_scheme"}
"""Fields of a network that may differ, because its weights fit any value."""
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
    """The config with the network, noise schedule and target of the model that `ckpt` names.

    Its `training.init_from` is `ckpt`. Raise as `sources.open_checkpoint` does, and ValueError
    if the rest of the config does not fit.
    """
    source = open_checkpoint(ckpt).spec
    objective = _merge_objectives(config.objective, source.objective)
    sampling = config.sampling
    if (sampling.steps or 0) > objective.timesteps:
        sampling = dataclasses.replace(sampling, steps=None)
    training = dataclasses.replace(config.training, init_from=ckpt)
    return dataclasses.replace(
        config, model=source.model, objective=objective, sampling=sampling, training=training
    )


def _merge_objectives(ours: Objective, theirs: Objective) -> Objective:
    """The objective with our losses for the output of their network."""
    inherited = {name: getattr(theirs, name) for name in OUTPUT_FIELDS}
    # A learned variance needs a loss that trains it, and a fixed variance needs none.
    has_same_kind = ours.learns_variance == theirs.learns_variance
    loss_kind = ours.loss_kind if has_same_kind else theirs.loss_kind
    return dataclasses.replace(ours, loss_kind=loss_kind, **inherited)


def first_params(config: Config, key: Key[Array, ""]) -> Params:
    """The parameters that training starts from.

    Draw them from `key`, or read them from `training.init_from` if it is set. Raise ValueError if
    that model has another network than the config.
    """
    ckpt = config.training.init_from
    if ckpt is None:
        return config.model.init(key)
    source = open_checkpoint(ckpt)
    ours = to_json(config.model)
    theirs = to_json(source.spec.model)
    names = {*ours, *theirs} - IGNORED_MODEL_FIELDS
    different = sorted(name for name in names if ours.get(name) != theirs.get(name))
    check(
        not different,
        f"The network of {ckpt} differs from the recipe's in model.{', model.'.join(different)}: "
        "leave out these settings.",
    )
    return source.params(DEFAULT_WEIGHTS)
