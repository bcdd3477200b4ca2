"""Parse a command's options together with the settings of sampling."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from ddpm_jax import samplers
from ddpm_jax.cli import arguments
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling, with_learned_variance

Options = TypeVar("Options")


def default_sampling(spec: ModelSpec, sampler: str | None) -> Sampling:
    """The sampling of a recipe, by another sampler if one is named."""
    sampling = spec.sampling if sampler is None else spec.sampling.override(sampler=sampler)
    return with_learned_variance(spec.objective, sampling)


def without_replaced_timesteps(default: Sampling, args: Sequence[str], prefix: str) -> Sampling:
    """The default of a sampling, without timesteps if arguments give steps or a spacing instead.

    `prefix` begins the flags, such as "--sampling.".
    """
    given = {arg.partition("=")[0] for arg in args}
    replaces = {f"{prefix}steps", f"{prefix}spacing"} & given
    if not replaces or f"{prefix}timesteps" in given:
        return default
    return dataclasses.replace(default, timesteps=None)


def describe(kind: type) -> str:
    """The docstring of a command's options, with the names of the samplers."""
    names = ", ".join(samplers.names())
    return (
        f"{inspect.getdoc(kind)}\n\n"
        f"Samplers: {names}. `--ckpt DIR --sampler NAME --help` explains the options of one."
    )


def parse_with_sampling(
    kind: type[Options], args: Sequence[str], default: Sampling, prog: str, **defaults: Any
) -> tuple[Options, Sampling]:
    """Parse the options `kind` of a command and the settings of sampling.

    `default` gives the defaults of the settings, and `defaults` those of options. Given steps, or a
    spacing, replace its timesteps.
    `--sampler.OPTION` sets options of the sampler.
    """
    factory = samplers.factory(default.sampler)
    sampler_options = arguments.options_class(factory, default.options)
    sampler_help = f"Sampler {default.sampler}. {inspect.getdoc(factory)}"
    # `--sampler.OPTION` replaces the fields `sampler` and `options` of Sampling.
    replaced: list[tuple[str, Any, Any]] = [
        (
            "sampler",
            Annotated[sampler_options, tyro.conf.arg(help=sampler_help)],
            sampler_options(),
        ),
        ("options", tyro.conf.Suppress[Any], None),
    ]
    all_options = dataclasses.make_dataclass(
        "Arguments", replaced, bases=(kind, Sampling), frozen=True, kw_only=True
    )
    fields = [field.name for field in dataclasses.fields(Sampling)]
    shared = [name for name in fields if name not in ("sampler", "options")]
    default = without_replaced_timesteps(default, args, "--")
    sampling_defaults = {name: getattr(default, name) for name in shared}
    options: Any = arguments.parse(
        all_options, args, all_options(**defaults, **sampling_defaults), prog, describe(kind)
    )
    settings = {name: getattr(options, name) for name in shared}
    sampling = Sampling(
        sampler=default.sampler, options=dataclasses.asdict(options.sampler), **settings
    )
    return options, sampling
