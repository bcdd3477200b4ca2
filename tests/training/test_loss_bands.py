"""Losses by bands of t, against sums over the examples of each band."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.training import SGD, assert_same, linear_batch, linear_params

from ddpm_jax import draws
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.training.loss_bands import BANDS, band_edges, mean_by_band, sum_by_band
from ddpm_jax.training.step import init_state, make_train_step

T = 100  # eight bands of 12 or 13
summed = jax.jit(sum_by_band, static_argnums=3)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_the_mean_of_each_band_is_the_weighted_mean_of_its_examples(dtype):
    rng = np.random.default_rng(0)
    t, losses, weights = rng.uniform(0, 87, 200), rng.random(200), rng.uniform(0.5, 2, 200)
    t = t.astype(dtype)  # no example in the last band
    losses[7] = np.nan
    steps = [
        summed(t[rows], *(np.float32(x[rows]) for x in (losses, weights)), T)
        for rows in (slice(0, 100), slice(100, 200))
    ]
    expected = np.full(BANDS, np.nan)
    edges = band_edges(T)
    for i in range(BANDS):
        rows = (t >= edges[i]) & (t < edges[i + 1]) & np.isfinite(losses)
        if rows.any():
            expected[i] = np.average(losses[rows], weights=weights[rows])
    assert np.isnan(expected).sum() == 1
    np.testing.assert_allclose(mean_by_band(np.stack(steps)), expected, rtol=1e-5)


@pytest.mark.parametrize("sampling", ["uniform", "lognormal"])
def test_a_step_reports_the_losses_at_the_timesteps_that_its_loss_draws(sampling):
    objective = Objective(schedule="squaredcos", timesteps=T, timestep_sampling=sampling)

    def loss(params, keys, batch):
        def network(xt, t):
            return xt * params["b"][0] * per_pixel(t)

        noise_keys = draws.fold_in(keys, 0)
        return objective.loss(noise_keys, network, batch["image"], batch.get("t"))

    def per_pixel(t):
        return t.astype(jnp.float32)[:, None, None, None] / T

    batch = linear_batch(n=32)
    state = init_state(linear_params(), SGD)
    plain, _ = jax.jit(make_train_step(loss, SGD))(state, batch)
    after, metrics = jax.jit(make_train_step(loss, SGD, objective=objective))(state, batch)
    assert_same(after, plain)

    @jax.jit
    def sums(params, batch):
        t = objective.draw_timesteps(draws.fold_in(batch["key"], 0))
        return sum_by_band(t, loss(params, batch["key"], batch), jnp.ones(()), T)

    expected = sums(state.params, batch)
    np.testing.assert_allclose(metrics["loss_bands"], expected, rtol=1e-5)
    # Guard against a test without examples.
    assert np.count_nonzero(expected[1]) >= 4
