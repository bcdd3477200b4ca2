"""Images of a small random Stable Diffusion, beside those that diffusers drew of it.

`python tests/parity/stable_diffusion_pipelines.py` writes diffusers' images to the fixture.
"""

import numpy as np
import pytest
from helpers.text import FIXTURE, IMAGE, MASK, RECORDED, RECORDED_CALL, tiny_model

from ddpm_jax.text_to_image.draw import draw_pixels
from ddpm_jax.text_to_image.request import Request


@pytest.mark.parametrize("name", RECORDED)
def test_images_equal_those_of_diffusers_from_pytorchs_seed(name):
    case = RECORDED[name]
    model = tiny_model(case.inpaints)
    wanted = Request(
        prompts=[RECORDED_CALL["prompt"]],
        negative_prompts=[RECORDED_CALL["negative_prompt"]],
        seed=RECORDED_CALL["seed"],
        noise="torch-cpu",
        images=[] if case.task == "text" else [IMAGE],
        masks=[MASK] if case.task == "inpaint" else [],
        strength=case.strength,
    )
    sampling = model.sampling.override(guidance_rescale=case.guidance_rescale)
    drawn = np.clip(draw_pixels(model, wanted, sampling) / 2 + 0.5, 0, 1)
    with np.load(FIXTURE, allow_pickle=False) as file:
        np.testing.assert_allclose(drawn, file[name], atol=1e-5)
