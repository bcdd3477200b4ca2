"""Nets of the Hugging Face hub: folders in the diffusers layout, downloaded and uploaded by its own client.

The client reads HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and the rest from the environment.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ddpm_jax.errors import check
from ddpm_jax.pretrained.unet_config import CLASS
from ddpm_jax.pretrained.unet_folder import CONFIG
from ddpm_jax.pretrained.untrusted_files import read_json
from ddpm_jax.pretrained.weight_files import weights_file

REPOSITORY = re.compile(
    r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?(?<!\.git)", re.ASCII
)
INDEX = "model_index.json"
UNET = "unet/"
JSONS = [INDEX, CONFIG, UNET + CONFIG, "scheduler_config.json", "scheduler/scheduler_config.json"]

NO_ACCESS = "check the name and, if it is private, set HF_TOKEN to a token that may see it"
REMEDIES = {401: NO_ACCESS, 403: "set HF_TOKEN to a token that may do this", 404: NO_ACCESS}


def is_repository(name: str) -> bool:
    """Whether a name can be that of a repository, as google/ddpm-cifar10-32 is; so can a path such as runs/a."""
    return REPOSITORY.fullmatch(name) is not None


def download(
    repo: str, *, variant: str | None = None, revision: str | None = None, weights: bool = True
) -> Path:
    """The folder in the hub's cache with the JSON files of a repository and, if asked for, the weights of its net.

    The weights are the files that `read_tensors` reads, of a variant such as fp16; none where the net, in unet/ or at
    the root, is no UNet2DModel. `revision` is a branch, tag or commit. Raises ValueError, ImportError or OSError.
    """
    client = _client(repo)
    with _one_line_errors(repo, revision):
        folder = Path(client.snapshot_download(repo, revision=revision, allow_patterns=JSONS))
    names = _names(repo, folder)
    if names.isdisjoint({INDEX, CONFIG, UNET + CONFIG}):
        raise FileNotFoundError(
            f"{repo} holds no {INDEX} and no {CONFIG}: it is not in the layout of diffusers"
        )
    place = UNET if UNET + CONFIG in names else ""
    if (
        weights
        and place + CONFIG in names
        and read_json(folder / place / CONFIG).get("_class_name", CLASS) == CLASS
    ):
        there = {name.removeprefix(place) for name in names if name.startswith(place)}
        _download_weights(repo, folder, place, {name for name in there if "/" not in name}, variant)
    return folder


def _names(repo: str, folder: Path) -> set[str]:
    """The files of a commit as the client noted them; where it did not, those that are in the cache."""
    client = _client(repo)
    try:
        return {file.path for file in client.get_cached_repo_tree(repo, revision=folder.name)}
    except client.errors.CachedRepoTreeNotFoundError:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _download_weights(
    repo: str, folder: Path, place: str, names: set[str], variant: str | None
) -> None:
    """Downloads those of the files of a net, `names`, that hold its weights."""

    def fetch(name: str) -> Path:
        with _one_line_errors(repo):
            return Path(_client(repo).hf_hub_download(repo, place + name, revision=folder.name))

    file = fetch(weights_file(names, variant, f"{repo}/{place}".rstrip("/")))
    places = read_json(file).get("weight_map") if file.suffix == ".json" else None
    shards = set(map(str, places.values())) if isinstance(places, dict) else set()
    lost = sorted(shards - names)
    check(
        not lost,
        f"{repo} has no {', '.join(lost[:4])[:200]} beside {file.name}, which places tensors there",
    )
    for shard in sorted(shards):
        fetch(shard)


def prepare(repo: str, private: bool = False) -> None:
    """Creates a repository unless it is there; raises ValueError or OSError where an upload to it would be refused."""
    client = _client(repo)
    hub = client.constants.ENDPOINT
    check(
        not client.constants.HF_HUB_OFFLINE,
        "HF_HUB_OFFLINE is set: nothing can be uploaded until it is unset",
    )
    token = client.get_token()
    check(
        bool(token),
        f"an upload needs a token that may write: set HF_TOKEN to one of {hub}/settings/tokens",
    )
    api = client.HfApi()
    with _one_line_errors(repo):
        api.create_repo(
            repo, private=private or None, exist_ok=True
        )  # None leaves it to the owner's settings
        api.auth_check(repo, write=True)
        exposed = private and not api.model_info(repo).private
    check(
        not exposed,
        f"{repo} is public: make it private at {hub}/{repo}/settings, or name another repository",
    )


def upload(
    folder: Path, repo: str, *, private: bool = False, message: str = "Upload by ddpm_jax"
) -> str:
    """The address of the repository after a commit of all files of a folder but hidden ones; creates it if needed.

    Raises ValueError, ImportError or OSError.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    check(bool(shown), f"{folder} holds no files to upload")
    prepare(repo, private)
    client = _client(repo)
    added = [client.CommitOperationAdd(name.as_posix(), str(folder / name)) for name in shown]
    with _one_line_errors(repo):
        client.create_commit(repo, added, commit_message=message)
    return f"{client.constants.ENDPOINT}/{repo}"


def _client(repo: str) -> ModuleType:
    """The package huggingface_hub, for a repository of a valid name."""
    check(
        is_repository(repo), f"{repo!r} cannot be a repository of the hub: name one as owner/name"
    )
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, get_cached_repo_tree  # noqa: F401
    except ImportError as error:
        message = f'downloads and uploads need a recent huggingface_hub ({error}): pip install "ddpm_jax[hub]"'
        raise ImportError(message) from error
    return huggingface_hub


@contextmanager
def _one_line_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """The client's errors, of many lines each, become an OSError of one line with cause and remedy."""
    from huggingface_hub import errors

    try:
        yield
    except RuntimeError as error:  # how an upload of weights fails
        if not isinstance(error.__cause__, errors.HTTPError):
            raise
        raise _explained(error.__cause__, repo, revision) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _explained(error, repo, revision) from error


def _explained(error: BaseException, repo: str, revision: str | None) -> OSError:
    from huggingface_hub import constants, errors

    hub, missing = constants.ENDPOINT, ""
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error, missing = (
            error.__cause__,
            f", and {repo} is not whole in the cache {constants.HF_HUB_CACHE}",
        )
    match error:
        case errors.RevisionNotFoundError():
            there = ", ".join(_revisions(repo))
            return FileNotFoundError(
                f"{repo} has no revision {revision or 'main'}: name a commit or one of {there}"
            )
        case errors.GatedRepoError():
            return PermissionError(
                f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN to your token"
            )
        case errors.HfHubHTTPError():
            status, said = (
                error.response.status_code,
                " ".join((error.server_message or "no reason given").split()),
            )
            return OSError(
                f"{hub} answers {status} for {repo} ({said}): {REMEDIES.get(status, 'try again later')}"
            )
        case errors.HTTPError():
            return ConnectionError(
                f"no answer from {hub} ({error}){missing}: check the network and HF_ENDPOINT"
            )
        case errors.OfflineModeIsEnabled():
            return FileNotFoundError(f"HF_HUB_OFFLINE is set{missing}: unset it")
    return OSError(" ".join(str(error).split()))


def _revisions(repo: str) -> list[str]:
    """The branches and tags."""
    with _one_line_errors(repo):
        refs = _client(repo).HfApi().list_repo_refs(repo)
    return [ref.name for ref in (*refs.branches, *refs.tags)]
