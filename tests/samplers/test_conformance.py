"""Our samplers reproduce the numbers that diffusers' own scheduler tests expect.

The numbers are from tests/schedulers of its repository. Each case takes ten steps from a fixed
image with a dummy network, and sets up the sampler from the scheduler's JSON.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import CLEAN_DATA, grid_from_pairs, timesteps_for
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, per_example
from ddpm_jax.generation.sampling import build_sampler
from ddpm_jax.generation.walk import sampling_denoiser, sampling_grid
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.samplers import sample, sample_keys

IMAGES = jnp.asarray((np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 1, 2, 0), jnp.float32)
KEYS = sample_keys(0, jnp.arange(4))
LINEAR = from_betas(linear_betas())
LINEAR_1100 = from_betas(linear_betas(1100))

TENTHS = np.round(np.linspace(999, 0, 11)).astype(int)


def network(xt, t):
    fraction = (t / (t + 1)).astype(xt.dtype)
    return per_example(fraction, xt) * xt


def abs_sum_and_mean(x0):
    size = np.abs(np.asarray(x0, float))
    return size.sum(), size.mean()


class Case(NamedTuple):
    scheduler: str
    config: dict
    target: str
    total: float | None
    mean: float


TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
BRIGHT = {"beta_start": 0.01}
CASES = [
    Case("DDIM", {}, "eps", 172.0067, 0.223967),
    Case("DDIM", {}, "v", 52.5302, 0.0684),
    Case("DDIM", BRIGHT, "eps", 149.8295, 0.1951),
    Case("DDIM", {**BRIGHT, "set_alpha_to_one": False}, "eps", 149.0784, 0.1941),
    Case("PNDM", {}, "eps", 198.1318, 0.2580),
    Case("PNDM", {}, "v", 67.3986, 0.0878),
    Case("PNDM", {**BRIGHT, "set_alpha_to_one": True}, "eps", 230.0399, 0.2995),
    Case("PNDM", BRIGHT, "eps", 186.9482, 0.2434),
    Case("UniPCMultistep", TO_SIGMA_MIN, "eps", None, 0.2464),
    Case("UniPCMultistep", TO_SIGMA_MIN, "v", None, 0.1014),
    Case("DPMSolverSinglestep", TO_SIGMA_MIN, "eps", None, 0.2791),
    Case("DPMSolverSinglestep", TO_SIGMA_MIN, "v", None, 0.1453),
    Case("DEISMultistep", {}, "eps", None, 0.23916),
    Case("DEISMultistep", {}, "v", None, 0.091),
]
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}


def case_id(case):
    return f"{case.scheduler} {case.target} {case.total or case.mean}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_sampling_from_a_scheduler_config_ends_where_diffusers_does(case):
    config = {
        "_class_name": f"{case.scheduler}Scheduler",
        "prediction_type": PREDICTION_TYPE[case.target],
    }
    _, objective, sampling = parse_scheduler(config | case.config)
    sampling = sampling.override(steps=10)
    sampler = build_sampler(objective, sampling)
    denoise = sampling_denoiser(objective, network, sampling)
    x0 = sample(KEYS, denoise, sampler, sampling_grid(objective, sampling), IMAGES)
    total, mean = abs_sum_and_mean(x0)
    assert abs(mean - case.mean) < 1e-4
    assert case.total is None or abs(total - case.total) < 1e-2


@pytest.mark.parametrize(("target", "expected"), [("eps", 0.3301), ("v", 0.2251)])
def test_dpmpp_2m_of_full_final_order_ends_where_diffusers_does(target, expected):
    denoise = make_denoiser(LINEAR, network, target, None)
    grid = grid_from_pairs(LINEAR, TENTHS[:-1], TENTHS[1:])
    x0 = sample(KEYS, denoise, samplers.make("dpmpp_2m"), grid, IMAGES)
    _, mean = abs_sum_and_mean(x0)
    assert abs(mean - expected) < 1e-4


# diffusers' tests of samplers in sigma scale x / sqrt(alpha_bar) to x for the network, and then
# pass x to `step`, which takes it for x / sqrt(alpha_bar). These two functions reproduce that.
def network_in_sigma(xt, t):
    sqrt_alpha_bar, _ = LINEAR_1100.signal_and_noise(t)
    return network(xt / per_example(sqrt_alpha_bar, xt), t)


def denoise_in_sigma(denoise, xt, t):
    sqrt_alpha_bar, _ = LINEAR_1100.signal_and_noise(t)
    return denoise(xt * sqrt_alpha_bar, t)


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
def test_a_sampler_in_sigma_ends_where_diffusers_does(name, spacing, target, expected):
    if spacing == "linspace":
        t = np.linspace(1099, 0, 10)
    else:
        t = timesteps_for(LINEAR_1100, 10, spacing)
    denoise = make_denoiser(LINEAR_1100, network_in_sigma, target, None)
    grid = grid_from_pairs(LINEAR_1100, t, np.append(t[1:], CLEAN_DATA))
    xT = grid.row(0).sqrt_one_minus_alpha_bar * IMAGES
    x0 = sample(KEYS, Partial(denoise_in_sigma, denoise), samplers.make(name), grid, xT)
    total, _ = abs_sum_and_mean(x0)
    assert abs(total - expected) < max(1e-2, 1e-5 * expected)
