"""The pipeline returns as PIL images what the functions below it draw."""

import dataclasses

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.generation import random_params
from helpers.refusals import assert_refused
from helpers.text import IMAGE, MASK, smallest_model

from ddpm_jax.data.values import scaled_values
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.pipeline import Pipeline, TextToImagePipeline
from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion
from ddpm_jax.text_to_image.draw import draw_images
from ddpm_jax.text_to_image.request import Request

pytestmark = pytest.mark.runs

MODEL = UNet(
    image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2
)
RECIPE = ModelSpec(
    model=MODEL,
    objective=Objective(timesteps=20, beta_end=0.9),
    sampling=Sampling(spacing="leading"),
)

VALUES = scaled_values("range", [(0.0, 51.0)], np.dtype(np.float32))

# The same in every call, so that each sampler is compiled once.
NUM_IMAGES = 3
STEPS = 5


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(RECIPE, random_params(MODEL))


def draw(pipeline, **settings) -> np.ndarray:
    """The pixels of the images of a call with seed 4."""
    images = pipeline(batch_size=NUM_IMAGES, seed=4, progress=False, **settings).images
    assert [(image.mode, image.size) for image in images] == [("L", (8, 8))] * NUM_IMAGES
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def drawn(pipeline):
    """The images of the recipe's own sampler."""
    return draw(pipeline, steps=STEPS)


def test_a_pipeline_draws_what_generate_draws(pipeline, drawn):
    sampling = RECIPE.sampling.override(steps=STEPS)
    settings = {"num_images": NUM_IMAGES, "batch_size": NUM_IMAGES, "seed": 4}
    expected = generate(RECIPE, pipeline.params, sampling=sampling, **settings)
    np.testing.assert_array_equal(drawn, expected[0, ..., 0])


def test_a_pipeline_draws_the_values_of_arrays(pipeline, drawn):
    levels = pipeline(batch_size=NUM_IMAGES, seed=4, steps=STEPS, progress=False).arrays
    np.testing.assert_array_equal(levels[..., 0], drawn)
    output = dataclasses.replace(pipeline, values=VALUES)(
        batch_size=NUM_IMAGES, seed=4, steps=STEPS, progress=False
    )
    assert output.arrays.dtype == np.float32
    np.testing.assert_allclose(output.arrays, levels / 5.0, atol=0.51 / 5)
    np.testing.assert_array_equal([np.asarray(image) for image in output.images], drawn)


def test_a_call_overrides_the_sampling_of_the_recipe(pipeline, drawn):
    assert np.any(drawn != draw(pipeline, steps=STEPS, sampler="ddim"))
    # The timesteps of the recipe's spacing.
    timesteps = (16.0, 12.0, 8.0, 4.0, 0.0)
    np.testing.assert_array_equal(drawn, draw(pipeline, timesteps=timesteps))


def test_there_is_an_image_for_each_label():
    model = dataclasses.replace(MODEL, num_classes=3)
    recipe = dataclasses.replace(RECIPE, model=model)
    pipeline = Pipeline(recipe, random_params(model))
    assert len(pipeline(labels=[2, 0, 1], steps=STEPS, progress=False).images) == 3
    assert len(pipeline(1, labels=np.array([2]), steps=STEPS, progress=False).images) == 1


def test_labels_may_be_names_of_classes(monkeypatch):
    # The type check that is on in tests would refuse others earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = dataclasses.replace(MODEL, num_classes=3)
    recipe = dataclasses.replace(RECIPE, model=model)
    pipeline = Pipeline(recipe, random_params(model), classes=("cat", "dog", "ship"))
    by_name, by_number, of_others = (
        pipeline(labels=labels, steps=STEPS, progress=False).arrays
        for labels in (["ship", 0], [2, 0], [1, 0])
    )
    np.testing.assert_array_equal(by_name, by_number)
    assert np.any(by_name[0] != of_others[0])
    with pytest.raises(ValueError, match="batch_size 1 leaves out some of 2 labels: raise"):
        pipeline(1, labels=["cat", "dog"])
    with pytest.raises(ValueError, match=r"labels must be a list: write \['cat'\]"):
        pipeline(labels="cat")
    wrong = [
        (np.array(1), r"labels must be a list: write \[array\(1\)\]"),
        ([1.5], "A label must be an integer, not 1.5"),
        (jnp.array([1.7]), "A label must be an integer"),
        ([True], "A label must be an integer, not True"),
    ]
    assert_refused(lambda labels: pipeline(labels=labels), wrong)
    with pytest.raises(ValueError, match="'shop' is no class of this network: choose one of ship"):
        pipeline(labels=["shop"])
    with pytest.raises(ValueError, match="'cat' is no class of this network: give its number"):
        dataclasses.replace(pipeline, classes=None)(labels=["cat"])


def test_an_unknown_sampler_is_refused(pipeline):
    with pytest.raises(ValueError, match="Unknown sampler 'nonsense'"):
        pipeline(sampler="nonsense")


def test_a_saved_pipeline_draws_the_same_images(pipeline, drawn, tmp_path):
    named = dataclasses.replace(pipeline, classes=("a", "b"), values=VALUES)
    named.save_pretrained(tmp_path / "saved")
    loaded = Pipeline.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(drawn, draw(loaded, steps=STEPS))
    assert (loaded.classes, loaded.values) == (("a", "b"), VALUES)


def test_a_seed_or_number_of_images_out_of_range_is_refused(pipeline):
    message = r"seed must be in \[0, 2\*\*32\), not "
    cases = [({"seed": seed}, message) for seed in (-1, 2**32)]
    cases += [({"batch_size": n}, f"batch_size must be at least 1, not {n}") for n in (0, -2)]
    assert_refused(lambda options: pipeline(steps=STEPS, progress=False, **options), cases)


def test_a_folder_with_a_text_encoder_is_drawn_from_prompts(tmp_path):
    save_stable_diffusion(smallest_model(), tmp_path / "saved")
    pipeline = Pipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(pipeline, TextToImagePipeline)
    options = {"steps": 3, "seed": 37, "progress": False}
    (image,) = pipeline("a red heart", **options).images
    assert (image.mode, image.size) == ("RGB", (8, 8))
    request = Request(prompts=["a red heart"], seed=37)
    sampling = pipeline.model.sampling.override(steps=3)
    expected = draw_images(pipeline.model, request, sampling, progress=False)
    np.testing.assert_array_equal(np.asarray(image), expected[0])
    nothing = {"image": None, "mask": None, "negative_prompt": None}
    (same,) = pipeline("a red heart", **nothing, **options).images
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
    # The task follows from the arguments.
    (redrawn,) = pipeline("a heart", image=IMAGE, mask=MASK, **options).images
    np.testing.assert_array_equal(np.asarray(redrawn)[MASK < 128], IMAGE[MASK < 128])
    many = pipeline(["a", "b"], num_images=2, sampler="ddim", batch_size=4, **options).images
    assert len(many) == 4
    pipeline.save_pretrained(tmp_path / "again")
    again = Pipeline.from_pretrained(tmp_path / "again")
    (same,) = again("a red heart", **options).images
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
