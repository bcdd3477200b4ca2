"""Whole models in the diffusers layout: reading, writing, and where their parts may be."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.pretrained import fixture
from helpers.refusals import assert_refused

import ddpm_jax
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub, pipeline_folder
from ddpm_jax.pretrained.pipeline_folder import (
    check_exportable,
    load_pretrained,
    locate_folder,
    read_params,
    read_spec,
    save_pretrained,
)
from ddpm_jax.pretrained.weight_files import read_tensors

SCHEDULER_JSON = "scheduler_config.json"
INDEX_JSON = "model_index.json"
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.20.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
SMALL = UNet(
    image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2
)


@pytest.fixture
def root(tmp_path):
    """A model whose parts are in the folder itself, without model_index.json."""
    fixture("ddpm", tmp_path)
    (tmp_path / SCHEDULER_JSON).write_text(json.dumps(SCHEDULER))
    return tmp_path


@pytest.fixture(scope="module")
def params():
    """Random parameters of SMALL."""
    rng = np.random.default_rng(0)
    shapes = SMALL.shapes()
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def move_to_parts(root):
    """Move each part to a folder of its own."""
    parts = {
        "unet": ["config.json", "diffusion_pytorch_model.safetensors"],
        "scheduler": [SCHEDULER_JSON],
    }
    for part, names in parts.items():
        (root / part).mkdir()
        for name in names:
            (root / name).rename(root / part / name)


def test_both_layouts_are_read_with_and_without_an_index(root):
    loaded = load_pretrained(str(root))
    assert loaded.spec.model == loaded.model
    assert loaded.spec.sampling.sampler == "ddim"
    assert (loaded.spec.sampling.clip_x0, loaded.spec.sampling.steps) == (False, 50)
    beta = ddpm_jax.scaled_linear_betas(1000, 1e-4, 0.02)
    np.testing.assert_allclose(loaded.schedule.beta, beta, rtol=1e-6)
    assert loaded.sampler.order == 1

    def assert_same():
        assert read_spec(root) == loaded.spec
        params = read_params(root, loaded.spec)
        jax.tree.map(np.testing.assert_array_equal, params, loaded.params)

    (root / INDEX_JSON).write_text(json.dumps(INDEX))
    assert_same()
    move_to_parts(root)
    assert_same()
    (root / INDEX_JSON).unlink()
    assert_same()


def test_the_index_names_the_scheduler_if_its_json_does_not(root):
    unnamed = {key: value for key, value in SCHEDULER.items() if key != "_class_name"}
    (root / SCHEDULER_JSON).write_text(json.dumps(unnamed))
    assert read_spec(root).sampling.sampler == "ddpm"
    (root / INDEX_JSON).write_text(json.dumps(INDEX))
    assert read_spec(root).sampling.sampler == "ddim"


def test_a_scheduler_can_be_read_as_another(root):
    spec = read_spec(root, "UniPCMultistepScheduler")
    assert (spec.sampling.sampler, spec.objective.schedule) == ("unipc", "scaled_linear")


def test_a_scheduler_that_does_not_read_the_variance_of_its_network_is_refused(root):
    config = json.loads((root / "config.json").read_text())
    channels = 2 * config["in_channels"]
    (root / "config.json").write_text(json.dumps(config | {"out_channels": channels}))
    with pytest.raises(ValueError, match=r"write scheduler_config\.json .* learned_range\.$"):
        read_spec(root)


def test_a_revision_is_for_a_repository(root):
    for place in (root, "digits"):
        with pytest.raises(ValueError, match="has no revisions: leave revision out"):
            load_pretrained(place, revision="v1")


def test_an_index_of_another_pipeline_is_refused(root):
    def read(change):
        (root / INDEX_JSON).write_text(json.dumps(INDEX | change))
        read_spec(root)

    unnamed = "does not name a unet and a scheduler"
    cases = [
        ({"vqvae": ["diffusers", "VQModel"]}, "with the parts vqvae: only a unet and a scheduler"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "load_stable_diffusion reads"),
        ({"vae": [None, None], "unet": [None, None]}, unnamed),
        ({"unet": ["diffusers", 3]}, unnamed),
        ({"scheduler": ["diffusers"]}, unnamed),
    ]
    assert_refused(read, cases)


def test_a_missing_file_or_folder_is_named(root, tmp_path):
    (root / SCHEDULER_JSON).unlink()
    neither = "neither a folder nor a network of this package"
    cases = [(root, r"scheduler_config\.json is missing"), (tmp_path / "none", neither)]
    assert_refused(load_pretrained, cases, FileNotFoundError)
    assert_refused(locate_folder, [(root / "config.json", "is a file: give its folder")])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    remedy = r"is the directory of a run: draw from it by sample\.py, or export it"
    assert_refused(load_pretrained, [(tmp_path / "run", remedy)])


def test_a_part_outside_the_folder_is_not_read(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fixture("ddpm", elsewhere)
    (root / "unet").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="lies outside"):
        load_pretrained(root)


@pytest.mark.parametrize("store", ["hub/models--them--net/blobs", "hub/blobs/cc", "elsewhere"])
def test_only_links_into_the_blobs_of_the_hub_cache_are_followed(root, store, tmp_path_factory):
    """Links may lead into the blobs of the repository, and from there into those of the cache."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "hub/models--them--net"
    snapshot, blobs = repository / "snapshots/abc", repository / "blobs"
    for folder in (snapshot, blobs, cache / store):
        folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in root.iterdir() if path.is_file()]:
        real = Path(shutil.copy(path, cache / store / f"0{path.name}"))
        link = blobs / real.name
        if link != real:
            link.symlink_to(real)
        (snapshot / path.name).symlink_to(Path("../../blobs", link.name))
    if store == "elsewhere":
        for read in (read_spec, read_tensors):
            with pytest.raises(ValueError, match="lies outside"):
                read(snapshot)
    else:
        assert read_spec(snapshot) == read_spec(root)
        assert read_tensors(snapshot).keys() == read_tensors(root).keys()


