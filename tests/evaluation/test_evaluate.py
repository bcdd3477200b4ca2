"""`python -m ddpm_jax.evaluate --measures bits` on a tiny run: the bound, files and errors.

Every bound is over 12 images in batches of 8 and 4 parts of 2 timesteps, so that all tests share a
compiled program for each network and variance.
"""

import dataclasses
import io
import json
import shutil
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import one_line
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.cli import arguments, evaluate_network, evaluate_outputs
from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.config import config_to_json
from ddpm_jax.data import check_labels
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.huggingface import HuggingFace
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.likelihood import VariationalBound
from ddpm_jax.diffusion.likelihood import bits_per_dim as whole_bound
from ddpm_jax.evaluation import bits_per_dim, loss_bands, ode_likelihood, solver_statistics
from ddpm_jax.figures import plots
from ddpm_jax.figures.image_grids import save_images
from ddpm_jax.generation.generate import guided_network
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models import Model
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.samplers import sample_keys

pytestmark = pytest.mark.runs

NUM_IMAGES, BATCH_SIZE, SEED = 12, 8, 3
BITS = ("--measures", "bits")
SIZE = (*BITS, "--bits-num", NUM_IMAGES, "--batch-size", BATCH_SIZE, "--seed", SEED)


def run_command(run, *args) -> dict:
    """Run the command and read the JSON that it writes to the run's folder."""
    with arguments.one_line_errors(False):
        evaluate.main([str(arg) for arg in ("--ckpt", run, *args, "--no-compilation-cache")])
    return json.loads((run / "evaluation.json").read_text())


def measure(config, params, batch, variance=None) -> VariationalBound:
    """The bound of each image of `batch`, computed in batches and parts."""
    return bits_per_dim.evaluate(config, params, batch, BATCH_SIZE, SEED, variance)


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    monkeypatch.setattr(bits_per_dim, "PROGRESS_PARTS", 4)


@pytest.fixture(scope="module")
def batch(config):
    """The first images of the seed and their labels, read without `batch_at`."""
    images = config.data.load(config.model.image_size, config.model.channels)
    rows = np.random.RandomState([SEED, 0]).permutation(len(images))[:NUM_IMAGES]
    pixels = images.read(rows)
    return pixels | {"image": pixels["image"].astype(np.float32) / 127.5 - 1}


@pytest.fixture(scope="module")
def average(params):
    """The average that the run has saved."""
    return jax.tree.map(lambda x: 2 * x, params)


def test_the_command_measures_the_first_images_of_the_seed(run, config, average, batch, capsys):
    result = run_command(run, *SIZE)
    printed = capsys.readouterr().out
    assert result["bits_num"] == NUM_IMAGES
    assert "step 5, weights ema" in result["network"]
    assert "samples:" not in printed
    with Image.open(run / "evaluation_bits.png") as plot:
        assert plot.size[0] > 400
    assert "evaluation_bits.png" in printed
    bound_and_error = f"{result['bits_per_dim']:.5g} +- {result['bits_per_dim_error']:.2g}"
    assert f"bits per dimension, at most  {bound_and_error}" in printed
    parts = result["bound"]
    total = parts["prior"] + parts["steps"] + parts["decoder"]
    np.testing.assert_allclose(result["bits_per_dim"], total, rtol=1e-5)
    terms = parts["per_timestep"]
    np.testing.assert_allclose(np.sum(terms[1:]), parts["steps"], rtol=1e-5)
    np.testing.assert_allclose(terms[0], parts["decoder"], rtol=1e-5)

    bound = measure(config, average, batch)
    total = np.asarray(bound.total)
    standard_error = total.std(ddof=1) / np.sqrt(NUM_IMAGES)
    np.testing.assert_allclose(result["bits_per_dim"], total.mean(), rtol=1e-4)
    np.testing.assert_allclose(result["bits_per_dim_error"], standard_error, rtol=1e-3)
    np.testing.assert_allclose(terms, np.mean(bound.terms, 0), rtol=1e-3, atol=1e-6)


