"""Folders of Stable Diffusion: parts, schedulers as diffusers' pipelines read them, refusals."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.hostile import NUMBERS, calls
from helpers.pretrained import write_bin
from helpers.refusals import assert_refused
from helpers.text import HUB_SCHEDULER, SAVED_SCHEDULER, tiny_model

from ddpm_jax.generation.walk import sampling_grid
from ddpm_jax.pretrained import stable_diffusion
from ddpm_jax.pretrained.latent_scheduler import parse_latent_scheduler, sampling_for, with_sampler
from ddpm_jax.pretrained.stable_diffusion import (
    is_text_to_image,
    load_stable_diffusion,
    save_stable_diffusion,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_stable_diffusion(tiny_model(), folder)
    return folder


def test_a_folder_with_other_weights_of_any_part_keeps_all_its_files(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").touch()
    with pytest.raises(ValueError, match="vae holds other weights"):
        save_stable_diffusion(tiny_model(), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [
        "vae",
        "diffusion_pytorch_model.fp16.safetensors",
    ]


def test_a_saved_pipeline_loads_with_the_same_parts(folder):
    saved = tiny_model()
    loaded = load_stable_diffusion(folder)
    for part in ("text_encoder", "unet"):
        assert getattr(loaded, part) == getattr(saved, part)
    for part in ("text_params", "unet_params", "autoencoder_params", "tokenizer_files"):
        jax.tree.map(np.testing.assert_array_equal, getattr(loaded, part), getattr(saved, part))
    assert loaded.scheduler == saved.scheduler
    assert (loaded.sampling.steps, loaded.sampling.guidance_scale) == (3, 7.5)
    assert not loaded.inpaints


def test_the_text_network_of_the_package_is_read():
    model = load_stable_diffusion("emoji")
    assert (model.unet.sample_size, model.autoencoder.factor) == (8, 4)
    assert (model.sampling.sampler, model.sampling.steps) == ("ddim", 50)
    assert model.sampling.guidance_scale == 3.0
    trees = (model.text_params, model.unet_params, model.autoencoder_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(trees))
    assert count == 3_048_040 + 689_083
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trees))


def test_the_variant_chooses_the_files_of_all_three_networks(folder, tmp_path):
    """Beside them are the files without a variant, with other weights."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for file in list(tmp_path.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    model = tiny_model()
    parts = ("text_params", "unet_params", "autoencoder_params")
    zeros = {part: jax.tree.map(np.zeros_like, getattr(model, part)) for part in parts}
    save_stable_diffusion(model._replace(**zeros), tmp_path / "zeros")
    for file in (tmp_path / "zeros").rglob("*.safetensors"):
        file.rename(tmp_path / file.relative_to(tmp_path / "zeros"))
    by_variant = {
        None: zeros,
        "fp16": {part: getattr(model, part) for part in parts},
    }
    for variant, expected in by_variant.items():
        loaded = load_stable_diffusion(tmp_path, variant=variant)
        for part in parts:
            jax.tree.map(np.testing.assert_array_equal, getattr(loaded, part), expected[part])


