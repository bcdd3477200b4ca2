"""`python -m ddpm_jax.evaluate` on samples: numbers, how they were made, comparisons, errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fails, one_line, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_jax import evaluate
from ddpm_jax.cli.evaluate_images import choose_samples
from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.data.decode import ORIENTATION
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
from ddpm_jax.evaluation import measures, reference
from ddpm_jax.evaluation.features import Features, load_features, names
from ddpm_jax.evaluation.frechet import frechet_distance, moments
from ddpm_jax.evaluation.image_sets import digest, read_samples
from ddpm_jax.evaluation.measures import over_seeds
from ddpm_jax.evaluation.reference import Reference, cached_vectors, feature_vectors
from ddpm_jax.evaluation.results import cell, compare
from ddpm_jax.figures.image_grids import save_images

MEASURES = ("--measures", "frechet", "kid", "precision_recall", "nearest")
IN_PROCESS = "--no-compilation-cache"


@pytest.fixture(scope="module")
def digits():
    """Real digits (300, 8, 8, 1), in the order of the data."""
    return Digits().load(8, 1).read(np.arange(300))["image"]


@pytest.fixture
def sets(digits, tmp_path):
    """Two disjoint sets of real digits as files: the folder's path, `a.npz` and `b.npz`."""
    np.savez(tmp_path / "a.npz", images=digits[:100])
    np.savez(tmp_path / "b.npz", images=digits[100:])
    return tmp_path


def measure(folder, samples, against, *args) -> dict:
    out = folder / "x.json"
    paths = ("--samples", folder / samples, "--against", folder / against, "--out", out)
    run(evaluate.main, *paths, IN_PROCESS, *args)
    return json.loads(out.read_text())


def test_samples_are_measured_against_a_reference(sets, digits, capsys):
    result = measure(sets, "a.npz", "b.npz", *MEASURES)
    assert (result["n"], result["against_n"], result["features"]) == (100, 200, "pixels")
    rows = digits.reshape(300, -1) / 255
    expected = frechet_distance(moments(rows[:100]), moments(rows[100:]))
    assert result["frechet"] == pytest.approx(expected, rel=1e-5)
    assert abs(result["kid"]) < 4 * result["kid_error"]
    assert result["precision"] > 0.7
    assert result["recall"] > 0.7
    assert 0.8 < result["nearest_ratio"] < 1.25
    assert result["frechet_spread"] is None
    printed = capsys.readouterr().out
    assert f"Frechet distance  {expected:.5g}" in printed
    assert "100" in printed and "weights: none, resize: none" in printed
    assert result["against_images"] in printed


def test_no_number_depends_on_the_batch_size(run_folder, tmp_path):
    args = ("--num", 16, "--sampler", "ddim", "--steps", 2, "--measures", "frechet", "kid")
    results = []
    for n in (5, 16):
        out = tmp_path / f"{n}.json"
        paths = ("--ckpt", run_folder, "--out", out)
        run(evaluate.main, *paths, *args, "--batch-size", n, IN_PROCESS)
        results.append(json.loads(out.read_text()))
    for name in ("frechet", "kid"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3, abs=1e-5)


def test_some_of_the_samples_are_taken_at_random(digits):
    """The first files of a folder may all be of one class."""
    rows = np.repeat(np.arange(200, dtype=np.uint8), 4).reshape(200, 2, 2, 1)
    chosen = choose_samples(InMemory(rows), 20)[:, 0, 0, 0]
    assert len(set(chosen)) == 20
    assert chosen.max() > 100 and np.all(np.diff(chosen.astype(int)) > 0)
    np.testing.assert_array_equal(choose_samples(InMemory(rows), 20)[:, 0, 0, 0], chosen)


def test_copies_are_found_and_shown_beside_their_originals(sets, digits):
    np.savez(sets / "copies.npz", images=digits[120:140])
    result = measure(sets, "copies.npz", "b.npz", "--measures", "nearest")
    assert result["nearest_ratio"] == pytest.approx(0, abs=1e-6)
    with Image.open(sets / "x_nearest.png") as picture:
        pixels = np.asarray(picture.convert("L"), int)
    # Both rows of the picture show the same digits: ten cells of 48 px with borders of 2 px.
    rows = pixels[-10 - 2 * 52 : -10, -10 - 502 : -10].reshape(2, 52, 502)
    assert rows.std() > 50
    np.testing.assert_array_equal(rows[0], rows[1])


