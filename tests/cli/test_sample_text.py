"""sample.py with prompts: its outputs, what it asks `draw_images` for, and mistakes."""

import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import fails, one_line, run, unboxed
from helpers.text import IMAGE, MASK, tiny_model
from PIL import Image

from ddpm_jax.cli import sample, text_options
from ddpm_jax.cli.text_options import TextOptions
from ddpm_jax.pretrained.hub import OWN_SETTINGS
from ddpm_jax.pretrained.lora_files import save_lora, with_lora
from ddpm_jax.pretrained.pipeline_folder import NETS
from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion
from ddpm_jax.text_to_image import tokenize
from ddpm_jax.training.lora import Lora

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_stable_diffusion(tiny_model(), folder)
    # diffusers writes no such file.
    (folder / OWN_SETTINGS).unlink()
    return folder


@pytest.fixture
def files(tmp_path):
    """An image and a mask on disk."""
    paths = [tmp_path / "image.png", tmp_path / "mask.png"]
    for path, pixels in zip(paths, (IMAGE, MASK), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def draw(folder, *args):
    run(sample.main, "--ckpt", folder, "--no-compilation-cache", *args)


def test_a_prompt_is_drawn_to_a_png_of_its_own_size_and_to_an_array(folder, tmp_path, capsys):
    outs = [tmp_path / "heart.png", tmp_path / "hearts.npz"]
    prompts = ["a red heart"]
    draw(folder, "--prompt", *prompts, "--steps", 3, "--seed", 37, "--out", *outs)
    assert capsys.readouterr().out.split() == [str(path) for path in outs]
    images = np.load(outs[1], allow_pickle=False)["images"]
    assert (images.shape, images.dtype) == ((1, 8, 8, 3), np.uint8)
    assert images.std() > 0
    with Image.open(outs[0]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), images[0])


def test_attention_maps_are_written_beside_the_images(folder, tmp_path, capsys):
    out = tmp_path / "heart.png"
    options = ("--steps", 3, "--seed", 37, "--out", out, "--attention-maps")
    draw(folder, "--prompt", "a $red$ heart", *options)
    written = tmp_path / "heart_attention.png"
    assert capsys.readouterr().out.split() == [str(out), str(written)]
    with Image.open(written) as picture:
        # The image and four maps of at least 96 pixels beside each of four words.
        assert picture.width > 5 * 96
        assert picture.height > 4 * 96
    draw(folder, "--prompt", "red", "heart", *options)
    for i in range(2):
        assert (tmp_path / "heart_attention" / f"{i:05d}.png").is_file()
    message = one_line(capsys, sample.main, "--ckpt", folder, "--prompt", "", *options)
    assert "The prompt '' has no word, so there is no map to show" in message


@pytest.mark.parametrize("total", [1, 2])
def test_maps_are_named_after_the_first_output_and_replace_no_other(total, tmp_path):
    def files(*outs):
        options = TextOptions(out=tuple(tmp_path / out for out in outs), attention_maps=True)
        return [str(file.relative_to(tmp_path)) for file in options.map_files(total)]

    folder = ["heart.v2_attention/00000.png", "heart.v2_attention/00001.png"]
    assert files("heart.v2.png", "x.npz") == (["heart.v2_attention.png"] if total == 1 else folder)
    taken = "x_attention.png" if total == 1 else "x_attention/00001.png"
    with pytest.raises(ValueError, match="is written besides the images"):
        files("x.png", taken)
    if total == 2:
        with pytest.raises(ValueError, match="x_attention' is written besides the images"):
            files("x.png", "x_attention")
        (tmp_path / "old_attention").mkdir()
        (tmp_path / "old_attention" / "00002.png").touch()
        with pytest.raises(ValueError, match="more numbered pictures than the 2 to be written"):
            files("old.png")


def test_a_repository_is_looked_up_on_the_hub_unless_it_is_a_folder(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(text_options, "locate_folder", lambda name: asked.append(name) or folder)
    monkeypatch.chdir(tmp_path)
    assert text_options.find_pipeline("owner/name") == folder
    assert text_options.find_pipeline("no_repository") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert text_options.find_pipeline("owner/name") is None
    assert asked == ["owner/name"]


def test_a_text_network_of_the_package_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text_options.find_pipeline("emoji") == NETS / "emoji"
    assert text_options.find_pipeline("digits") is None
    (tmp_path / "emoji").mkdir()
    assert text_options.find_pipeline("emoji") is None


@pytest.fixture
def ask(monkeypatch, folder, tmp_path):
    """Run sample.py and return its arguments of `draw_images`, which is replaced."""
    calls = []

    def record(model, request, sampling, **options):
        calls.append(SimpleNamespace(model=model, request=request, sampling=sampling, **options))
        return np.zeros((request.total, 8, 8, 3), np.uint8)

    monkeypatch.setattr(text_options, "draw_images", record)

    def call(*args):
        draw(folder, "--out", tmp_path / "out.npz", *args)
        return calls[-1]

    return call


def test_an_output_that_cannot_be_written_is_refused_before_drawing(folder, tmp_path, capsys):
    outs = ("--out", tmp_path / "heart.png", "/proc/heart.png")
    message = one_line(capsys, sample.main, "--ckpt", folder, "--prompt", "a heart", *outs)
    assert "/proc/heart.png cannot be written" in message
    assert not (tmp_path / "heart.png").exists()


def test_a_folder_with_more_images_than_are_drawn_is_refused_before_drawing(
    folder, tmp_path, capsys
):
    (tmp_path / "00002.png").touch()
    command = ("--ckpt", folder, "--no-compilation-cache", "--prompt", "a", "b", "--out", tmp_path)
    message = one_line(capsys, sample.main, *command)
    assert "more numbered pictures than the 2 to be written" in message
    assert [file.name for file in tmp_path.iterdir()] == ["00002.png"]


def test_lora_files_change_the_unet_and_the_text_encoder(ask, tmp_path):
    model = tiny_model()
    settings = Lora(rank=2)
    nets = {"unet": model.unet, "text_encoder": model.text_encoder}
    rng = np.random.default_rng(0)
    loras = {
        part: jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape), jnp.float32),
            settings.trained_shapes(net.shapes()),
        )
        for part, net in nets.items()
    }
    file = tmp_path / "style.safetensors"
    save_lora(file, loras, nets, settings)
    expected = with_lora(with_lora(model, file), file, -0.5)
    drawn = ask("--prompt", "a", "--lora", file, f"{file}:-0.5").model
    for part in ("unet_params", "text_params"):
        ours = getattr(drawn, part)
        jax.tree.map(np.testing.assert_array_equal, ours, getattr(expected, part))
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, getattr(model, part))))