def test_the_index_names_the_classes_that_diffusers_opens(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["safety_checker"] == [None, None]
    save_stable_diffusion(tiny_model(inpaints=True), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert load_stable_diffusion(tmp_path).inpaints


def test_parameters_are_kept_in_the_dtype_but_the_autoencoders_in_float32(folder):
    loaded = load_stable_diffusion(folder, dtype="bfloat16", scheduler="EulerDiscreteScheduler")
    dtypes = {
        part: {str(leaf.dtype) for leaf in jax.tree.leaves(getattr(loaded, f"{part}_params"))}
        for part in ("text", "unet", "autoencoder")
    }
    assert dtypes == {"text": {"bfloat16"}, "unet": {"bfloat16"}, "autoencoder": {"float32"}}
    assert loaded.sampling.sampler == "euler"
    assert loaded.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_another_scheduler_gets_the_keys_of_the_json_and_its_own_defaults_for_the_rest():
    """The timesteps that diffusers 0.42 gives for 50 steps of Stable Diffusion 1.4."""
    cases = [
        (HUB_SCHEDULER, None, [981, 961, 941], [41, 21, 1]),
        (HUB_SCHEDULER, "ddim", [981, 961, 941], [41, 21, 1]),
        (HUB_SCHEDULER, "unipc", [999, 979, 959], [60, 40, 20]),
        (HUB_SCHEDULER, "dpmpp_2m", [999, 979, 959], [60, 40, 20]),
        (HUB_SCHEDULER, "euler", [999, 978.6122, 958.2245], [40.7755, 20.3878, 0]),
        (SAVED_SCHEDULER, "unipc", [951, 932, 913], [58, 39, 20]),
        (SAVED_SCHEDULER, "euler", [981, 961, 941], [41, 21, 1]),
    ]
    objective = parse_latent_scheduler(HUB_SCHEDULER).objective
    for config, sampler, first, last in cases:
        t = np.asarray(sampling_grid(objective, sampling_for(config, sampler)).t)
        np.testing.assert_allclose(t[:3], first, atol=1e-3, err_msg=f"{sampler}")
        np.testing.assert_allclose(t[-3:], last, atol=1e-3, err_msg=f"{sampler}")
    by_sampler = {sampler: sampling_for(HUB_SCHEDULER, sampler) for sampler in ("ddim", "dpmpp_3m")}
    assert by_sampler["ddim"].end == "sigma_min"
    assert by_sampler["dpmpp_3m"].grid == "inner"
    assert not any(sampling.clip_x0 for sampling in by_sampler.values())


def test_the_sampler_that_is_asked_for_is_the_one_that_is_used():
    """Whatever else the JSON would make of the scheduler that has it."""
    sde = HUB_SCHEDULER | {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
    }
    third_order = HUB_SCHEDULER | {"_class_name": "UniPCMultistepScheduler", "solver_order": 3}
    for config in (HUB_SCHEDULER, sde, third_order):
        for sampler in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "deis", "edm"):
            assert sampling_for(config, sampler).sampler == sampler
    assert sampling_for(third_order, "unipc").options["order"] == 3
    # Not the end of PNDM, which is a noise level.
    assert sampling_for(HUB_SCHEDULER, "edm").end is None


def test_a_pipeline_loaded_with_another_scheduler_is_saved_as_it_is(folder, tmp_path):
    """Values that the other scheduler does not know, and defaults that differ, do not matter."""
    shutil.copytree(folder, tmp_path / "unipc")
    path = tmp_path / "unipc" / "scheduler" / "scheduler_config.json"
    config = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2", "beta_end": 0.012}
    path.write_text(json.dumps(config))
    index_path = tmp_path / "unipc" / "model_index.json"
    index = json.loads(index_path.read_text())
    index_path.write_text(json.dumps(index | {"scheduler": ["diffusers", config["_class_name"]]}))
    for name in ("DPMSolverMultistepScheduler", "HeunDiscreteScheduler"):
        model = load_stable_diffusion(tmp_path / "unipc", scheduler=name)
        save_stable_diffusion(model, tmp_path / name)
        again = load_stable_diffusion(tmp_path / name)
        assert again.sampling == model.sampling
        assert again.objective == model.objective
        assert again.objective.beta_start == 1e-4
        assert sampling_for(again.scheduler, "ddim").sampler == "ddim"


def test_zero_terminal_snr_survives_a_scheduler_without_a_key_for_it(folder, tmp_path):
    ddim = shutil.copytree(folder, tmp_path / "ddim")
    (ddim / "ddpm_jax.json").unlink()
    path = ddim / "scheduler" / "scheduler_config.json"
    change = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for name in ("PNDMScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler"):
        model = load_stable_diffusion(ddim, scheduler=name)
        assert model.objective.zero_terminal_snr, name
        save_stable_diffusion(model, tmp_path / name)
        again = load_stable_diffusion(tmp_path / name)
        assert (again.objective, again.sampling) == (model.objective, model.sampling)


def test_default_keys_that_are_no_text_are_ignored():
    config = HUB_SCHEDULER | {"_use_default_values": [["x"], 3]}
    assert parse_latent_scheduler(config) == parse_latent_scheduler(HUB_SCHEDULER)


def test_the_index_decides_which_scheduler_it_is(folder, tmp_path):
    """diffusers builds the class of model_index.json, whatever the JSON of the scheduler says."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "EulerDiscreteScheduler"}))
    (tmp_path / "ddpm_jax.json").unlink()
    assert load_stable_diffusion(tmp_path).sampling.sampler == "ddim"


def test_all_settings_of_sampling_are_saved(tmp_path):
    model = tiny_model()
    changes = {"sampler": "edm", "guidance_rescale": 0.7, "guidance_interval": (1.0, 500.0)}
    sampling = model.sampling.override(**changes)
    save_stable_diffusion(model._replace(sampling=sampling), tmp_path)
    assert load_stable_diffusion(tmp_path).sampling == sampling
    # A scheduler that is asked for decides on all but steps and guidance scale.
    other = load_stable_diffusion(tmp_path, scheduler="EulerDiscreteScheduler").sampling
    assert (other.sampler, other.guidance_rescale) == ("euler", None)
    assert (other.steps, other.guidance_scale) == (sampling.steps, sampling.guidance_scale)


def test_an_interrupted_save_leaves_no_pipeline_of_old_and_new_parts(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stable_diffusion, "write_own_settings", interrupt)
        save_stable_diffusion(tiny_model(), tmp_path)
    assert not is_text_to_image(tmp_path)
    save_stable_diffusion(tiny_model(), tmp_path)
    assert load_stable_diffusion(tmp_path).tokenizer_files == tiny_model().tokenizer_files


def test_networks_of_old_versions_draw_in_the_size_that_diffusers_gives_them(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    for version, expected in (("0.8.1", 64), ("0.9.0", 4), ("0.42.1", 4)):
        path.write_text(json.dumps(config | {"_diffusers_version": version}))
        assert load_stable_diffusion(tmp_path).unet.sample_size == expected


def test_latents_are_clipped_only_if_the_scheduler_thresholds():
    config = HUB_SCHEDULER | {"_class_name": "DPMSolverMultistepScheduler"}
    clips = [sampling_for(config | {"thresholding": on}).clip_x0 for on in (False, True)]
    assert clips == [False, True]


def test_another_sampler_keeps_what_no_scheduler_holds():
    """The limits of x0 are the scheduler's, as the other sampler reads them, unless changed."""
    config = HUB_SCHEDULER | {"_class_name": "DDIMScheduler", "thresholding": True}
    own = sampling_for(config).override(guidance_rescale=0.7, guidance_interval=(1.0, 900.0))
    for sampler in ("unipc", "euler", "heun"):
        other = sampling_for(config, sampler)
        switched = with_sampler(own, config, sampler)
        assert (switched.guidance_rescale, switched.guidance_interval) == (0.7, (1.0, 900.0))
        expected = (other.sampler, other.grid, other.clip_x0, other.dynamic_threshold)
        made = (switched.sampler, switched.grid, switched.clip_x0, switched.dynamic_threshold)
        assert made == expected
    changed = with_sampler(own.override(dynamic_threshold=0.5), config, "euler")
    assert changed.dynamic_threshold == 0.5


def test_a_pipeline_that_inpaints_skips_the_runge_kutta_steps(tmp_path):
    """diffusers' pipeline sets skip_prk_steps."""
    save_stable_diffusion(tiny_model(inpaints=True), tmp_path)
    config = {key: value for key, value in HUB_SCHEDULER.items() if key != "skip_prk_steps"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index_path = tmp_path / "model_index.json"
    index = json.loads(index_path.read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    for name, runge_kutta in (
        ("StableDiffusionInpaintPipeline", False),
        ("StableDiffusionPipeline", True),
    ):
        index_path.write_text(json.dumps(index | {"_class_name": name}))
        sampling = load_stable_diffusion(tmp_path, scheduler="PNDMScheduler").sampling
        assert sampling.options["runge_kutta"] == runge_kutta


def test_settings_that_diffusers_forces_are_forced():
    """Its pipelines set steps_offset to 1 and clip_sample to false."""
    config = {
        **{key: HUB_SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule")},
        "_class_name": "DDIMScheduler",
        "_use_default_values": ["steps_offset", "clip_sample"],
        "steps_offset": 0,
        "clip_sample": True,
    }
    sampling = sampling_for(config)
    assert (sampling.offset, sampling.clip_x0) == (1, False)


def test_only_a_folder_with_a_text_encoder_is_text_to_image(folder, tmp_path):
    assert is_text_to_image(folder)
    assert not is_text_to_image(tmp_path)
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    assert not is_text_to_image(tmp_path)


def test_pipelines_that_are_not_supported_are_refused(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def load(changes):
        changed = {key: changes.get(key, value) for key, value in index.items()}
        (tmp_path / "model_index.json").write_text(json.dumps(changed))
        load_stable_diffusion(tmp_path)

    name = "StableDiffusionDepth2ImgPipeline"
    cases = [
        ({"_class_name": name}, f"is a {name}, which is not supported: only StableDiffusionPipe"),
        ({"vae": [None, None]}, "names no vae: a pipeline needs all its parts"),
        (
            {"tokenizer": ["transformers", "T5Tokenizer"]},
            "the tokenizer T5Tokenizer is not support",
        ),
        ({"scheduler": ["diffusers", "LCMScheduler"]}, "the scheduler LCMScheduler is not support"),
    ]
    assert_refused(load, cases)
    assert_refused(
        lambda dtype: load_stable_diffusion(folder, dtype=dtype),
        [("int8", "Unknown dtype 'int8': choose one of float32, bfloat16, float16.")],
    )


def test_broken_folders_are_refused(folder, tmp_path):
    def load(change):
        name, value = change
        broken = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, broken)
        path = broken / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | value))
        load_stable_diffusion(broken)

    cases = [
        (("scheduler/scheduler_config.json", {"beta_power": 2}), "unsupported keys: .*beta_power"),
        (
            ("unet/config.json", {"cross_attention_dim": 16}),
            "states of 8 channels, but the unet ta",
        ),
        (("unet/config.json", {"in_channels": 5}), "must take 4, or 9 to inpaint"),
    ]
    assert_refused(load, cases)
    missing = [(("text_encoder", None), "has no folder text_encoder: a pipeline needs all its")]
    assert_refused(load, missing, FileNotFoundError)


def test_hostile_parts_are_refused_before_they_are_read(folder, tmp_path, monkeypatch):
    """Of a part's files, tests/pretrained/test_hostile_files.py opens many others."""
    good = shutil.copytree(folder, tmp_path / "good")
    monkeypatch.chdir(tmp_path)

    def open_with(write):
        broken = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(good, broken)
        write(broken)
        load_stable_diffusion(broken)

    def linked(name):
        """Replace a file or folder by a link to the same one outside."""

        def write(broken):
            path = broken / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.symlink_to(good / name)

        return write

    def large(broken):
        with open(broken / "tokenizer" / "vocab.json", "wb") as file:
            file.truncate(17 * 2**20)

    def pickled(broken):
        (broken / "text_encoder" / "model.safetensors").unlink()
        pickle = calls("os\nsystem", "touch executed")
        write_bin(broken / "text_encoder" / "pytorch_model.bin", pickle, (NUMBERS,))

    def deep(broken):
        (broken / "vae" / "config.json").write_text("[" * 10**6)

    links = ("tokenizer/merges.txt", "vae/config.json", "unet", "scheduler")
    cases = [
        (large, r"vocab.json has 17,825,792 bytes: the limit is 16,777,216 bytes"),
        *((linked(name), f"/{name} lies outside .*: it is not read") for name in links),
        (pickled, "asks for 'os.system'"),
        (deep, "config.json is not valid JSON"),
    ]
    assert_refused(open_with, cases)
    assert not (tmp_path / "executed").exists()