def test_a_folder_has_the_numbers_of_its_array(sets, digits):
    save_images(digits[:100], sets / "folder")
    of_folder = measure(sets, "folder", "b.npz", "--measures", "frechet", "kid")
    of_array = measure(sets, "a.npz", "b.npz", "--measures", "frechet", "kid")
    assert {**of_folder, "samples": ""} == {**of_array, "samples": ""}
    swapped = measure(sets, "b.npz", "folder", "--measures", "frechet")
    assert swapped["frechet"] == pytest.approx(of_array["frechet"], rel=0.5)


def test_a_run_is_measured_on_its_own_data_over_seeds(run_folder, capsys):
    args = ("--num", 8, "--seeds", 2, "--sampler", "ddim", "--steps", 2, "--batch-size", 8)
    measures = ("--measures", "frechet", "speed")
    run(evaluate.main, "--ckpt", run_folder, *args, *measures, IN_PROCESS)
    result = json.loads((run_folder / "evaluation.json").read_text())
    assert (result["n"], result["against_n"], result["seeds"]) == (8, 1797, [0, 1])
    assert (result["sampling"]["sampler"], result["sampling"]["steps"]) == ("ddim", 2)
    values = [numbers["frechet"] for numbers in result["per_seed"]]
    assert values[0] != values[1]
    assert result["frechet"] == pytest.approx(np.mean(values))
    assert result["frechet_spread"] == pytest.approx(np.std(values, ddof=1))
    assert result["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert f"(+- {result['frechet_spread']:.2g} over 2 seeds)" in printed
    assert f"(+- {result['images_per_second_spread']:.2g} over 3 batches)" in printed
    assert "ddim with 2 steps, seed 0, 1" in printed


def test_speed_needs_no_reference_images(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "reference_of", lambda *_: pytest.fail("read the data"))
    args = ("--sampler", "ddim", "--steps", 2, "--batch-size", 8, "--out", tmp_path / "x.json")
    run(evaluate.main, "--ckpt", run_folder, "--measures", "speed", *args, IN_PROCESS)
    assert "against" not in json.loads((tmp_path / "x.json").read_text())


@pytest.fixture
def run_folder(run):
    """The run of conftest.py, by a name that does not hide `helpers.commands.run`."""
    return run


def test_the_spread_over_seeds_is_a_standard_deviation():
    numbers = [{"kid": 1.0, "kid_error": 0.5}, {"kid": 3.0, "kid_error": 0.7}]
    assert over_seeds(numbers) == {
        "kid": 2,
        "kid_spread": pytest.approx(np.sqrt(2)),
        "kid_error": pytest.approx(0.6),
    }
    assert over_seeds(numbers[:1])["kid_spread"] is None


def test_features_of_a_reference_are_cached_by_images_and_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    computed = []

    def apply(images):
        computed.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    images = InMemory(np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1))
    features = Features("test", "abc", "none", apply)
    first = cached_vectors(features, images, digest(images))
    np.testing.assert_array_equal(first, images.images.reshape(10, 4))
    assert computed == [10]
    np.testing.assert_array_equal(cached_vectors(features, images, digest(images)), first)
    assert len(computed) == 1
    changed = InMemory(images.images + np.uint8(1))
    np.testing.assert_array_equal(cached_vectors(features, changed, digest(changed)), first + 1)
    cached_vectors(features._replace(weights="abd"), images, digest(images))
    assert len(computed) == 3
    monkeypatch.setattr(reference, "FORMAT", reference.FORMAT + 1)
    cached_vectors(features, images, digest(images))
    assert len(computed) == 4
    for path in (tmp_path / "ddpm_jax" / "features").iterdir():
        path.write_bytes(b"damaged")
    np.testing.assert_array_equal(cached_vectors(features, images, digest(images)), first)
    assert len(computed) == 5
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cached_vectors(features, images, digest(images))
    assert len(computed) == 6


def test_pixels_are_in_0_to_1():
    features = load_features("pixels")
    images = InMemory(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1))
    vectors = feature_vectors(features, images)
    np.testing.assert_allclose(vectors, [[0], [0.2], [1]])
    assert "pixels" in names()


