"""The figures that diffusers' own scheduler tests expect (tests/schedulers of its repository), by our samplers.

Ten steps from a fixed picture with a made-up network. Each walk is the one that the scheduler takes there: its
timesteps, where it ends, and our `compat` where the two differ.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.grids import CLEAN, rows, spaced, times_of
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import sample, sample_keys
from ddpm_jax.schedule import from_betas, linear, per_example

PICTURE = jnp.asarray((np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 1, 2, 0), jnp.float32)
KEYS = sample_keys(0, jnp.arange(4))
LINEAR, LINEAR_1100 = from_betas(linear()), from_betas(linear(1100))

LEADING = spaced(1000, 10, "leading")
STRIDES_TO_DATA = LEADING, np.maximum(LEADING - 100, CLEAN)
STRIDES_TO_0 = LEADING, np.maximum(LEADING - 100, 0)
TENTHS = np.round(np.linspace(999, 0, 11)).astype(int)
TENTHS_TO_0 = TENTHS[:-1], TENTHS[1:]


def network(xt, t):
    share = (t / (t + 1)).astype(xt.dtype)
    return per_example(share, xt) * xt


def distances(x0):
    size = np.abs(np.asarray(x0, float))
    return size.sum(), size.mean()


class Case(NamedTuple):
    name: str
    walk: tuple[np.ndarray, np.ndarray]
    target: str
    total: float | None
    mean: float
    options: dict
    beta_start: float = 1e-4


COMPAT = {"compat": True}
CASES = [
    Case("ddim", STRIDES_TO_DATA, "eps", 172.0067, 0.223967, COMPAT),
    Case("ddim", STRIDES_TO_DATA, "v", 52.5302, 0.0684, COMPAT),
    Case("ddim", STRIDES_TO_DATA, "eps", 149.8295, 0.1951, COMPAT, 0.01),
    Case("ddim", STRIDES_TO_0, "eps", 149.0784, 0.1941, COMPAT, 0.01),
    Case("pndm", STRIDES_TO_0, "eps", 198.1318, 0.2580, COMPAT),
    Case("pndm", STRIDES_TO_0, "v", 67.3986, 0.0878, {**COMPAT, "average": "v"}),
    Case("pndm", STRIDES_TO_DATA, "eps", 230.0399, 0.2995, COMPAT, 0.01),
    Case("pndm", STRIDES_TO_0, "eps", 186.9482, 0.2434, COMPAT, 0.01),
    Case("unipc", TENTHS_TO_0, "eps", None, 0.2464, COMPAT),
    Case("unipc", TENTHS_TO_0, "v", None, 0.1014, COMPAT),
    Case("dpmpp_2m", TENTHS_TO_0, "eps", None, 0.3301, {}),
    Case("dpmpp_2m", TENTHS_TO_0, "v", None, 0.2251, {}),
    Case("dpmpp_2s", TENTHS_TO_0, "eps", None, 0.2791, COMPAT),
    Case("dpmpp_2s", TENTHS_TO_0, "v", None, 0.1453, COMPAT),
    Case("deis", TENTHS_TO_0, "eps", None, 0.23916, {**COMPAT, "order": 2}),
    Case("deis", TENTHS_TO_0, "v", None, 0.091, {**COMPAT, "order": 2}),
]


def case_id(case):
    return f"{case.name} {case.target} {case.total or case.mean}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_walk_ends_where_that_of_diffusers_does(case):
    schedule = from_betas(linear(beta_start=case.beta_start))
    clip_x0 = 1.0 if case.name == "ddim" else None
    denoise = make_denoiser(schedule, network, case.target, clip_x0, keep_eps=case.name == "ddim")
    grid = rows(schedule, *case.walk)
    total, mean = distances(sample(KEYS, denoise, samplers.make(case.name, **case.options), grid, PICTURE))
    assert abs(mean - case.mean) < 1e-4
    assert case.total is None or abs(total - case.total) < 1e-2


def network_of_sigma(xt, t):
    """diffusers' tests of samplers in sigma give `step`, for x at sigma, what is already x at t."""
    return network(xt / per_example(LINEAR_1100.at(t)[0], xt), t)


def denoise_in_sigma(denoise, xt, t):
    return denoise(xt * LINEAR_1100.at(t)[0], t)


IN_SIGMA = [
    ("euler", "linspace", "eps", 10.0807),
    ("euler", "linspace", "v", 0.0002),
    ("euler", "karras", "eps", 124.52299),
    ("lms", "linspace", "eps", 1006.388),
    ("lms", "linspace", "v", 0.0017),
    ("lms", "karras", "eps", 3812.9927),
    ("heun", "linspace", "eps", 0.1233),
    ("heun", "karras", "eps", 0.00015),
]


@pytest.mark.parametrize(("name", "spacing", "target", "expected"), IN_SIGMA)
def test_a_walk_in_sigma_ends_where_that_of_diffusers_does(name, spacing, target, expected):
    t = np.linspace(1099, 0, 10) if spacing == "linspace" else times_of(LINEAR_1100, 10, spacing)
    inner = make_denoiser(LINEAR_1100, network_of_sigma, target, None)
    grid = rows(LINEAR_1100, t, np.append(t[1:], CLEAN))
    xT = grid.row(0).sqrt_one_minus_alpha_bar * PICTURE
    x0 = sample(KEYS, Partial(denoise_in_sigma, inner), samplers.make(name), grid, xT)
    assert abs(distances(x0)[0] - expected) < max(1e-2, 1e-5 * expected)
