"""What step caching refuses: samplers, nets and settings that it is not for, in one line."""

import dataclasses

import pytest
from example_step_caching import CLASSES, LABELS, ONCE, PARAMS, PLAIN, SCHEDULE, XT

from ddpm_jax import samplers
from ddpm_jax.diffusion import Sampling
from ddpm_jax.generation import generate, network_of
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.recipe import Recipe
from ddpm_jax.step_caching import cached, check_net, check_sampler


@pytest.mark.parametrize("name", sorted(set(samplers.names()) - set(ONCE)))
def test_samplers_of_more_evaluations_are_refused(name):
    for refused in (lambda: Sampling(sampler=name, cache_interval=2), lambda: check_sampler(samplers.make(name))):
        with pytest.raises(ValueError, match="step caching needs a sampler of one evaluation a step, such as ddim"):
            refused()


@pytest.mark.parametrize(
    ("model", "depth", "message"),
    [
        (BasicUNet(image_size=8, channels=1), 0, "step caching is for the unet, not for BasicUNet"),
        (dataclasses.replace(PLAIN, down_kinds=("skip", "conv")), 0, "finest level is not of kind skip"),
        (dataclasses.replace(PLAIN, up_kinds=("skip", "conv")), 0, "finest level is not of kind skip"),
        (PLAIN, 3, "cache_depth must be from 0 to the 2 blocks of a level of this net, not 3"),
        (PLAIN, -1, "cache_depth must be from 0 to the 2 blocks of a level of this net, not -1"),
    ],
)
def test_nets_without_such_a_part_are_refused(model, depth, message):
    sampling = Sampling(cache_interval=2, cache_depth=depth)
    for refused in (lambda: check_net(model, depth), lambda: Recipe(model=model, sampling=sampling)):
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match=message):
        generate(Recipe(model=model), {}, num=1, batch_size=1, seed=0, sampling=sampling)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_interval": 0}, "cache_interval must be at least 1, not 0"),
        ({"cache_depth": 1}, "cache_depth is for step caching: set cache_interval too"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_a_network_that_keeps_nothing_is_refused():
    denoise = make_denoiser(SCHEDULE, network_of(CLASSES, PARAMS, LABELS))
    with pytest.raises(ValueError, match="step caching needs a denoiser that asks one network once"):
        cached(samplers.make("ddim"), 2, denoise, XT)