RESULT = {
    "frechet": 1.0,
    "kid": 0.5,
    "kid_error": 0.1,
    "n": 10,
    "features": "pixels",
    "features_weights": "",
    "features_resize": "none",
    "against": "digits",
    "against_n": 20,
    "against_images": "abc",
    "sampling": {"sampler": "ddim", "steps": 5},
    "seeds": [0],
}


def test_numbers_made_in_one_way_are_set_beside_each_other():
    other = RESULT | {"frechet": 2.0, "against": "elsewhere/digits", "precision": 0.5}
    lines = compare({"a": RESULT, "b": other}).splitlines()
    assert [line.split() for line in lines] == [
        ["measure", "a", "b"],
        ["Frechet", "distance", "1", "2"],
        ["KID", "0.5", "+-", "0.1", "0.5", "+-", "0.1"],
    ]


def test_small_numbers_keep_their_digits_and_an_error_beside_a_mean_is_that_of_one_seed():
    result = RESULT | {"kid": 0.0012345678, "kid_error": 0.000456, "seeds": [0, 1]}
    assert cell(result, "kid") == "0.0012346 +- 0.00046"
    result |= {"kid_spread": 0.000321}
    assert cell(result, "kid") == "0.0012346 +- 0.00046 for one seed (+- 0.00032 over 2 seeds)"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"n": 11}, "n (10; 11)"),
        ({"features": "inception"}, "features (pixels; inception)"),
        ({"features_weights": "d"}, "features_weights (; d)"),
        ({"features_resize": "to 8"}, "features_resize (none; to 8)"),
        ({"against_images": "abd"}, "against (digits, 20 images; digits, 20 images)"),
        ({"sampling": {"sampler": "ddim", "steps": 6}}, "sampling.steps (5; 6)"),
        ({"sampling": None}, "sampling.sampler (ddim; drawn elsewhere)"),
        ({"conditions": "those of others"}, "conditions (None; those of others)"),
    ],
)
def test_numbers_made_differently_are_refused(change, difference):
    key = difference.partition(" ")[0]
    cause = f"a and b were made differently: {difference}. Measure again in one way, or "
    with pytest.raises(ValueError, match=re.escape(f"{cause}allow it by --may-differ {key}.")):
        compare({"a": RESULT, "b": RESULT | change})
    assert "KID" in compare({"a": RESULT, "b": RESULT | change}, [key])
    assert "KID" in compare({"a": RESULT, "b": RESULT | change}, [key.partition(".")[0]])


def test_a_setting_that_an_older_result_lacks_had_its_default():
    sampling = {"sampler": "ddim", "steps": 5, "condition_noise": 0.0}
    assert "KID" in compare({"a": RESULT, "b": RESULT | {"sampling": sampling}})
    noisy = RESULT | {"sampling": sampling | {"condition_noise": 0.1}}
    with pytest.raises(ValueError, match=r"sampling.condition_noise \(0.0; 0.1\)"):
        compare({"a": RESULT, "b": noisy})


def test_bits_do_not_depend_on_the_samples():
    bits = {"bits_per_dim": 3.0, "bits_num": 9, "variance": "fixed_small"}
    shared = {"against_images": "abc", "against": "digits", "against_n": 20}
    a = {**bits, **shared, "sampling": {"steps": 5}, "n": 5}
    assert "at most" in compare({"a": a, "b": a | {"n": 6, "sampling": {"steps": 9}}})
    with pytest.raises(ValueError, match=r"bits_num \(9; 8\)"):
        compare({"a": a, "b": a | {"bits_num": 8}})
    with pytest.raises(ValueError, match="have no number in common"):
        compare({"a": a, "b": RESULT})


def test_speeds_are_compared_without_a_reference():
    a = {"images_per_second": 9.0, "images_per_second_spread": 1.0, "device": "8 x cpu"}
    with pytest.raises(ValueError, match=r"device \(8 x cpu; 1 x gpu\)"):
        compare({"a": a, "b": a | {"device": "1 x gpu"}})
    assert "images a second" in compare({"a": a, "b": a | {"device": "1 x gpu"}}, ["device"])


