"""Compare a Stable Diffusion of the hub with the numbers that diffusers' own tests expect.

    make hub-check REPO=CompVis/stable-diffusion-v1-4
    python tests/parity/hub_check.py REPO [--folder FOLDER] [--noise FOLDER]

This downloads the repository's weights, unless FOLDER holds them, and the noise files of
diffusers' tests. It needs the extras `text` and `hub`, but not PyTorch. Each line shows the largest
difference of eight or nine output values from the expected ones, and the bound of diffusers' test.

The numbers stand in tests/models/unets/test_models_unet_2d_condition.py and in
tests/models/autoencoders/test_models_autoencoder_kl.py of diffusers, and come from GPUs. Those of
stable-diffusion-2 were computed in float16. Everything here is computed in float32.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.generation.torch_noise import torch_normal
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion, load_stable_diffusion
from ddpm_jax.text_to_image.latents import encode_moments, posterior_sample

NOISE_DATASET = "fusing/diffusers-testing"
LoadNoise = Callable[[int, tuple[int, ...]], np.ndarray]
compiled = functools.cache(jax.jit)


class Case(NamedTuple):
    """A slice of a network's output for the noise of a seed."""

    part: Literal["unet", "decode", "reconstruct", "encode"]
    seed: int
    expected: tuple[float, ...]
    bound: float
    t: int = 0
    """The timestep. diffusers' tests name 0.55 and 0.89 too, but make integers of them."""


def unets(bound: float, *rows: tuple[int, int, tuple[float, ...]]) -> list[Case]:
    """Cases of the U-Net, from (seed, timestep, expected)."""
    return [Case("unet", seed, expected, bound, t) for seed, t, expected in rows]


# fmt: off
AUTOENCODER = [
    Case("decode", 13, (-.2051, -.1803, -.2311, -.2114, -.3292, -.3574, -.2953, -.3323), 1e-3),
    Case("decode", 37, (-.2632, -.2625, -.2199, -.2741, -.4539, -.4990, -.3720, -.4925), 1e-3),
    Case("reconstruct", 33, (-.1609, .9866, -.0487, -.0777, -.2716, .8368, -.2055, -.0814), 3e-3),
    Case("reconstruct", 47, (-.2377, .1147, .1333, -.4841, -.2506, -.0805, -.0491, -.4085), 3e-3),
    Case("encode", 33,
         (-.3001, .0918, -2.6984, -3.9720, -3.2099, -5.0353, 1.7338, -.2065, 3.4267), 3e-3),
    Case("encode", 47,
         (-1.5030, -4.3871, -6.0355, -9.1157, -1.6661, -2.7853, 2.1607, -5.0823, 2.5633), 3e-3),
]
PUBLISHED = {
    "CompVis/stable-diffusion-v1-4": [
        *unets(
            1e-3,
            (33, 4, (-.4424, .1510, -.1937, .2118, .3746, -.3957, .0160, -.0435)),
            (47, 0, (-.1508, .0379, -.3075, .2540, .3633, -.0821, .1719, -.0207)),
            (21, 0, (-.6479, .6364, -.3464, .8697, .4443, -.6289, -.0091, .1778)),
            (9, 1000, (.8888, -.5659, .5834, -.7469, 1.1912, -.3923, 1.1241, -.4424)),
        ),
        *AUTOENCODER,
    ],
    "stable-diffusion-v1-5/stable-diffusion-v1-5": unets(
        1e-3,
        (33, 4, (-.4430, .1570, -.1867, .2376, .3205, -.3681, .0525, -.0722)),
        (47, 0, (-.1415, .0129, -.3136, .2257, .3430, -.0536, .2114, -.0436)),
        (21, 0, (-.7091, .6664, -.3643, .9032, .4499, -.6541, .0139, .1750)),
        (9, 1000, (.8878, -.5659, .5844, -.7442, 1.1883, -.3927, 1.1192, -.4423)),
    ),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": unets(
        3e-3,
        (33, 4, (-.7639, .0106, -.1615, -.3487, -.0423, -.7972, .0085, -.4858)),
        (47, 0, (-.6564, .0795, -1.9026, -.6258, 1.8235, 1.2056, 1.2169, .9073)),
        (21, 0, (.0327, .4399, -.6358, .3417, .4120, -.5621, -.0397, -1.0430)),
        (9, 1000, (.1600, .7303, -1.0556, -.3515, -.7440, -1.2037, -1.8149, -1.8931)),
    ),
    "stabilityai/stable-diffusion-2": unets(
        5e-3,
        (83, 4, (.1514, .0807, .1624, .1016, -.1896, .0263, .0677, .2310)),
        (17, 0, (.1164, -.0216, .0170, .1589, -.3120, .1005, -.0581, -.1458)),
        (8, 0, (-.1758, -.0169, .1004, -.1411, .1312, .1103, -.1996, .2139)),
        (3, 1000, (.1214, .0352, -.0731, -.1562, -.0994, -.0906, -.2340, -.0539)),
    ),
}
"""{repository: cases}, in order of publication."""
# fmt: on
VARIANTS = {"stabilityai/stable-diffusion-2": "fp16"}
"""The variant of the weights that the numbers are for, if it is not the default one."""


