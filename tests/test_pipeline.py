"""The pipeline: pictures as PIL images, the same as the functions below it give."""

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.pipeline import Pipeline

MODEL = UNet(image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2)
RECIPE = Recipe(model=MODEL, objective=Objective(timesteps=20, beta_end=0.9), sampling=Sampling(spacing="leading"))


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(RECIPE, MODEL.init(jax.random.key(0)))


def test_it_draws_what_generate_draws(pipeline):
    images = pipeline(batch_size=3, seed=4, progress=False).images
    wanted = generate(RECIPE, pipeline.params, num=3, batch_size=3, seed=4)[0]
    assert [(image.mode, image.size) for image in images] == [("L", (8, 8))] * 3
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), wanted[..., 0])


def test_settings_of_the_sampling_take_the_place_of_the_recipes(pipeline):
    steps, sampler = (
        np.asarray(pipeline(seed=4, progress=False, **how).images[0])
        for how in ({"steps": 5}, {"steps": 5, "sampler": "ddim"})
    )
    assert np.any(steps != sampler)
    given = np.asarray(pipeline(seed=4, progress=False, timesteps=(16.0, 12.0, 8.0, 4.0, 0.0)).images[0])
    np.testing.assert_array_equal(given, steps)
    with pytest.raises(ValueError, match="unknown sampler 'nonsense'"):
        pipeline(sampler="nonsense")


def test_it_survives_the_layout_of_diffusers(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    first, second = (np.asarray(one(progress=False).images[0]) for one in (pipeline, again))
    np.testing.assert_array_equal(first, second)