def test_upright_photos_of_one_size_are_samples_as_they_are(tmp_path):
    """Photos that a camera held sideways wrote: the file says how to turn them."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the first row of pixels is the right side
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    turned = Image.fromarray(np.rot90(pixels).copy())
    turned.save(tmp_path / "turned.png", exif=exif)
    images = read_samples(tmp_path)
    np.testing.assert_array_equal(images.read(np.arange(2))["image"], [pixels, pixels])


def test_samples_of_16_bits_are_grey(tmp_path):
    """Pillow reads a PGM as mode I, and a TIFF of the other byte order as I;16B."""
    levels = np.full((8, 6), 257 * 40, ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 6 8 65535 " + levels.tobytes())
    Image.frombytes("I;16B", (6, 8), levels.tobytes()).save(tmp_path / "b.tif")
    images = read_samples(tmp_path).read(np.arange(2))["image"]
    np.testing.assert_array_equal(images, np.full((2, 8, 6, 1), 40))


def test_samples_whose_metadata_pillow_refuses_are_read(tmp_path):
    text = PngInfo()
    text.add_text("Comment", "x" * 2 * 2**20, zip=True)
    Image.new("L", (6, 8), 40).save(tmp_path / "a.png", pnginfo=text)
    assert read_samples(tmp_path).read(np.arange(1))["image"].shape == (1, 8, 6, 1)


def test_a_corrupt_image_names_no_option_of_training(sets, digits, capsys):
    save_images(digits[:5], sets / "cut")
    (sets / "cut" / "5.png").write_bytes(b"truncated")
    args = ("--samples", sets / "a.npz", "--against", sets / "cut")
    message = fails(capsys, evaluate.main, *args).splitlines()[-1]
    assert "1 of 6 images cannot be used: replace or remove them. The first error" in message


def test_losses_of_other_objectives_are_refused():
    shared = {"loss": 0.1, "bits_num": 9, "against_images": "abc", "against": "digits"}
    a = shared | {"against_n": 20, "objective": {"target": "eps", "weighting": "simple"}}
    for objective, difference in (
        ({"target": "v", "weighting": "simple"}, r"objective\.target \(eps; v\)"),
        (None, r"objective\.target \(eps; unknown\)"),
    ):
        with pytest.raises(ValueError, match=f"made differently: {difference}\\."):
            compare({"a": a, "b": a | {"objective": objective}})


def test_results_are_compared_by_the_command(sets, capsys):
    a = sets / "a.json"
    measure(sets, "a.npz", "b.npz", "--measures", "kid")
    (sets / "x.json").rename(a)
    measure(sets, "a.npz", "b.npz", "--measures", "kid", "--num", 50)
    capsys.readouterr()
    message = one_line(capsys, evaluate.main, "--compare", a, sets / "x.json")
    assert "n (100; 50)" in message
    run(evaluate.main, "--compare", a, sets / "x.json", "--may-differ", "n")
    assert capsys.readouterr().out.startswith("measure")


@pytest.mark.parametrize(
    ("option", "arguments", "unused"),
    [
        ("--samples", ("--weights", "raw", "--checkpoint", 5), "--weights, --checkpoint"),
        ("--samples", ("--seeds", 2), "--seeds"),
        ("--samples", ("--may-differ", "n"), "--may-differ"),
        ("--compare", ("--out", "x.json"), "--out"),
        ("--compare", ("--measures", "kid", "--num", 9), "--measures, --num"),
        ("--loss", ("--measures", "kid", "--num", 9), "--measures, --num"),
        ("--ckpt", ("--may-differ", "n"), "--may-differ"),
        ("--measures bits", ("--num", 9, "--seeds", 2), "--num, --seeds"),
        ("--measures kid", ("--bits-num", 9), "--bits-num"),
        ("--measures speed", ("--split", "test"), "--split"),
        ("--measures speed", ("--seed", 3), "--seed"),
    ],
)
def test_options_without_effect_are_refused(sets, run_folder, capsys, option, arguments, unused):
    given = {
        "--samples": ("--samples", sets / "a.npz", "--against", sets / "b.npz"),
        "--compare": ("--compare", "a.json", "b.json"),
        "--loss": ("--ckpt", run_folder, "--loss"),
        "--ckpt": ("--ckpt", run_folder),
    }
    of_network = ("--ckpt", run_folder, *option.split())
    message = one_line(capsys, evaluate.main, *given.get(option, of_network), *arguments)
    assert f"{option} does not use {unused}: leave out {unused}." in message


@pytest.mark.parametrize("whose", ["samples", "reference images"])
def test_features_that_are_not_finite_are_refused(whose):
    """NaN counted as the distance 0: samples of NaN had a precision of 1."""
    good = np.random.default_rng(0).random((8, 2))
    bad = np.where(np.arange(8)[:, None] == 3, np.nan, good)
    vectors, reference = (bad, good) if whose == "samples" else (good, bad)
    with pytest.raises(ValueError, match=f"Features of the {whose} are not finite"):
        measures.measure(vectors, Reference(reference), ["precision_recall", "nearest"])


def test_a_measure_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="Unknown measures fid: choose from frechet, kid"):
        measures.measure(np.zeros((4, 2)), Reference(np.zeros((4, 2))), ["frechet", "fid"])


def test_mistakes_end_in_one_line(sets, digits, run_folder, capsys):
    def fails(*args) -> str:
        return one_line(capsys, evaluate.main, *args)

    np.savez_compressed(sets / "packed.npz", images=digits)
    against = ("--against", sets / "b.npz")
    assert "Nothing to measure: give" in fails()
    assert "--samples needs reference images" in fails("--samples", sets / "a.npz")
    assert "There is no file" in fails("--samples", sets / "c.npz", *against)
    assert "does not exist" in fails("--samples", sets / "c", *against)
    samples = ("--samples", sets / "a.npz")
    assert "need a network, bits: give" in fails(*samples, *against, "--measures", "bits")
    assert "--num 101 is more than the 100 samples" in fails(*samples, *against, "--num", 101)
    assert "leave out --split" in fails(*samples, *against, "--split", "test")
    assert "leave out --samples" in fails("--ckpt", run_folder, *samples, *against)
    assert "There is no file" in fails("--compare", sets / "a.json", sets / "b.json")
    (sets / "a.json").write_text("{}")
    assert "holds no result" in fails("--compare", sets / "a.json", sets / "a.json")
    for name, array, message in (
        ("floats", digits / 255, "give uint8"),
        ("flat", digits[..., 0], "give uint8"),
        ("channels", np.repeat(digits, 2, -1), "are 8x8x1, and the samples 8x8x2"),
    ):
        np.savez(sets / f"{name}.npz", images=array)
        assert message in fails("--samples", sets / f"{name}.npz", *against)
    np.save(sets / "array.npy", digits)
    (sets / "array.npy").rename(sets / "array.npz")
    assert "an array `images`" in fails("--samples", sets / "array.npz", *against)
    content = bytearray((sets / "packed.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (sets / "packed.npz").write_bytes(content)
    assert "an array `images`" in fails("--samples", sets / "packed.npz", *against)
    np.savez(sets / "few.npz", images=digits[:3])
    assert "at least 4 samples, not 3" in fails("--samples", sets / "few.npz", *against)
    few = ("--against", sets / "few.npz")
    assert "at least 4 reference images, not 3" in fails(*samples, *few)
    np.savez(sets / "other.npz", pixels=digits)
    assert "an array `images`" in fails("--samples", sets / "other.npz", *against)
    (sets / "text.npz").write_text("text")
    assert "an array `images`" in fails("--samples", sets / "text.npz", *against)
    np.savez(sets / "large.npz", images=np.repeat(digits, 2, 1))
    assert "are 16x8x1, and the samples 8x8x1" in fails(*samples, "--against", sets / "large.npz")
    save_images(digits[:5], sets / "splits" / "train")
    folder = ("--against", sets / "splits")
    assert "Samples of 2 channels" in fails("--samples", sets / "channels.npz", *folder)
    assert "choose one by --split, or" in fails(*samples, "--against", sets / "splits")
    save_images(digits[:2], sets / "mixed")
    Image.new("L", (9, 9)).save(sets / "mixed" / "9.png")
    assert "not of one size (8x8, 9x9)" in fails("--samples", sets / "mixed", *against)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num": 3}, "--num must be at least 4"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"seed": 2**32 - 1, "seeds": 2}, "The last seed must be in"),
        ({"bits_num": 1}, "--bits-num must be at least 2, for a standard error, not 1"),
        ({"measures": ()}, "names no measure"),
        ({"features": "unknown"}, "Unknown features 'unknown': choose one of .*pixels"),
        ({"out": Path("x.png")}, r"--out must end in \.json, not x\.png"),
        ({"compare": (Path("a.json"),)}, "--compare needs at least two files"),
    ],
)
def test_options_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        EvaluateOptions(**setting)