def measure(model: StableDiffusion, case: Case, load: LoadNoise) -> np.ndarray:
    """The values of one case. Compute only the row that diffusers' tests slice."""
    size = model.unet.sample_size
    if case.part == "unet":
        xt = load(case.seed, (4, model.unet.in_channels, size, size))[-1:]
        states = load(case.seed, (4, model.text_encoder.max_length, model.unet.context_dim))[-1:]
        return unet_output(model, to_nhwc(xt), case.t, states)[-2:, -2:, :2].ravel()
    autoencoder = model.autoencoder
    channels = autoencoder.latent_channels
    if case.part == "decode":
        latents = to_nhwc(load(case.seed, (3, channels, size, size))[-1:])
        return decode(model, latents)[-2:, :2, -2:].ravel()
    pixels = size * autoencoder.factor
    images = to_nhwc(load(case.seed, (4, autoencoder.channels, pixels, pixels)))
    if case.part == "reconstruct":
        mode = posterior_sample(encode_moments(model, images[-1:]), None)
        return decode(model, mode)[-2:, -2:, :2].ravel()
    # One generator on the GPU draws the noise of the whole batch.
    (noise,) = torch_normal("torch-cuda", case.seed, [(4, channels, size, size)])
    moments = encode_moments(model, images[:1])
    sample = posterior_sample(moments, jnp.asarray(to_nhwc(noise[:1])))
    return to_chw(sample)[-1, -3:, -3:].ravel()


def unet_output(model, xt, t, states):
    """The output (c, h, w) for one xt. An inpainting network's mask and image are part of xt."""
    channels = model.unet.out_channels
    image = xt[..., channels:] if model.inpaints else None
    condition = TextCondition(jnp.asarray(states), image)
    inputs = xt[..., :channels], jnp.float32([t]), condition
    return to_chw(compiled(model.unet.apply)(model.unet_params, *inputs))


def decode(model, latents):
    """The image (c, h, w) of one latent, without the scaling factor."""
    return to_chw(compiled(model.autoencoder.decode)(model.autoencoder_params, latents))


def to_nhwc(array):
    """(b, c, h, w) -> (b, h, w, c)"""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def to_chw(array):
    """(1, h, w, c) -> (c, h, w)"""
    return np.asarray(array)[0].transpose(2, 0, 1)


def check(model: StableDiffusion, cases: list[Case], load: LoadNoise) -> int:
    """Print a line per case. Return how many are over their bound."""
    over = 0
    for case in cases:
        with jax.default_matmul_precision("highest"):
            values = measure(model, case, load)
        difference = float(np.max(np.abs(values - np.asarray(case.expected))))
        # Not `>`, so that NaN is over the bound.
        is_over = not difference <= case.bound
        name = f"{case.part} seed {case.seed} t {case.t}"
        mark = "OVER" if is_over else ""
        print(f"{name:24}{difference:9.1e} of at most {case.bound:.0e}  {mark}", flush=True)
        over += is_over
    return over


def file_name(seed: int, shape: tuple[int, ...]) -> str:
    """The name of the file of noise of a seed and a shape."""
    return f"gaussian_noise_s={seed}_shape={'_'.join(map(str, shape))}.npy"


def load_noise(folder: Path | None, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The noise of diffusers' tests, from a folder or from the hub."""
    name = file_name(seed, shape)
    if folder is None:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(NOISE_DATASET, name, repo_type="dataset"))
    else:
        path = folder / name
    return np.load(path, allow_pickle=False).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", choices=PUBLISHED)
    parser.add_argument("--folder", type=Path, help="a copy of the repository")
    parser.add_argument("--noise", type=Path, help=f"a copy of {NOISE_DATASET}")
    options = parser.parse_args()
    model = load_stable_diffusion(
        options.folder or options.repo, variant=VARIANTS.get(options.repo)
    )
    over = check(model, PUBLISHED[options.repo], functools.partial(load_noise, options.noise))
    if over:
        sys.exit(f"{over} of {len(PUBLISHED[options.repo])} are over their bounds.")


if __name__ == "__main__":
    main()
