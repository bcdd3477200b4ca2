"""Whole models in the diffusers layout: a net, its scheduler, and model_index.json, which says so."""

from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.diffusion import Diffusion
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub, nets, scheduler_config
from ddpm_jax.pretrained.files import inside, read_json, write_json
from ddpm_jax.pretrained.hub import INDEX
from ddpm_jax.pretrained.scheduler_config import scheduler_of
from ddpm_jax.pretrained.settings import VERSION
from ddpm_jax.pretrained.unet_config import CLASS, config_of
from ddpm_jax.recipe import Recipe
from ddpm_jax.samplers import Sampler
from ddpm_jax.schedule import NoiseSchedule

PIPELINE = "DDPMPipeline"
PARTS = {"unet", "scheduler"}


class Pretrained(NamedTuple):
    """A network with its parameters, the noise it was trained for, and the sampler it draws with.

    `model.apply(params, xt, t)` is the network's output, NHWC; `recipe` has all of it but the parameters.
    """

    model: UNet
    params: Params
    schedule: NoiseSchedule
    sampler: Sampler
    recipe: Recipe


def as_pretrained(recipe: Recipe, params: Params) -> Pretrained:
    """The recipe and its parameters as they would come from a folder; raises ValueError as `check_possible` does."""
    model, objective = check_possible(recipe)
    return Pretrained(model, params, objective.noise_schedule(), recipe.sampling.method, recipe)


def check_possible(recipe: Recipe) -> tuple[UNet, Diffusion]:
    """The net and the objective of a recipe; raises ValueError where diffusers cannot hold them."""
    model, objective = recipe.model, recipe.objective
    if not isinstance(model, UNet):
        raise ValueError(f"diffusers has no net such as {type(model).__name__}: only a UNet can be written")
    if not isinstance(objective, Diffusion):
        raise ValueError("diffusers has no such thing as the corruption toy: only diffusion models can be written")
    config_of(model)
    scheduler_config.scheduler_config(objective, recipe.sampling)
    return model, objective


def load_pretrained(
    path_or_repo: str | Path,
    *,
    scheduler: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> Pretrained:
    """The model in a folder, or else in a repository owner/name of the hub, in the layout of diffusers.

    `scheduler`, such as UniPCMultistepScheduler, reads the scheduler's JSON as that of another; `variant` is such as
    fp16, `revision` a branch, tag or commit of the repository; `image_size` is for nets whose config names none.
    Raises FileNotFoundError, ValueError or OSError.
    """
    folder = find(path_or_repo, variant, revision)
    recipe = read_recipe(folder, scheduler, image_size)
    return as_pretrained(recipe, read_params(folder, recipe, variant))


def save_pretrained(model: Pretrained, folder: str | Path) -> None:
    """Writes the folder that `load_pretrained` reads, and `DDPMPipeline.from_pretrained` of diffusers.

    The scheduler is that of the recipe's sampler, or DDPMScheduler where diffusers has none such. Raises ValueError for
    what diffusers cannot hold.
    """
    folder, (_, objective) = Path(folder), check_possible(model.recipe)
    scheduler = scheduler_config.scheduler_config(objective, model.recipe.sampling)
    nets.save_net(model.model, model.params, folder / "unet")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / scheduler_config.NAME, scheduler | {"_diffusers_version": VERSION})
    parts = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(folder / INDEX, {"_class_name": PIPELINE, "_diffusers_version": VERSION, **parts})


def find(path_or_repo: str | Path, variant: str | None = None, revision: str | None = None) -> Path:
    """The folder at a path, or of a repository in the hub's cache, after its download."""
    path = Path(path_or_repo)
    if path.exists():
        check(path.is_dir(), f"{path} is a file: give the folder it is in")
        return path
    if not hub.is_repository(str(path_or_repo)):
        raise FileNotFoundError(f"{path_or_repo} is neither a folder here nor owner/name, a repository of the hub")
    repo = str(path_or_repo)
    _index(hub.download(repo, variant=variant, revision=revision, weights=False))
    return hub.download(repo, variant=variant, revision=revision)


def is_one(folder: Path) -> bool:
    """Whether a folder looks like one in the layout of diffusers."""
    return any((folder / name).exists() for name in (INDEX, "unet", scheduler_config.NAME))


def read_recipe(folder: Path, scheduler: str | None = None, image_size: int | None = None) -> Recipe:
    """What the JSON files of a folder say; no device is touched."""
    index = _index(folder)
    model = nets.read_net(_part(folder, "unet"), image_size)
    config = read_json(inside(folder, _part(folder, "scheduler") / scheduler_config.NAME))
    said = scheduler_of({"_class_name": index["scheduler"][1]} | config, scheduler)
    return Recipe(model=model, objective=said.objective, sampling=said.sampling)


def read_params(folder: Path, recipe: Recipe, variant: str | None = None) -> Params:
    """The parameters in a folder whose recipe has been read."""
    assert isinstance(recipe.model, UNet)
    return nets.read_params(_part(folder, "unet"), recipe.model, variant)


def _index(folder: Path) -> dict[str, Any]:
    """What model_index.json says of the parts, as it would where there is none."""
    index = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", "DDPMScheduler"]}
    if (folder / INDEX).exists():
        index |= read_json(inside(folder, folder / INDEX))
    named = {name: part for name, part in index.items() if isinstance(part, list) and part != [None, None]}
    others = sorted(set(named) - PARTS)
    kind = index.get("_class_name", PIPELINE)
    check(not others, f"{folder} is a {kind} with {', '.join(others)[:200]}: only nets of pixels are supported")
    whole = all(len(part) == 2 and all(isinstance(word, str) for word in part) for part in named.values())
    check(whole and set(named) == PARTS, f"{folder / INDEX} does not name a unet and a scheduler")
    return index


def _part(folder: Path, name: str) -> Path:
    """The folder of a part; diffusers looks in the whole's own where it has none."""
    return inside(folder, folder / name) if (folder / name).is_dir() else folder
