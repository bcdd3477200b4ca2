"""Measure the quality of the digits that `make demo` samples.

    python benchmarks/digits.py runs/digits/samples.npz [--in-turn]

Print the Frechet distance of the samples to all 1,797 real digits (8x8 pixels in [0, 1]), and for
comparison the distance of as many real digits to the rest. Print how many samples a classifier
fitted on the real digits assigns to each class. Print how far a sample is from the nearest real
digit, relative to how far real digits are from each other (medians): about 1 for new digits, 0 for
copies. Exit with status 1 if the Frechet distance is above 0.20, if a class is missing, or if the
relative distance is below 0.7.

With --in-turn, for samples whose classes were requested in turn, print instead the fraction of
samples of the requested class, and their variance within a class relative to the real digits.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddpm_jax.evaluation.frechet import frechet_distance, moments
from ddpm_jax.evaluation.nearest import nearest, typical_distance


def frechet_of_real(real: np.ndarray, n: int, repeats: int = 20) -> float:
    """The median distance of n random real digits to the rest."""
    orders = [np.random.RandomState(i).permutation(len(real)) for i in range(repeats)]
    distances = [
        frechet_distance(moments(real[order[:n]]), moments(real[order[n:]])) for order in orders
    ]
    return float(np.median(distances))


def load_samples(path: str) -> np.ndarray:
    """The samples of a .npz file as rows of 64 pixels in [0, 1]."""
    images = np.load(path, allow_pickle=False)["images"]  # (n, 8, 8, 1)
    return images.reshape(-1, 64) / 255


def variance_within_classes(images: np.ndarray, classes: np.ndarray) -> float:
    """The mean over the ten classes of the sum of their pixels' variances."""
    return np.mean([images[classes == label].var(0).sum() for label in range(10)])


def print_by_class(path: str) -> int:
    """Print the measurements of classes drawn in turn. Return exit status 0."""
    digits = load_digits()
    real = digits.data / 16
    samples = load_samples(path)
    requested = np.arange(len(samples)) % 10
    predicted = SVC(gamma=0.02).fit(real, digits.target).predict(samples)
    of_samples = variance_within_classes(samples, requested)
    of_real = variance_within_classes(real, digits.target)
    fraction = np.mean(predicted == requested)
    print(f"samples of the requested class            {fraction:.1%} of {len(samples)}")
    print(f"variance within a class, relative to real {of_samples / of_real:.2f}")
    return 0


def main(path: str) -> int:
    """Print the measurements. Return exit status 0 if the samples are good, else 1."""
    digits = load_digits()
    real = digits.data / 16
    samples = load_samples(path)
    distance = frechet_distance(moments(samples), moments(real))
    predicted = SVC(gamma=0.02).fit(real, digits.target).predict(samples)
    classes = np.bincount(predicted, minlength=10)
    ratio = np.median(nearest(samples, real).distances) / typical_distance(real, len(real))
    print(f"samples                                  {len(samples)}")
    print(f"Frechet distance to the real digits      {distance:.3f} (at most 0.20)")
    print(f"  of as many real digits to the rest     {frechet_of_real(real, len(samples)):.3f}")
    print(f"samples of each class 0..9               {classes.tolist()} (each at least 1)")
    print(f"median distance to the nearest real one  {ratio:.2f} of a real digit's (at least 0.70)")
    return 0 if distance <= 0.20 and classes.min() > 0 and ratio >= 0.7 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help=".npz file of samples")
    parser.add_argument("--in-turn", action="store_true")
    options = parser.parse_args()
    sys.exit(print_by_class(options.path) if options.in_turn else main(options.path))
