"""How good the demo's digits are: python benchmarks/digits.py runs/digits/samples.npz [--in-turn]

Prints the Frechet distance of the samples to all 1,797 real digits (8x8 pixels in [0, 1]) beside that of as many
real digits to the rest, the classes a classifier fitted on the real digits finds, and whether they are copies. Exits
with status 1 if the distance is above 0.20, a class is missing, or the samples lie nearer to the real digits than
0.7 of the distance of a real digit to the others. With --in-turn, for classes drawn in turn, it prints instead how many
samples are of the class that was asked for, and their variance within a class over that of the real digits.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.svm import SVC


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Frechet distance of the Gaussians fitted to the rows of a and b: Eq. 6, Heusel et al. 2017."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root_trace = np.sum(np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)))
    return float(
        np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace
    )


def frechet_of_real(real: np.ndarray, count: int, repeats: int = 20) -> float:
    """The median distance of `count` random real digits to the rest."""
    orders = [np.random.RandomState(i).permutation(len(real)) for i in range(repeats)]
    return float(
        np.median([frechet_distance(real[order[:count]], real[order[count:]]) for order in orders])
    )


def by_class(path: str) -> int:
    """Prints what holds of classes drawn in turn."""
    digits = load_digits()
    samples = np.load(path, allow_pickle=False)["images"].reshape(-1, 64) / 255
    asked = np.arange(len(samples)) % 10
    found = SVC(gamma=0.02).fit(digits.data / 16, digits.target).predict(samples)
    within = [
        np.mean([images[classes == label].var(0).sum() for label in range(10)])
        for images, classes in ((samples, asked), (digits.data / 16, digits.target))
    ]
    print(
        f"samples of the class that was asked for  {np.mean(found == asked):.1%} of {len(samples)}"
    )
    print(f"variance within a class, over the real  {within[0] / within[1]:.2f}")
    return 0


def main(path: str) -> int:
    """Prints the figures; 0 if the samples are good."""
    digits = load_digits()
    real = digits.data / 16
    samples = np.load(path, allow_pickle=False)["images"].reshape(-1, 64) / 255
    distance = frechet_distance(samples, real)
    classes = np.bincount(SVC(gamma=0.02).fit(real, digits.target).predict(samples), minlength=10)
    to_samples = np.median(pairwise_distances(samples, real).min(1))
    among_real = pairwise_distances(real)
    np.fill_diagonal(among_real, np.inf)
    ratio = to_samples / np.median(among_real.min(1))
    print(f"samples                                  {len(samples)}")
    print(f"Frechet distance to the real digits      {distance:.3f} (at most 0.20)")
    print(f"  of as many real digits to the rest     {frechet_of_real(real, len(samples)):.3f}")
    print(f"samples of each class 0..9               {classes.tolist()} (each at least 1)")
    print(f"median distance to the nearest real one  {ratio:.2f} of a real digit's (at least 0.70)")
    return 0 if distance <= 0.20 and classes.min() > 0 and ratio >= 0.7 else 1


if __name__ == "__main__":
    sys.exit((by_class if "--in-turn" in sys.argv else main)(sys.argv[1]))
