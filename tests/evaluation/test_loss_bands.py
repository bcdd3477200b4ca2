"""The loss by bands of t: of exact networks, and in any batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.evaluation.loss_bands import BANDS, band_losses, summary
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Model

OBJECTIVE = Objective(schedule="squaredcos", target="x0", timesteps=80)
IMAGES = np.zeros((24, 2, 2, 1), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByTime(Model):
    """A network that outputs a multiple of t, so that its loss shows t."""

    def apply(self, params, xt, t, condition=None, **options):
        return jnp.broadcast_to(
            params["scale"] * t.astype(jnp.float32)[:, None, None, None], xt.shape
        )


SPEC = ModelSpec(model=ByTime(image_size=2, channels=1), objective=OBJECTIVE)


def losses(scale=1.0, batch_size=24, seed=0):
    return band_losses(SPEC, {"scale": jnp.float32(scale)}, {"image": IMAGES}, batch_size, seed)


def test_each_band_has_the_timesteps_of_its_eighth():
    """The images are 0, so the loss is t squared."""
    t = np.sqrt(losses())
    assert t.shape == (24, BANDS)
    np.testing.assert_allclose(t, np.round(t), atol=1e-4)
    for band in range(BANDS):
        assert t[:, band].min() >= 10 * band
        assert t[:, band].max() < 10 * (band + 1)
        assert len(np.unique(np.round(t[:, band]))) > 3


def test_losses_depend_on_seed_and_image_alone():
    np.testing.assert_allclose(losses(batch_size=8), losses(), rtol=1e-6)
    assert np.any(losses(seed=1) != losses())


def test_the_summary_has_the_mean_of_all_bands_and_of_each():
    """With T = 12, every second band has two timesteps, the others have one."""
    by_band = np.tile([1.0, 3.0], 4)
    values = np.stack([by_band, by_band + 2])
    mean = (4 * 2 + 8 * 4) / 12
    assert summary(values, 12) == {
        "loss": pytest.approx(mean),
        "loss_error": pytest.approx(1),
        "loss_bands": [2, 4] * 4,
        "loss_bands_error": [pytest.approx(1)] * 8,
    }


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="The loss is not finite: look for NaN in the weights"):
        losses(scale=np.nan)