def test_the_options_choose_weights_and_variance(run, config, params, average, batch, monkeypatch):
    monkeypatch.setattr(plots, "bound_curve", lambda *_: None)
    result = run_command(run, *SIZE, "--weights", "raw", "--variance", "fixed_large")
    assert "weights raw" in result["network"]
    assert result["variance"] == "fixed_large"
    expected = float(np.mean(measure(config, params, batch, "fixed_large").total))
    others = [measure(config, average, batch, "fixed_large"), measure(config, params, batch)]
    np.testing.assert_allclose(result["bits_per_dim"], expected, rtol=1e-6)
    assert all(abs(float(np.mean(other.total)) - expected) > 1e-3 for other in others)


def test_the_command_measures_the_likelihood_by_the_ode(run, monkeypatch):
    monkeypatch.setattr(ode_likelihood, "STEPS", 4)
    result = run_command(run, "--measures", "ode_bits", *SIZE[2:])
    assert np.isfinite(result["ode_bits_per_dim"])
    assert result["ode_bits_per_dim_error"] > 0
    assert result["ode_trace_error"] > 0
    assert result["ode_steps"] == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Model):
    """A network of four numbers, whose bound compiles fast."""

    def apply(self, params, xt, t, condition=None, **options):
        a, b, c, d = params["numbers"]
        shift = b * jnp.sin(condition.astype(jnp.float32)) + c * t.astype(jnp.float32)
        output = a * xt + shift[:, None, None, None]
        return jnp.concatenate([output, d * xt], -1) if self.learned_variance else output


AFFINE = Affine(image_size=4, channels=1, num_classes=10)
NUMBERS = {"numbers": jnp.array([0.7, 0.2, 0.05, 0.4])}