@pytest.mark.parametrize(
    ("objective", "sampling", "scheduler"),
    [
        (Objective(), Sampling(), "DDPM"),
        (
            Objective(target="v", schedule="squaredcos", timesteps=400),
            Sampling(spacing="leading", clip_x0=False),
            "DDPM",
        ),
        (
            Objective(),
            Sampling(
                sampler="unipc",
                options={"order": 3, "compat": True},
                grid="inner",
                steps=50,
                spacing="linspace",
            ),
            "UniPCMultistep",
        ),
    ],
)
def test_save_and_load_keep_a_model_unchanged(objective, sampling, scheduler, tmp_path, params):
    first, second = tmp_path / "a", tmp_path / "b"
    spec = ModelSpec(model=SMALL, objective=objective, sampling=sampling)
    assert save_pretrained(spec, params, first) == f"{scheduler}Scheduler"
    loaded = read_spec(first)
    schedules = (jax.tree.leaves(each.noise_schedule) for each in (objective, loaded.objective))
    for saved, read in zip(*schedules, strict=True):
        np.testing.assert_array_equal(saved, read)
    again = read_params(first, dataclasses.replace(loaded, model=SMALL))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert loaded.model.shapes() == SMALL.shapes()
    save_pretrained(loaded, again, second)
    written = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(written) == 5
    for path in written:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path
    index = json.loads((first / INDEX_JSON).read_text())
    config = json.loads((first / "scheduler" / SCHEDULER_JSON).read_text())
    assert index.keys() == INDEX.keys()
    assert index["scheduler"][1] == config["_class_name"] == f"{scheduler}Scheduler"


def test_save_and_load_keep_any_shape(tmp_path):
    model = dataclasses.replace(SMALL, image_size=(8, 16), channels=5, init_scheme="torch")
    params = model.init(jax.random.key(0))
    save_pretrained(ModelSpec(model=model), params, tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert (config["sample_size"], config["in_channels"]) == ([8, 16], 5)
    loaded = load_pretrained(tmp_path)
    assert loaded.model.image_shape == (8, 16, 5)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_save_and_load_keep_classes_and_their_guidance(tmp_path):
    model = dataclasses.replace(SMALL, num_classes=3, label_dropout=0.2, init_scheme="torch")
    params = model.init(jax.random.key(0))
    spec = ModelSpec(model=model, sampling=Sampling(sampler="ddim", steps=4, guidance_scale=2.0))
    save_pretrained(spec, params, tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["num_class_embeds"] == 4
    loaded = load_pretrained(tmp_path)
    assert loaded.spec.sampling.guidance_scale == 2
    assert (loaded.model.num_classes, loaded.model.label_dropout) == (3, 0.2)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"num_class_embeds": 1}))
    with pytest.raises(ValueError, match="of 1 classes has no label dropout"):
        read_spec(tmp_path)


