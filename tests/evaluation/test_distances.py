"""Distances between sets of vectors, against limits, exact solutions and other implementations."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics import pairwise_distances

from ddpm_jax.evaluation import distances
from ddpm_jax.evaluation.frechet import Moments, frechet_distance, moments, square_root
from ddpm_jax.evaluation.kid import BLOCKS, kernel_distance
from ddpm_jax.evaluation.nearest import nearest, typical_distance
from ddpm_jax.evaluation.precision_recall import precision_recall


def normal(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(params=[2**23, 50])
def pairs(request, monkeypatch):
    """Compute all pairs at once, and in blocks of one to three rows."""
    monkeypatch.setattr(distances, "PAIRS", request.param)


def test_moments_match_numpy():
    vectors = normal(0, 50, 3).astype(np.float32) + 1000
    mean, root = moments(vectors)
    np.testing.assert_allclose(mean, vectors.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(root.T @ root, np.cov(vectors.astype(np.float64), rowvar=False))


@pytest.mark.parametrize("rank", [6, 3, 1])
def test_the_frechet_distance_matches_the_matrix_square_root_of_scipy(rank):
    """Also with covariances that have no inverse."""
    a = normal(1, 40, rank) @ normal(2, rank, 6)
    b = 0.3 + normal(3, 30, rank) @ normal(4, rank, 6)
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # SciPy may find no root of a singular matrix, so add a little, as pytorch-fid does.
    ridge = 1e-7 * np.eye(6)
    root = scipy.linalg.sqrtm((cov_a + ridge) @ (cov_b + ridge)).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-3)


def test_the_frechet_distance_of_fewer_images_than_dimensions_to_themselves_is_0():
    few = moments(normal(5, 7, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("many", [12, 60])
def test_images_fewer_than_dimensions_have_the_distance_of_their_covariances(many):
    """No matrix has more numbers than the vectors. A root of all d rows has the same distance."""
    few, others = normal(20, 10, 40), 0.5 + normal(21, many, 40)
    assert moments(few).root.shape == (10, 40)
    whole = [Moments(x.mean(0), square_root(np.cov(x, rowvar=False))) for x in (few, others)]
    distance = frechet_distance(moments(few), moments(others))
    assert distance == pytest.approx(frechet_distance(*whole), rel=1e-6)
    assert distance == pytest.approx(frechet_distance(moments(others), moments(few)), rel=1e-6)


def test_the_frechet_distance_of_gaussians_with_common_axes_is_known():
    """|mean_1 - mean_2|^2 plus the squared differences of the standard deviations."""
    stds = np.array([[1.0, 2.0, 0.0], [3.0, 0.5, 1.0]])
    axes = np.linalg.qr(normal(6, 3, 3))[0]
    a, b = (Moments(mean * np.ones(3), (axes * std).T) for mean, std in enumerate(stds))
    assert frechet_distance(a, b) == pytest.approx(3 + 4 + 2.25 + 1)


def test_the_kernel_distance_matches_the_sum_over_pairs(pairs):
    a = normal(7, 25, 4)
    b = normal(8, 30, 4) + 0.5

    def kernel(x, y):
        return sum((xi * yi for xi, yi in zip(x, y, strict=True))) / 4 + 1

    def mean(xs, ys):
        values = [kernel(x, y) ** 3 for x in xs for y in ys if x is not y]
        return np.mean(values)

    xs, ys = list(a), list(b)
    expected = mean(xs, xs) + mean(ys, ys) - 2 * mean(xs, ys)
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_equal_distributions_has_mean_0_and_its_error_is_its_spread():
    results = [kernel_distance(normal(i, 60, 3), normal(1000 + i, 80, 3)) for i in range(100)]
    values, errors = np.array(results).T
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 3 * spread / np.sqrt(100)
    # The jackknife is biased upwards, most of all where the distance itself is 0.
    assert 0.8 < errors.mean() / spread < 2


def test_the_error_of_a_positive_kernel_distance_is_its_spread():
    results = [kernel_distance(normal(i, 60, 3), normal(1000 + i, 80, 3) + 1) for i in range(100)]
    values, errors = np.array(results).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.25)


def test_data_that_is_sorted_by_class_has_the_same_error():
    """Blocks in the order of the data would each hold one class, and the error would be 5 times."""
    vectors = np.repeat([[0.0] * 4, [2.0] * 4], 200, axis=0) + 0.1 * normal(9, 400, 4)
    other = normal(10, 400, 4)
    shuffled = vectors[np.random.default_rng(0).permutation(400)]
    by_class = kernel_distance(vectors, other)
    assert by_class.value == pytest.approx(kernel_distance(shuffled, other).value)
    assert by_class.error == pytest.approx(kernel_distance(shuffled, other).error, rel=0.5)
    assert BLOCKS == 20


def test_precision_and_recall_match_the_definition(pairs):
    samples = normal(11, 30, 2)
    reference = 0.8 * normal(12, 40, 2) + 0.5

    def within(points, centres):
        # The nearest of all is the centre itself.
        radii = np.sort(pairwise_distances(centres), 1)[:, 3]
        return np.mean(np.any(pairwise_distances(points, centres) <= radii[None], 1))

    result = precision_recall(samples, reference)
    assert result == (within(samples, reference), within(reference, samples))
    assert 0 < result.recall != result.precision < 1


def test_precision_and_recall_of_two_limits():
    vectors = normal(13, 50, 3)
    assert precision_recall(vectors, vectors) == (1, 1)
    assert precision_recall(vectors, vectors + 100) == (0, 0)
    # A point of the reference, repeated: every sample is right, and nearly all variety is missing.
    precision, recall = precision_recall(np.repeat(vectors[:1], 50, 0), vectors)
    assert precision == 1
    assert recall == 1 / 50


def test_copies_are_nearest_to_their_originals(pairs):
    reference = normal(14, 60, 5)
    found = nearest(reference[10:20], reference)
    np.testing.assert_array_equal(found.indices, np.arange(10, 20))
    np.testing.assert_array_equal(found.distances, 0)


def test_copies_of_long_vectors_have_the_distance_0_and_one_level_in_one_pixel_has_not():
    """|x|^2 + |y|^2 - 2 x.y would leave a rounding error in either direction."""
    levels = np.random.default_rng(22).integers(0, 256, (8, 20_000)).astype(np.float32)
    reference = np.repeat(levels, 5, 0) / 255
    copies = levels / 255
    np.testing.assert_array_equal(nearest(copies, reference).distances, 0)
    assert precision_recall(copies, reference) == (1, 1)
    with pytest.raises(ValueError, match="have a copy among the others"):
        typical_distance(reference, 100)
    copies[:, 0] = (levels[:, 0] + 1) / 255
    np.testing.assert_allclose(nearest(copies, reference).distances, 1 / 255, rtol=1e-2)


def test_new_samples_are_as_far_away_as_held_out_ones(pairs):
    reference = normal(15, 60, 5)
    samples = normal(16, 50, 5)
    all_pairs = pairwise_distances(reference)
    np.fill_diagonal(all_pairs, np.inf)
    typical = typical_distance(reference, 1000)
    assert typical == pytest.approx(np.median(all_pairs.min(1)))
    assert 0.8 < np.median(nearest(samples, reference).distances) / typical < 1.25
    assert typical_distance(reference, 30) != typical


@pytest.mark.parametrize("offset", [0, 1e4])
def test_a_common_offset_loses_no_digits(offset):
    reference = normal(17, 20, 3)
    found = nearest(reference + 0.01 + offset, reference + offset)
    np.testing.assert_allclose(found.distances, 0.01 * np.sqrt(3), rtol=1e-6)


def test_too_few_images_are_refused():
    few = normal(18, 3, 2)
    for measure, least in (
        (lambda: moments(few[:1]), "at least two"),
        (lambda: kernel_distance(few, few), "at least four"),
        (lambda: precision_recall(few, few), "more than 3"),
        (lambda: typical_distance(few[:1], 5), "at least two"),
    ):
        with pytest.raises(ValueError, match=least):
            measure()


def test_a_reference_of_copies_is_refused():
    with pytest.raises(ValueError, match="have a copy among the others: remove the copies"):
        typical_distance(np.repeat(normal(19, 3, 2), 2, 0), 100)
