"""Whole models in the layout of diffusers: where their parts may lie, what they say of themselves, and back."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ddpm_jax.corruption import Corruption
from helpers.pretrained import fixture

import ddpm_jax
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub
from ddpm_jax.pretrained.pipeline_folder import check_possible, find, load_pretrained, save_pretrained

SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False}
INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.20.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


@pytest.fixture
def root(tmp_path):
    """A model whose parts lie in the folder itself, without model_index.json."""
    fixture("ddpm", tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return tmp_path


def in_parts(root):
    """The same with a folder for each part."""
    for part, names in {"unet": ["config.json", "diffusion_pytorch_model.safetensors"], "scheduler": []}.items():
        (root / part).mkdir()
        for name in names or ["scheduler_config.json"]:
            shutil.move(root / name, root / part / name)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("parts", [False, True])
def test_either_layout_with_or_without_an_index(root, parts, indexed):
    if parts:
        in_parts(root)
    if indexed:
        (root / "model_index.json").write_text(json.dumps(INDEX))
    model, params, schedule, sampler, recipe = load_pretrained(str(root))
    assert (recipe.sampling.sampler, recipe.sampling.clip_x0, recipe.sampling.steps) == ("ddim", False, 50)
    np.testing.assert_allclose(schedule.beta, ddpm_jax.scaled_linear(1000, 1e-4, 0.02), rtol=1e-6)
    assert sampler.order == 1
    assert model.apply(params, jnp.zeros((2, *model.image_shape)), jnp.array([0, 9])).shape == (2, 8, 8, 1)


def test_the_index_names_the_scheduler_where_its_json_does_not(root):
    unnamed = {key: value for key, value in SCHEDULER.items() if key != "_class_name"}
    (root / "scheduler_config.json").write_text(json.dumps(unnamed))
    (root / "model_index.json").write_text(json.dumps(INDEX))
    assert load_pretrained(root).recipe.sampling.sampler == "ddim"


def test_one_scheduler_is_read_as_another(root):
    recipe = load_pretrained(root, scheduler="UniPCMultistepScheduler").recipe
    assert (recipe.sampling.sampler, recipe.objective.schedule) == ("unipc", "scaled_linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index | {"vqvae": ["diffusers", "VQModel"]}, "with vqvae: only nets of pixels"),
        (lambda index: index | {"vae": [None, None], "unet": [None, None]}, "does not name a unet and a scheduler"),
        (lambda index: index | {"unet": ["diffusers", 3]}, "does not name a unet and a scheduler"),
        (lambda index: index | {"scheduler": ["diffusers"]}, "does not name a unet and a scheduler"),
    ],
)
def test_an_index_of_something_else_is_refused(root, change, message):
    (root / "model_index.json").write_text(json.dumps(change(INDEX)))
    with pytest.raises(ValueError, match=message):
        load_pretrained(root)


def test_what_is_not_there_is_said(root, tmp_path):
    (root / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json is missing"):
        load_pretrained(root)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor owner/name, a repository of the hub"):
        load_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="is a file: give the folder it is in"):
        load_pretrained(root / "config.json")


def test_a_part_that_lies_elsewhere_is_not_read(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fixture("ddpm", elsewhere)
    (root / "unet").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="lies outside"):
        load_pretrained(root)


@pytest.mark.parametrize("store", ["hub/models--them--net/blobs", "hub/blobs/cc", "elsewhere"])
def test_the_hubs_cache_keeps_files_as_links(root, store, tmp_path_factory):
    """Into the blobs of the repository, or those on into the blobs of the whole cache, and nowhere else."""
    cache = tmp_path_factory.mktemp("cache")
    snapshot, blobs = cache / "hub/models--them--net/snapshots/abc", cache / "hub/models--them--net/blobs"
    for folder in (snapshot, blobs, cache / store):
        folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in root.iterdir() if path.is_file()]:
        real = Path(shutil.copy(path, cache / store / f"0{path.name}"))
        link = blobs / real.name
        if link != real:
            link.symlink_to(real)
        (snapshot / path.name).symlink_to(Path("../../blobs", link.name))
    if store == "elsewhere":
        with pytest.raises(ValueError, match="lies outside"):
            load_pretrained(snapshot)
    else:
        assert load_pretrained(snapshot).recipe.sampling.sampler == "ddim"


SMALL = UNet(image_size=8, channels=1, widths=(4,), attention=(False,), layers_per_level=1, groups=2)


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
            Sampling(sampler="unipc", options={"order": 3, "compat": True}, steps=50, spacing="linspace"),
            "UniPCMultistep",
        ),
    ],
)
def test_what_is_saved_is_what_is_loaded(objective, sampling, scheduler, tmp_path):
    recipe, params = Recipe(model=SMALL, objective=objective, sampling=sampling), SMALL.init(jax.random.key(0))
    assert save_pretrained(recipe, params, tmp_path / "a") == f"{scheduler}Scheduler"
    loaded = load_pretrained(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params)
    for ours, theirs in zip(*map(jax.tree.leaves, (objective.noise_schedule(), loaded.schedule)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    save_pretrained(loaded.recipe, loaded.params, tmp_path / "b")
    for path in sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    index, said = (json.loads((tmp_path / "a" / name).read_text()) for name in INDEX_AND_SCHEDULER)
    assert index.keys() == INDEX.keys()
    assert index["scheduler"][1] == said["_class_name"] == f"{scheduler}Scheduler"


INDEX_AND_SCHEDULER = ("model_index.json", "scheduler/scheduler_config.json")


def test_for_the_pipeline_the_scheduler_is_one_that_it_calls(tmp_path):
    sampling = Sampling(sampler="unipc", options={"compat": True}, spacing="linspace")
    params = SMALL.init(jax.random.key(0))
    written = save_pretrained(Recipe(model=SMALL, sampling=sampling), params, tmp_path, for_pipeline=True)
    assert written == "DDPMScheduler"
    assert load_pretrained(tmp_path).recipe.sampling.spacing == "linspace"


def test_what_diffusers_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    params = SMALL.init(jax.random.key(0))
    for recipe, message in (
        (Recipe(model=SMALL, objective=Objective(target="edm", schedule="edm")), "diffusers has no edm"),
        (Recipe(model=BasicUNet(image_size=28, channels=1)), "diffusers has no net such as BasicUNet"),
        (Recipe(model=SMALL, objective=Corruption()), "no such thing as the corruption toy"),
        (Recipe(model=dataclasses.replace(SMALL, widths=(8,))), "the parameters are not those of the net"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained(recipe, params, tmp_path / "none")
        assert not (tmp_path / "none").exists() or message.startswith("the parameters")
    with pytest.raises(ValueError, match="only a UNet can be written"):
        check_possible(Recipe(model=BasicUNet(image_size=28, channels=1)))


def test_other_weights_are_not_left_beside_the_new(tmp_path):
    """diffusers would open the shards, which it looks for first."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds other weights \(diffusion_pytorch_model.safetensors.index.json\)"):
        save_pretrained(Recipe(model=SMALL), SMALL.init(jax.random.key(0)), tmp_path)


def test_a_name_that_is_neither_tells_of_both(monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("there is none")))
    with pytest.raises(FileNotFoundError, match="no folder runs/digit here, and as a repository of the hub: there is"):
        find("runs/digit")
