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

MODEL = UNet(
    image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2
)
RECIPE = Recipe(
    model=MODEL,
    objective=Objective(timesteps=20, beta_end=0.9),
    sampling=Sampling(spacing="leading"),
)


NUM, STEPS = 3, 5
"""Of every call, so that each sampler is compiled once."""


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(RECIPE, MODEL.init(jax.random.key(0)))


def draw(pipeline, **settings) -> np.ndarray:
    """The pixels of a call with one seed."""
    images = pipeline(batch_size=NUM, seed=4, progress=False, **settings).images
    assert [(image.mode, image.size) for image in images] == [("L", (8, 8))] * NUM
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def drawn(pipeline):
    """What the recipe's own sampler draws."""
    return draw(pipeline, steps=STEPS)


def test_it_draws_what_generate_draws(pipeline, drawn):
    sampling = RECIPE.sampling.override(steps=STEPS)
    settings = {"num": NUM, "batch_size": NUM, "seed": 4, "sampling": sampling}
    wanted = generate(RECIPE, pipeline.params, **settings)
    np.testing.assert_array_equal(drawn, wanted[0, ..., 0])


def test_settings_of_the_sampling_take_the_place_of_the_recipes(pipeline, drawn):
    assert np.any(drawn != draw(pipeline, steps=STEPS, sampler="ddim"))
    timesteps = (16.0, 12.0, 8.0, 4.0, 0.0)  # those of the recipe's spacing
    np.testing.assert_array_equal(drawn, draw(pipeline, timesteps=timesteps))


def test_an_unknown_sampler_is_refused(pipeline):
    with pytest.raises(ValueError, match="unknown sampler 'nonsense'"):
        pipeline(sampler="nonsense")


def test_it_survives_the_layout_of_diffusers(pipeline, drawn, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(drawn, draw(again, steps=STEPS))
