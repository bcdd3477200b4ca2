"""Random weights and images for the networks of features, with the outputs of PyTorch."""

import json
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parents[1] / "fixtures" / "features.npz"


def random_images(n=2, height=17, width=12):
    """Random uint8 images that are not square, with colours that change slowly."""
    coarse = np.random.RandomState(0).uniform(0, 255, (n, 4, 3, 3))
    fine = np.kron(coarse, np.ones((1, -(-height // 4), -(-width // 3), 1)))
    return fine[:, :height, :width].round().astype(np.uint8)


def random_arrays(shapes, seed=0):
    """Random tensors of a network in PyTorch's layout, from their shapes by name.

    Convolutions keep the scale of their input, and variances are positive.
    """
    rng = np.random.RandomState(seed)
    arrays = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith((".weight", ".running_var")):
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = 0.1 * rng.standard_normal(shape)
        arrays[name] = array.astype(np.float32)
    return arrays


def fixture(name):
    """The tensors of a narrow network and its outputs for `random_images()`, under PyTorch."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        return random_arrays(json.loads(str(file[f"{name}_shapes"]))), file[f"{name}_output"]
