"""Training that starts from weights that are there: those of a run, or of a net in the layout of diffusers."""

import dataclasses

from jaxtyping import Array, Key

from ddpm_jax.config import Config, to_json
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.runs.sources import open_any
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS

FREE = {"image_size", "dropout", "init_scheme"}
"""Settings of a net that leave what its weights compute as it is."""
TRAINED_FOR = (
    "schedule",
    "timesteps",
    "beta_start",
    "beta_end",
    "zero_terminal_snr",
    "target",
    "sigma_data",
    "variance",
)
"""Settings of an objective that say what the output of a net means."""


def with_net_of(config: Config, ckpt: str) -> Config:
    """The config with the network of a trained net, what that was trained for, and where its weights are.

    Raises as `sources.open_any` does, and ValueError where the rest of the config does not fit.
    """
    source = open_any(ckpt).recipe
    objective, sampling = _objective(config.objective, source.objective), config.sampling
    if (sampling.steps or 0) > objective.timesteps:
        sampling = dataclasses.replace(sampling, steps=None)
    training = dataclasses.replace(config.training, init_from=ckpt)
    return dataclasses.replace(
        config, model=source.model, objective=objective, sampling=sampling, training=training
    )


def _objective(ours: Objective, theirs: Objective) -> Objective:
    """What a net was trained to predict, of which noise, by our losses."""
    kept = {name: getattr(theirs, name) for name in TRAINED_FOR}
    bound = ours.loss_kind if ours.learns_variance == theirs.learns_variance else theirs.loss_kind
    return dataclasses.replace(ours, bound=bound, **kept)


def first_params(config: Config, key: Key[Array, ""]) -> Params:
    """The parameters that training starts from; raises ValueError if they are another network's."""
    ckpt = config.training.init_from
    if ckpt is None:
        return config.model.init(key)
    source = open_any(ckpt)
    ours, theirs = to_json(config.model), to_json(source.recipe.model)
    differ = sorted(name for name in {*ours, *theirs} - FREE if ours.get(name) != theirs.get(name))
    check(
        not differ,
        f"the net of {ckpt} is another one than this recipe's: model.{', model.'.join(differ)} differ",
    )
    return source.params(DEFAULT_WEIGHTS)