def test_the_options_reach_the_request_and_the_sampling(ask, files, tmp_path):
    listed = tmp_path / "prompts.txt"
    listed.write_text("a blue heart\n\n  two hearts \n", encoding="utf-8")
    call = ask(
        *("--prompt", "a", "b", "--prompt-file", listed, "--num", 2, "--negative-prompt", "blurry"),
        *("--image", files[0], "--mask", files[1], "--strength", 0.5, "--height", 4, "--width", 6),
        *("--noise", "torch-cuda", "--seed", 2**40, "--clip-skip", 1, "--dtype", "bfloat16"),
        *("--sampler", "unipc", "--steps", 20, "--guidance-scale", 5.5, "--batch-size", 3),
    )
    request = call.request
    assert list(request.prompts) == ["a", "b", "a blue heart", "two hearts"]
    assert list(request.negative_prompts) == ["blurry"]
    assert (request.num_images, request.total, call.batch_size) == (2, 8, 3)
    assert (list(request.images), list(request.masks)) == ([files[0]], [files[1]])
    assert (request.strength, request.height, request.width) == (0.5, 4, 6)
    assert (request.noise, request.seed, request.clip_skip) == ("torch-cuda", 2**40, 1)
    assert call.model.dtype == "bfloat16"
    sampling = call.sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance_scale) == ("unipc", 20, 5.5)
    # As diffusers' UniPC reads the JSON of the folder.
    assert (sampling.spacing, sampling.grid, sampling.clip_x0) == ("linspace", "inner", False)


def test_the_defaults_are_those_of_diffusers(ask):
    call = ask("--prompt", "a")
    assert (call.sampling.sampler, call.sampling.steps) == ("ddim", 50)
    assert call.sampling.guidance_scale == 7.5
    request = call.request
    assert (list(request.negative_prompts), request.num_images) == ([""], 1)
    assert (request.height, request.width, request.strength) == (None, None, None)


def test_a_file_of_prompts_may_have_the_mark_of_windows(ask, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\na dog\r\n")
    assert ask("--prompt-file", path).request.prompts == ["a cat", "a dog"]


def test_mistakes_end_in_one_line(folder, files, tmp_path, capsys):
    """They are found before the weights are read: the folder of most cases has none."""
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    image = ("--prompt", "a", "--image", files[0])
    cases = [
        ((), "There is no prompt: give --prompt TEXT or --prompt-file FILE."),
        (("--prompt-file", tmp_path / "none.txt"), "There is no file .*none.txt: check --prompt-f"),
        (("--prompt-file", binary), "is not UTF-8"),
        (("--prompt", "a", "--height", 9), "height must be a multiple of 2 pixels, not 9"),
        (("--prompt", "a", "--mask", files[1]), "A mask is for an image"),
        (("--prompt", "a", "--image", tmp_path / "none.png"), "There is no image .*none.png"),
        ((*image, "--strength", 0.001), "Strength 0.001 leaves none of 50 steps"),
        (("--prompt", "a", "--clip-skip", 2), "it can skip 0 to 1 of them, not 2"),
        (("--prompt", "", "--attention-maps"), "The prompt '' has no word"),
    ]
    for args, pattern in cases:
        command = ("--ckpt", bare, "--no-compilation-cache", *args)
        assert re.search(pattern, one_line(capsys, sample.main, *command)), args
    other_variant = ("--ckpt", folder, "--prompt", "a", "--variant", "fp16")
    assert "the variants there are None" in one_line(capsys, sample.main, *other_variant)
    for args, pattern in (
        (("--out",), "--out names no file"),
        (("--num", 0), "--num must be at least 1, not 0"),
        (("--seed", 2**32), "--seed must be in [0, 2**32), not 4294967296"),
        (("--seed", 2**64, "--noise", "torch-cpu"), "--seed must be in [0, 2**64)"),
        (("--weights", "raw"), "leave out --weights and --checkpoint"),
    ):
        message = unboxed(fails(capsys, sample.main, "--ckpt", folder, "--prompt", "a", *args))
        assert pattern in message


@pytest.mark.filterwarnings("default")
def test_words_that_are_cut_off_are_named_in_one_line(folder, tmp_path, monkeypatch, capsys):
    def tokenize_only(model, request, sampling, **options):
        tokenize(model, request.prompts)
        return np.zeros((1, 8, 8, 3), np.uint8)

    monkeypatch.setattr(text_options, "draw_images", tokenize_only)
    draw(folder, "--prompt", "a " * 75 + "blue heart", "--out", tmp_path / "out.png")
    assert capsys.readouterr().err == (
        "warning: The prompt is longer than 75 tokens, so this is cut off: 'blue heart'.\n"
    )
