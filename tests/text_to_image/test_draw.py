"""Whole drawings with a small random Stable Diffusion."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.refusals import assert_refused
from helpers.text import IMAGE, MASK, smallest_model, tiny_model
from jax.sharding import Mesh
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax import samplers
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.devices import parallel
from ddpm_jax.generation.walk import sampling_grid
from ddpm_jax.text_to_image import draw, prompts
from ddpm_jax.text_to_image.draw import draw_images, draw_pixels
from ddpm_jax.text_to_image.generate import image_to_image, rows_for_strength
from ddpm_jax.text_to_image.latents import decode
from ddpm_jax.text_to_image.noise import key_noise
from ddpm_jax.text_to_image.request import Request
from ddpm_jax.training.lora import Lora, init_lora, merge_lora

pytestmark = pytest.mark.runs


def request(**options):
    return Request(**{"prompts": ["a red heart"], "seed": 37, **options})


def pixels(options=None, model=None, batch_size=1, **settings):
    model = model or smallest_model()
    sampling = model.sampling.override(**settings)
    return draw_pixels(model, request(**(options or {})), sampling, batch_size=batch_size)


def denoiser(model, text, empty):
    network = dj.guide(Partial(model.unet.apply, model.unet_params), text, empty, 7.5)
    return dj.make_denoiser(model.schedule, network, model.objective.target, clip_x0=None)


def test_the_loop_by_parts_draws_the_same_image():
    """The loop draws one image on one device, and `draw_pixels` a row on each of 8 devices."""
    model = smallest_model()
    assert model.objective.target == "v"
    text = dj.text_to_image.encode_text(model, dj.text_to_image.tokenize(model, ["a red heart"]))
    empty = dj.text_to_image.encode_text(model, dj.text_to_image.tokenize(model, [""]))
    keys = dj.sample_keys(37, jnp.arange(1))
    xT = dj.initial_noise(keys, (4, 4, 4))
    grid = sampling_grid(model.objective, model.sampling)
    latents = dj.sample(keys, denoiser(model, text, empty), model.sampler, grid, xT)
    expected = dj.text_to_image.decode(model, latents)
    np.testing.assert_allclose(pixels(model=model), expected, atol=1e-5)


def test_prompt_negative_prompt_seed_and_guidance_each_count():
    base = pixels()
    for options, settings in (
        ({"prompts": ["a heart"]}, {}),
        ({"negative_prompts": ["a red heart!"]}, {}),
        ({"seed": 38}, {}),
        # The seeds of the images that fill the batch lie beyond the last one.
        ({"noise": "torch-cpu", "seed": 2**64 - 1}, {}),
        ({"noise": "torch-cuda"}, {}),
        ({"clip_skip": 1}, {}),
        ({}, {"guidance_scale": 2.0}),
        ({}, {"guidance_rescale": 0.7}),
        ({}, {"guidance_interval": (0.0, 10.0)}),
    ):
        assert np.abs(pixels(options, **settings) - base).max() > 1e-5, (options, settings)


@pytest.mark.parametrize("noise", ["jax", "torch-cpu"])
def test_a_seed_may_be_an_integer_of_numpy(monkeypatch, noise):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    base = pixels({"noise": noise})
    for kind in (np.int32, np.uint32, np.int64):
        np.testing.assert_array_equal(pixels({"seed": kind(37), "noise": noise}), base)


def test_no_change_of_text_seed_guidance_timesteps_or_lora_compiles_again():
    model = smallest_model()
    lora = init_lora(jax.random.key(0), model.unet.shapes(), Lora(rank=2))

    def draw_again(i):
        params = merge_lora(model.unet_params, lora, 0.1 * i)
        options = {"prompts": [f"heart {i}"], "negative_prompts": ["red" * i], "seed": i}
        settings = {"guidance_scale": 2.0 + i, "guidance_rescale": 0.05 * i}
        timesteps = (900.0, 500.0 - i, 100.0)
        pixels(options, model._replace(unet_params=params), timesteps=timesteps, **settings)

    draw_again(0)
    before = [program._cache_size() for program in (samplers._walk_jit, prompts._encode)]
    for i in range(1, 4):
        draw_again(i)
    assert [program._cache_size() for program in (samplers._walk_jit, prompts._encode)] == before


def test_an_image_does_not_depend_on_the_other_prompts():
    options = {"prompts": ["a red heart", "red"], "num_images": 2}
    together = pixels(options)
    assert together.shape == (4, 8, 8, 3)
    # The third image has the second prompt.
    alone = pixels({"prompts": ["red"], "num_images": 3})
    np.testing.assert_allclose(alone[2], together[2], atol=1e-5)


def test_image_i_is_the_same_in_every_batch_and_on_1_and_8_devices(monkeypatch):
    layouts = []

    def decode_and_record(model, latents):
        layouts.append((len(latents), len(latents.sharding.device_set)))
        return decode(model, latents)

    monkeypatch.setattr(draw, "decode", decode_and_record)
    options = {"prompts": ["a red heart", "red"], "num_images": 4}
    # The rounding of the smallest model is at the bound.
    draw_all = functools.partial(pixels, options, tiny_model())
    expected = draw_all(batch_size=8)
    one_device = Mesh(np.asarray(jax.local_devices()[:1]), ("data",))
    monkeypatch.setattr(parallel, "data_mesh", lambda: one_device)
    for batch_size in (1, 3, 8):
        np.testing.assert_allclose(draw_all(batch_size=batch_size), expected, atol=1e-5)
    assert layouts == [(8, 8), *[(1, 1)] * 8, (3, 1), (3, 1), (2, 1), (8, 1)]


def test_image_to_image_starts_from_the_sampled_latents_of_the_image():
    model = smallest_model()
    sampling = model.sampling.override(steps=75)
    plan = draw.make_plan(model, request(images=[IMAGE], strength=0.04), sampling)
    keys = dj.sample_keys(37, jnp.arange(1))
    noise = key_noise(keys, plan.shape)
    latents = dj.text_to_image.encode_image(model, to_floats(IMAGE[None]), noise.image)
    mean = dj.text_to_image.encode_image(model, to_floats(IMAGE[None]))
    assert np.abs(latents - mean).max() > 0.01
    grid = rows_for_strength(sampling_grid(model.objective, sampling), 0.04)
    walk = (keys, denoiser(model, plan.text, plan.empty), model.sampler, grid)
    _, expected = image_to_image(*walk, latents, noise.initial)
    np.testing.assert_allclose(draw.draw_batch(plan, np.arange(8)).latents[:1], expected, atol=1e-5)


def test_inpainting_pastes_the_pixels_outside_the_mask():
    model = smallest_model()
    drawn = draw_images(
        model, request(images=[IMAGE], masks=[MASK], height=8, width=8), progress=False
    )
    white = MASK >= 128
    np.testing.assert_array_equal(drawn[0][~white], IMAGE[~white])
    assert np.mean(drawn[0][white] != IMAGE[white]) > 0.9


def test_a_network_that_inpaints_gets_the_mask_and_the_masked_image():
    model = tiny_model(inpaints=True)
    options = {"images": [IMAGE], "masks": [MASK]}
    base = pixels(options, model)
    inside = IMAGE.copy()
    inside[MASK >= 128] = 0
    plan = draw.make_plan(model, request(**options), model.sampling)
    assert plan.moments is None
    # Noise alone at the start: the masked pixels do not matter, but the others do.
    np.testing.assert_allclose(pixels(options | {"images": [inside]}, model), base, atol=1e-6)
    outside = IMAGE.copy()
    outside[MASK < 128] //= 2
    assert np.abs(pixels(options | {"images": [outside]}, model) - base).max() > 1e-4
    assert np.abs(pixels(options | {"masks": [MASK.T]}, model) - base).max() > 1e-4


def test_the_size_is_the_networks_own_or_that_of_the_image():
    tall = np.zeros((13, 9, 3), np.uint8)
    plans = {
        (8, 8): request(),
        (12, 6): request(height=12, width=6),
        (12, 8): request(images=[tall]),
    }
    for (height, width), wanted in plans.items():
        plan = draw.make_plan(smallest_model(), wanted, smallest_model().sampling)
        assert plan.shape == (height // 2, width // 2, 4)


def test_requests_that_do_not_fit_are_refused():
    def make(options):
        model = tiny_model(inpaints=options.pop("inpaints", False))
        sampling = dataclasses.replace(model.sampling, **options.pop("sampling", {}))
        draw.make_plan(model, request(**options), sampling)

    other = np.zeros((4, 8, 3), np.uint8)
    cases = [
        ({"prompts": []}, "There is no prompt"),
        ({"prompts": "a red"}, r"prompts must be a list of texts: write \['a red'\]"),
        ({"num_images": 0}, "num_images must be at least 1, not 0"),
        ({"noise": "torch"}, "Unknown noise 'torch'"),
        ({"seed": 2**32}, r"seed must be in \[0, 2\*\*32\)"),
        ({"seed": 2**64, "noise": "torch-cpu"}, r"seed must be in \[0, 2\*\*64\)"),
        ({"negative_prompts": ["a", "b"]}, "2 negative prompts do not fit 1 prompts"),
        (
            {"negative_prompts": ["a"], "sampling": {"guidance_scale": 1.0}},
            "A negative prompt needs guidance: set guidance_scale too, or leave it out",
        ),
        ({"sampling": {"guidance_scale": 0.0}}, "With guidance_scale 0 the prompt has no effect"),
        ({"masks": [MASK]}, "A mask is for an image"),
        ({"strength": 0.5}, "strength is for an image"),
        ({"images": [IMAGE], "strength": 0.0}, "strength must be above 0"),
        ({"images": [IMAGE], "strength": 0.1}, "leaves none of 3 steps"),
        ({"images": [IMAGE] * 2}, "2 images do not fit the 1 to be drawn"),
        ({"images": [IMAGE], "masks": [MASK] * 2}, "2 masks do not fit 1 images"),
        ({"images": [IMAGE, other], "num_images": 2}, "images differ in size"),
        ({"height": 0}, "height must be a multiple of 2 pixels, not 0: use 2"),
        ({"height": 9}, "height must be a multiple of 2 pixels, not 9: use 8 or 10"),
        ({"clip_skip": 2}, "it can skip 0 to 1 of them, not 2"),
        ({"inpaints": True}, "This network inpaints: give an image and a mask"),
        ({"inpaints": True, "images": [IMAGE]}, "This network inpaints: give an image and a mask"),
    ]
    assert_refused(make, cases)


def test_ids_beyond_the_text_encoder_are_refused():
    model = smallest_model()
    small = model._replace(text_encoder=dataclasses.replace(model.text_encoder, vocab_size=300))
    with pytest.raises(ValueError, match="id 520, but the text encoder has 300 embeddings"):
        dj.text_to_image.encode_text(small, dj.text_to_image.tokenize(small, ["a"]))


def test_the_network_computes_in_the_dtype():
    model = smallest_model()
    rows = jax.local_device_count()
    text = dj.TextCondition(jnp.zeros((rows, 2, 8)))
    counts = {}
    for dtype in ("float32", "bfloat16"):
        network = draw.guided_network(model._replace(dtype=dtype), model.sampling, text, text)
        traced = jax.make_jaxpr(network)(jnp.zeros((rows, 4, 4, 4)), jnp.zeros(rows))
        counts[dtype] = str(traced).count("bf16")
    assert counts["float32"] == 0 < counts["bfloat16"]
