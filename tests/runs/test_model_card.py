"""The model card of an exported run: its facts, and no path of this machine."""

import dataclasses
import json

import pytest
from helpers.saved_runs import random_params

from ddpm_jax.config import Checkpoint, Config, Training
from ddpm_jax.data.folder import Folder
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.pipeline_folder import save_pretrained
from ddpm_jax.runs.model_card import write_card
from ddpm_jax.runs.sources import RunSource

MODEL = UNet(
    image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2
)


@pytest.fixture
def card(tmp_path):
    """Write the card of a run of 30 steps whose loss fell from 30 to 1, on images in a folder."""
    images = tmp_path / "cats"
    images.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [json.dumps({"step": i, "loss": float(31 - i)}) + "\n" for i in range(1, 41)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    result = {"bits_per_dim": 3.25, "bits_num": 256, "frechet": 1.5, "n": 5000, "step": 30}
    result |= {"features": "pixels", "sampling": {"sampler": "ddim", "steps": 20}}
    result |= {"weights": "ema", "version": "0.2.0"}
    (folder / "evaluation.json").write_text(json.dumps(result))
    config = Config(
        model=MODEL,
        data=Folder(path=str(images)),
        training=Training(steps=30),
        checkpoint=Checkpoint(every=10),
    )
    save_pretrained(config, random_params(MODEL), tmp_path / "out")

    def write(**changes):
        run = RunSource(folder, 30, dataclasses.replace(config, **changes))
        write_card(tmp_path / "out", run, "ema", "me/cats", "DDPMScheduler")
        return (tmp_path / "out/README.md").read_text()

    return write


def test_the_card_states_the_facts_of_the_run(card):
    text = card()
    assert f"{MODEL.parameter_count():,} parameters that draws grey images of 8 x 8 pixels" in text
    assert "trained for 30 steps on folder: cats with" in text
    # The last 20 losses at steps up to 30 are 20, 19, ..., 1.
    assert "training loss: 10.5000, the mean of the last 20 logged losses" in text
    assert "- bits per dimension, at most: 3.25 (256 images, step 30)\n" in text
    made_with = "5,000 images, step 30, ddim with 20 steps, features pixels"
    assert f"- Frechet distance: 1.5 ({made_with})\n" in text
    assert "scheduler: DDPMScheduler; the run's samples are drawn by ddpm in 100 steps" in text
    assert "--checkpoint.every 10" in text
    assert 'from_pretrained("me/cats")' in text


def test_the_card_names_the_classes_of_a_network_that_takes_labels(card, tmp_path):
    data = tmp_path / "run" / "checkpoints" / "30" / "data"
    data.mkdir(parents=True)
    (data / "metadata").write_text(json.dumps({"images": 2, "classes": ["cat", "dog"]}))
    assert "- classes:" not in card()
    text = card(model=dataclasses.replace(MODEL, num_classes=2))
    assert "- classes: 0: cat, 1: dog\n" in text


def test_the_newest_grid_up_to_the_step_is_copied_and_no_figure_beside_it(card, tmp_path):
    samples = tmp_path / "run" / "samples"
    samples.mkdir()
    names = ("00000010.png", "00000030.png", "00000030_predictions.png", "00000040.png")
    for name in names:
        (samples / name).write_text(name)
    assert "![samples](samples.png)" in card()
    assert (tmp_path / "out" / "samples.png").read_text() == "00000030.png"


def test_the_card_names_no_path_of_this_machine(card, tmp_path):
    options = {"statistics": str(tmp_path / "run/statistics.npz")}
    sampling = Sampling(sampler="dpm_solver_v3", options=options)
    training = Training(steps=30, init_from=str(tmp_path / "cats"))
    assert str(tmp_path) not in card(sampling=sampling, training=training)
    # A setting too long to be a path, such as all captions.
    assert "trained for 30 steps" in card(data=Folder(path="a/" + "b" * 300))


def test_the_code_in_the_card_draws_as_the_run_does(card):
    """It takes as many steps, and leaves out diffusers for a network that needs classes."""
    assert "(batch_size=4, num_inference_steps=1000).images" in card()
    assert "(batch_size=4, seed=0, steps=50).images" in card(sampling=Sampling(steps=50))
    text = card(model=dataclasses.replace(MODEL, num_classes=3))
    assert "import ddpm_jax" in text
    assert "import diffusers" not in text


def test_the_front_matter_is_what_the_hub_reads(card):
    head = card().split("---\n")[1]
    assert "library_name: diffusers\n" in head
    assert "pipeline_tag: unconditional-image-generation\n" in head
    for init_from, is_named in (("them/net", True), ("/home/me/gone", False)):
        head = card(training=Training(steps=30, init_from=init_from)).split("---\n")[1]
        assert (f"base_model: {init_from}\n" in head) == is_named


def test_measures_of_images_from_elsewhere_and_of_other_weights_are_left_out(card, tmp_path):
    path = tmp_path / "run" / "evaluation.json"
    result = json.loads(path.read_text())
    assert "Frechet" in card()
    for change in ({"step": None, "sampling": None}, {"weights": "raw"}):
        path.write_text(json.dumps(result | change))
        assert "Frechet" not in card()
