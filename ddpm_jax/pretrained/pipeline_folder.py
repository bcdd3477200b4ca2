"""Whole models in the diffusers layout: a net, its scheduler, and model_index.json, which says so."""

from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.generation.sampling import build_sampler
from ddpm_jax.models import Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub, scheduler_config, unet_folder
from ddpm_jax.pretrained.hub import INDEX
from ddpm_jax.pretrained.json_settings import VERSION
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.pretrained.unet_config import CLASS, unet_to_config
from ddpm_jax.pretrained.untrusted_files import inside, read_json, write_json
from ddpm_jax.samplers import Sampler

PIPELINE = "DDPMPipeline"
PARTS = {"unet", "scheduler"}


class Pretrained(NamedTuple):
    """A network with its parameters, the noise it was trained for, and the sampler it draws with.

    `model.apply(params, xt, t)` is the network's output, NHWC. `recipe` says all of it but the parameters.
    """

    model: UNet
    params: Params
    schedule: NoiseSchedule
    sampler: Sampler
    recipe: Recipe


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
    Raises FileNotFoundError, ValueError, ImportError or OSError.
    """
    recipe = read_recipe(locate_folder(path_or_repo, revision), scheduler, image_size)
    params = read_params(path_or_repo, recipe, variant, revision)
    assert isinstance(recipe.model, UNet)
    sampler = build_sampler(recipe.objective, recipe.sampling)
    return Pretrained(recipe.model, params, recipe.objective.noise_schedule, sampler, recipe)


def save_pretrained(
    recipe: Recipe, params: Params, folder: str | Path, *, for_pipeline: bool = False
) -> str:
    """Writes the folder that `load_pretrained` reads, and `DDPMPipeline.from_pretrained` of diffusers.

    Returns the name of its scheduler, which walks as the recipe's sampler, or is DDPMScheduler where none does;
    `for_pipeline` takes only those that the pipeline can call. Raises ValueError for what diffusers cannot hold.
    """
    folder, (model, objective) = Path(folder), check_possible(recipe)
    scheduler = scheduler_config.scheduler_config(objective, recipe.sampling, for_pipeline)
    unet_folder.save_net(model, params, folder / "unet")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(
        folder / "scheduler" / scheduler_config.NAME, scheduler | {"_diffusers_version": VERSION}
    )
    parts = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(folder / INDEX, {"_class_name": PIPELINE, "_diffusers_version": VERSION, **parts})
    return scheduler["_class_name"]


def check_possible(recipe: Recipe) -> tuple[UNet, Objective]:
    """The net and the objective of a recipe; raises ValueError where diffusers cannot hold them."""
    model, objective = recipe.model, recipe.objective
    if not isinstance(model, UNet):
        raise ValueError(
            f"diffusers has no net such as {type(model).__name__}: only a UNet can be written"
        )
    unet_to_config(model)
    scheduler_config.scheduler_config(objective, recipe.sampling)
    return model, objective


def locate_folder(
    path_or_repo: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = False,
) -> Path:
    """The folder at a path, or of a repository in the hub's cache after the download of its JSON files.

    With `weights` these too, of a variant. Raises FileNotFoundError, ValueError, ImportError or OSError.
    """
    path = Path(path_or_repo)
    if path.exists():
        check(path.is_dir(), f"{path} is a file: give the folder it is in")
        return path
    if not hub.is_repository(str(path_or_repo)):
        raise FileNotFoundError(
            f"{path_or_repo} is neither a folder here nor owner/name, a repository of the hub"
        )
    try:
        return hub.download(str(path_or_repo), variant=variant, revision=revision, weights=weights)
    except (OSError, ImportError) as error:
        raise type(error)(
            f"there is no folder {path_or_repo} here, and as a repository of the hub: {error}"
        ) from error


def looks_like_diffusers(folder: Path) -> bool:
    """Whether a folder looks like one in the layout of diffusers."""
    return any(
        (folder / name).exists() for name in (INDEX, "unet", "scheduler", scheduler_config.NAME)
    )


def read_recipe(
    folder: Path, scheduler: str | None = None, image_size: int | None = None
) -> Recipe:
    """What the JSON files of a folder say; no device is touched."""
    index = _index(folder)
    model = unet_folder.read_net(_part(folder, "unet"), image_size)
    config = read_json(inside(folder, _part(folder, "scheduler") / scheduler_config.NAME))
    said = parse_scheduler({"_class_name": index["scheduler"][1]} | config, scheduler)
    return Recipe(model=model, objective=said.objective, sampling=said.sampling)


def read_params(
    path_or_repo: str | Path,
    recipe: Recipe,
    variant: str | None = None,
    revision: str | None = None,
) -> Params:
    """The parameters of a model whose recipe has been read, downloaded first where it is a repository."""
    assert isinstance(recipe.model, UNet)
    folder = locate_folder(path_or_repo, revision, variant, weights=True)
    return unet_folder.read_params(_part(folder, "unet"), recipe.model, variant)


def _index(folder: Path) -> dict[str, Any]:
    """What model_index.json says of the parts, as it would where there is none."""
    index = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", "DDPMScheduler"]}
    if (folder / INDEX).exists():
        index |= read_json(inside(folder, folder / INDEX))
    named = {
        name: part
        for name, part in index.items()
        if isinstance(part, list) and part != [None, None]
    }
    others = sorted(set(named) - PARTS)
    kind = index.get("_class_name", PIPELINE)
    check(
        not others,
        f"{folder} is a {str(kind)[:80]} with {', '.join(others)[:200]}: only nets of pixels are supported",
    )
    whole = all(
        len(part) == 2 and all(isinstance(word, str) for word in part) for part in named.values()
    )
    check(whole and set(named) == PARTS, f"{folder / INDEX} does not name a unet and a scheduler")
    return index


def _part(folder: Path, name: str) -> Path:
    """The folder of a part; diffusers looks in the whole's own where it has none."""
    return inside(folder, folder / name) if (folder / name).is_dir() else folder