def test_the_sampling_of_a_diffusers_scheduler_keeps_its_grid(tmp_path, params):
    settings = {"sampler": "ddim", "grid": "strides", "keep_eps": True, "spacing": "leading"}
    spec = ModelSpec(model=SMALL, sampling=Sampling(**settings, steps=50, end="clean"))
    assert save_pretrained(spec, params, tmp_path) == "DDIMScheduler"
    assert read_spec(tmp_path).sampling == spec.sampling


def test_for_pipeline_writes_a_scheduler_that_the_pipeline_can_call(tmp_path, params):
    compat = {"options": {"compat": True}, "grid": "inner"}
    spec = ModelSpec(model=SMALL, sampling=Sampling(sampler="unipc", spacing="linspace", **compat))
    scheduler = save_pretrained(spec, params, tmp_path, for_pipeline=True)
    assert scheduler == "DDPMScheduler"
    assert read_spec(tmp_path).sampling == spec.sampling
    other = read_spec(tmp_path, scheduler="DDIMScheduler").sampling
    assert (other.sampler, other.spacing) == ("ddim", "linspace")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(sampler="heun", steps=10),
        Sampling(sampler="ddim", timesteps=(900.0, 300.0, 10.0)),
        Sampling(sampler="ddim", steps=20, clip_x0=True),
    ],
    ids=["no scheduler", "timesteps", "keep_eps"],
)
def test_a_folder_keeps_a_sampling_that_no_scheduler_has(sampling, tmp_path, params):
    save_pretrained(ModelSpec(model=SMALL, sampling=sampling), params, tmp_path)
    assert read_spec(tmp_path).sampling == sampling


def test_an_interrupted_save_leaves_nothing_that_opens(tmp_path, monkeypatch, params):
    def interrupted(*_):
        raise KeyboardInterrupt

    spec = ModelSpec(model=SMALL)
    save_pretrained(spec, params, tmp_path)
    monkeypatch.setattr(pipeline_folder, "write_own_settings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(spec, params, tmp_path)
    with pytest.raises(FileNotFoundError):
        load_pretrained(tmp_path)


def test_a_folder_names_no_file_of_this_machine(tmp_path, params):
    options = {"statistics": "/home/me/statistics.npz"}
    spec = ModelSpec(model=SMALL, sampling=Sampling(sampler="dpm_solver_v3", options=options))
    save_pretrained(spec, params, tmp_path)
    assert "/home/me" not in (tmp_path / "ddpm_jax.json").read_text()


def test_a_model_unknown_to_diffusers_is_refused_before_anything_is_written(tmp_path, params):
    basic = ModelSpec(model=BasicUNet(image_size=28, channels=1))
    edm = ModelSpec(model=SMALL, objective=Objective(target="edm", schedule="edm"))
    wider = ModelSpec(model=dataclasses.replace(SMALL, widths=(8,)))
    cases = [
        (edm, "schedule edm does not exist in diffusers: only linear"),
        (basic, "BasicUNet cannot be written in the diffusers layout: only UNet can"),
        (wider, "The parameters do not match the network: "),
    ]
    folder = tmp_path / "none"
    assert_refused(lambda spec: save_pretrained(spec, params, folder), cases)
    assert not folder.exists()
    assert_refused(check_exportable, cases[:2])


def test_a_folder_with_other_weights_is_refused(tmp_path, params):
    """diffusers would open the shards, which it looks for first."""
    (tmp_path / "unet").mkdir()
    other = "diffusion_pytorch_model.safetensors.index.json"
    (tmp_path / "unet" / other).write_text("{}")
    with pytest.raises(ValueError, match=rf"holds other weights \({other}\)"):
        save_pretrained(ModelSpec(model=SMALL), params, tmp_path)


def test_a_folder_comes_before_a_network_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = locate_folder("digits")
    assert {"model_index.json", "README.md", "unet", "scheduler"} <= {
        path.name for path in shipped.iterdir()
    }
    (tmp_path / "digits").mkdir()
    assert locate_folder("digits") == Path("digits")
    with pytest.raises(FileNotFoundError, match=r"package \(.*digits.*\) nor .* of a hub"):
        locate_folder("digit")


def test_the_error_of_the_hub_names_the_missing_folder_too(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("It is not on the hub.")

    monkeypatch.setattr(hub, "download", fail)
    message = "There is no folder runs/digit, so it was looked up on the hub. It is not on the hub."
    with pytest.raises(FileNotFoundError, match=message):
        locate_folder("runs/digit")