def test_a_bound_in_batches_and_parts_is_the_whole_bound(config, batch):
    config = dataclasses.replace(config, model=AFFINE)
    bound = measure(config, NUMBERS, batch)
    network = guided_network(AFFINE, NUMBERS, jnp.asarray(batch["label"]))
    denoise = sampling_denoiser(config.objective, network, Sampling())
    keys = sample_keys(SEED, jnp.arange(NUM_IMAGES))
    whole = whole_bound(keys, config.objective.noise_schedule, denoise, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(bound.total, whole.total, rtol=1e-4)
    np.testing.assert_allclose(bound.terms, whole.terms, rtol=1e-3, atol=1e-6)


def test_a_learned_variance_is_used(config, batch):
    model = dataclasses.replace(AFFINE, learned_variance=True)
    objective = dataclasses.replace(config.objective, loss_kind="hybrid", variance="learned_range")
    learned = dataclasses.replace(config, model=model, objective=objective)
    by_default, by_name, fixed_small = (
        np.asarray(measure(learned, NUMBERS, batch, variance).total)
        for variance in (None, "learned_range", "fixed_small")
    )
    np.testing.assert_array_equal(by_default, by_name)
    assert abs(by_default.mean() - fixed_small.mean()) > 1e-3


def test_data_whose_classes_are_not_those_of_the_run_is_refused(config):
    """Its labels would stand for other classes."""
    config = dataclasses.replace(config, model=AFFINE)
    images = config.data.load(4, 1)
    check_labels(images, 10, tuple("0123456789"))
    for draw in (
        lambda classes: check_labels(images, 10, classes),
        lambda classes: solver_statistics.draw_batches(config, NUMBERS, 2, 2, 0, classes),
    ):
        with pytest.raises(ValueError, match=r"\(label 1 was 2 and is 1\): use data with the same"):
            draw(("0", "2", "1"))


def test_a_variance_that_was_not_trained_is_refused(run, capsys):
    args = ("--ckpt", run, "--measures", "bits", "--variance", "learned")
    assert "not trained for variance learned: use fixed_small" in one_line(
        capsys, evaluate.main, *args
    )


def test_the_split_of_the_data_can_be_replaced(config):
    assert evaluate.with_split(config.data, None) is config.data
    with pytest.raises(ValueError, match=r"The data has no splits \(.*\): leave out --split"):
        evaluate.with_split(config.data, "test")
    assert evaluate.with_split(Tfds(name="mnist"), "test") == Tfds(name="mnist", split="test")


def test_a_single_parquet_file_is_measured_as_no_split(config, tmp_path):
    """The file is the same whatever the split."""
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG")
    pq.write_table(pa.table({"image": [png.getvalue()]}), tmp_path / "a.parquet")
    source = HuggingFace(path=str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match="The data has no splits"):
        evaluate.with_split(source, "test")
    run = RunSource(tmp_path, 5, dataclasses.replace(config, data=source))
    _, described = evaluate.reference_of(run, EvaluateOptions())
    assert described["against_split"] is None


def test_more_images_than_the_data_has_end_in_one_line(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(run, *BITS, "--bits-num", 5000)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert (
        message == "error: --bits-num 5000 is more than the 1,797 images of the data: lower it.\n"
    )


def test_a_folder_that_cannot_be_written_to_is_found_before_the_measurement(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "reference_of", lambda *_: pytest.fail("measured"))
    (tmp_path / "x_bits.png").mkdir()
    with pytest.raises(SystemExit) as exit_:
        run_command(run, "--out", tmp_path / "x.json")
    assert exit_.value.code == 2
    assert "x_bits.png is a directory" in capsys.readouterr().err


def test_the_numbers_are_written_if_the_plot_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "x_bits.png").mkdir()
    numbers = {"bits_per_dim": 1.0, "bits_num": 2, "bound": {"per_timestep": [0.5, 0.5]}}
    plot = {"bits.png": partial(evaluate_network.draw_bound, numbers)}
    with pytest.raises(OSError, match=r"x_bits\.png \(.*written to"):
        evaluate_outputs.report({}, [(numbers, plot)], tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["bits_per_dim"] == 1
    assert len(list(tmp_path.glob("ddpm_jax-*/x_bits.png"))) == 1


NETWORK = {"measured": "abc", "step": 5, "weights": "ema"}
SAMPLES = {"kid": 0.5, "n": 8, "features": "pixels", "features_weights": "", "seeds": [0, 1]}
SAMPLES |= {"features_resize": "none", "per_seed": [{"kid": 0.4}, {"kid": 0.6}]}
BOUND = {"bits_per_dim": 1.0, "bits_num": 2}


def picture(path):
    path.write_text("picture")


def save(folder, *parts, network=NETWORK):
    evaluate_outputs.report(network, parts, folder / "x.json")
    return json.loads((folder / "x.json").read_text())


def test_numbers_of_one_network_are_collected_in_one_file(tmp_path):
    save(tmp_path, (SAMPLES, {"nearest.png": picture}))
    frechet = {**SAMPLES, "frechet": 2.0, "per_seed": [{"frechet": 1.0}, {"frechet": 3.0}]}
    del frechet["kid"]
    save(tmp_path, (frechet, {}))
    result = save(tmp_path, (BOUND, {"bits.png": picture}))
    assert (result["kid"], result["frechet"], result["bits_per_dim"]) == (0.5, 2, 1)
    assert result["per_seed"] == [{"kid": 0.4, "frechet": 1}, {"kid": 0.6, "frechet": 3}]
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x_bits.png", "x_nearest.png"}


@pytest.mark.parametrize(
    "change", [{"measured": "abd"}, {"step": 6}, {"weights": "raw"}, {"n": 9}, {"version": "0"}]
)
def test_numbers_made_differently_replace_those_of_a_file_and_its_pictures(tmp_path, change):
    save(tmp_path, (SAMPLES, {"nearest.png": picture}))
    earlier = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(earlier | change))
    result = save(tmp_path, (BOUND | {"n": 8}, {"bits.png": picture}))
    assert "kid" not in result
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x_bits.png"}


def test_a_picture_of_the_same_call_is_not_deleted(tmp_path):
    """The file holds bits of other images, with which the samples agree and the new bits do not."""
    save(tmp_path, (BOUND, {"bits.png": picture}))
    result = save(tmp_path, (SAMPLES, {"nearest.png": picture}), (BOUND | {"bits_num": 3}, {}))
    assert (result["kid"], result["bits_num"]) == (0.5, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x_nearest.png"}


def test_a_failed_measure_loses_none_of_those_before_it(tmp_path, capsys):
    def parts():
        yield BOUND, {"bits.png": picture}
        raise ValueError("The loss is not finite.")

    with pytest.raises(ValueError, match="The loss is not finite"):
        evaluate_outputs.report(NETWORK, parts(), tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["bits_per_dim"] == 1
    assert "bits per dimension, at most  1" in capsys.readouterr().out


def test_a_reference_that_does_not_fit_is_refused_before_samples_are_drawn(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "draw", lambda *_: pytest.fail("drawn"))
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(SystemExit):
        run_command(run, "--measures", "kid", "--against", tmp_path / "few.npz")
    assert "at least 4 reference images, not 3" in capsys.readouterr().err


def test_a_reference_folder_is_resized_as_in_training(config, tmp_path):
    wide = np.zeros((8, 24, 1), np.uint8)
    wide[:, 16:] = 255
    save_images(np.stack([wide] * 4), tmp_path / "wide")
    squashed = Folder(path=str(tmp_path / "wide"), resize="squash")
    source = RunSource(tmp_path, 5, dataclasses.replace(config, data=squashed))
    options = EvaluateOptions(against=tmp_path / "wide")
    images, _ = evaluate.reference_of(source, options)
    expected = squashed.load(4, 1).read(np.arange(4))["image"]
    np.testing.assert_array_equal(images.read(np.arange(4))["image"], expected)
    assert expected.max() > 200  # a crop to the centre has no white


def test_a_reference_folder_may_have_the_corrupt_images_that_training_allows(config, tmp_path):
    save_images(np.zeros((4, 8, 8, 1), np.uint8), tmp_path / "against")
    (tmp_path / "against" / "4.png").write_bytes(b"truncated")
    data = dataclasses.replace(config.data, max_corrupt_fraction=0.2)
    source = RunSource(tmp_path, 5, dataclasses.replace(config, data=data))
    images, _ = evaluate.reference_of(source, EvaluateOptions(against=tmp_path / "against"))
    assert len(images) == 4


def test_a_wrong_split_of_the_run_names_the_option_of_the_command(config, params, tmp_path, capsys):
    save_images(np.zeros((4, 8, 8, 1), np.uint8), tmp_path / "data" / "train")
    changed = dataclasses.replace(config, data=Folder(path=str(tmp_path / "data"), split="train"))
    with CheckpointWriter(tmp_path) as writer:
        parts = {"params": params, "ema_params": {"ema": params}}
        writer.save(5, parts, config_to_json(changed))
    args = ("--ckpt", tmp_path, "--split", "test", "--no-compilation-cache")
    message = one_line(capsys, evaluate.main, *args)
    assert "choose --split among train." in message


def test_the_settings_of_the_named_step_are_the_defaults(run, config, monkeypatch, tmp_path):
    """The newest step may have other ones."""
    folder = shutil.copytree(run, tmp_path / "run")
    newer = dataclasses.replace(config, sampling=Sampling(sampler="ddim", steps=3))
    with CheckpointWriter(folder) as writer:
        writer.save(7, {"params": {"w": np.zeros(1)}}, config_to_json(newer))
    seen = []
    monkeypatch.setattr(evaluate, "report", lambda result, parts, out: seen.append(result))
    monkeypatch.setattr(evaluate, "measure_parts", lambda source, spec, *_: seen.append(spec))
    args = ("--ckpt", folder, "--checkpoint", 5, "--no-compilation-cache")
    evaluate.main([str(arg) for arg in args])
    assert (seen[0].sampling.sampler, seen[0].sampling.steps) == ("ddpm", None)
    assert seen[1]["step"] == 5


@pytest.mark.parametrize("measures", ["--loss", "--measures bits ode_bits loss"])
@pytest.mark.parametrize("settings", ["--sampler unipc", "--steps 3", "--sampler.variance learned"])
def test_settings_of_sampling_are_refused_where_nothing_is_drawn(run, measures, settings, capsys):
    args = ("--ckpt", run, *measures.split(), *settings.split())
    message = one_line(capsys, evaluate.main, *args)
    assert message == f"error: {measures} draws nothing: leave out the settings of sampling.\n"


def test_a_bound_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="The bound is not finite: look for NaN in the weights"):
        bits_per_dim.summary(VariationalBound(jnp.full((2, 3), jnp.nan), jnp.zeros(2)))


def test_one_image_has_no_standard_error():
    """It was NaN, which JSON cannot hold."""
    cases = [
        lambda: bits_per_dim.summary(VariationalBound(jnp.ones((1, 3)), jnp.ones(1))),
        lambda: loss_bands.summary(np.ones((1, loss_bands.BANDS)), 8),
        lambda: ode_likelihood.OdeBits(np.ones((1, 2))).error,
    ]
    for case in cases:
        with pytest.raises(ValueError, match="An error needs at least 2 images, not 1: take more"):
            case()
