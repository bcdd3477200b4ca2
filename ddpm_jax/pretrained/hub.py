"""Download models from the Hugging Face hub and upload them, with the hub's own client.

Models are folders in the diffusers layout. The client reads HF_TOKEN, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_ENDPOINT and its other variables from the environment.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ddpm_jax import home
from ddpm_jax.errors import one_line
from ddpm_jax.pretrained.unet_config import CLASS
from ddpm_jax.pretrained.unet_folder import CONFIG
from ddpm_jax.pretrained.untrusted_files import read_json
from ddpm_jax.pretrained.weight_files import DIFFUSERS, TRANSFORMERS, FileNames, weights_file

REPOSITORY = re.compile(
    r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?(?<!\.git)", re.ASCII
)
INDEX = "model_index.json"
OWN_SETTINGS = "ddpm_jax.json"
UNET = "unet/"
JSON_FILES = [
    INDEX,
    CONFIG,
    UNET + CONFIG,
    "scheduler_config.json",
    "scheduler/scheduler_config.json",
    OWN_SETTINGS,
]
TEXT_ENCODER = "text_encoder"
TEXT_PARTS = {"unet": DIFFUSERS, "vae": DIFFUSERS, TEXT_ENCODER: TRANSFORMERS}
"""The networks of a pipeline with a text encoder, and how their files are named."""
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEXT_FILES = [
    *(f"{part}/{CONFIG}" for part in TEXT_PARTS),
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
]

NO_ACCESS = "check the name and, for a private repository, set HF_TOKEN to a token that can read it"
REMEDIES = {
    401: NO_ACCESS,
    403: "set HF_TOKEN to a token that has this permission",
    404: NO_ACCESS,
}
"""The remedy for an HTTP status, as the end of a message."""


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository, such as google/ddpm-cifar10-32.

    A path such as runs/a has this form too.
    """
    return REPOSITORY.fullmatch(name) is not None


def download(
    repo: str, *, variant: str | None = None, revision: str | None = None, weights: bool = True
) -> Path:
    """Download the JSON files of a repository and, with `weights`, the weights of its networks.

    Return their folder in the hub's cache. Of the weights, only the files that `read_tensors` reads
    are downloaded. A pipeline with a text encoder also has its tokenizer's files and the weights of
    `TEXT_PARTS` downloaded. Of others, that is one network, in unet/ or at the root, and none if it
    is not a UNet2DModel.
    `variant` names the weights, such as "fp16". `revision` is a branch, tag or commit.
    Raise ValueError, ImportError or OSError.
    """
    client = _client(repo)
    with _one_line_errors(repo, revision):
        folder = Path(client.snapshot_download(repo, revision=revision, allow_patterns=JSON_FILES))
    names = _list_files(repo, folder)
    if names.isdisjoint({INDEX, CONFIG, UNET + CONFIG}):
        raise FileNotFoundError(
            f"{repo} has neither {INDEX} nor {CONFIG}: name a repository in the diffusers layout."
        )
    if INDEX in names and TEXT_ENCODER in read_json(folder / INDEX):
        with _one_line_errors(repo, revision):
            client.snapshot_download(repo, revision=folder.name, allow_patterns=TEXT_FILES)
        parts = {f"{part}/": files for part, files in TEXT_PARTS.items()}
    else:
        subfolder = UNET if UNET + CONFIG in names else ""
        parts = {subfolder: DIFFUSERS} if _has_unet(folder / subfolder / CONFIG) else {}
    for subfolder, files in parts.items() if weights else ():
        beside = {name.removeprefix(subfolder) for name in names if name.startswith(subfolder)}
        beside = {name for name in beside if "/" not in name}
        _download_weights(repo, folder, subfolder, beside, variant, files)
    return folder


def _has_unet(config: Path) -> bool:
    return config.is_file() and read_json(config).get("_class_name", CLASS) == CLASS


def _list_files(repo: str, folder: Path) -> set[str]:
    """The files of a commit, or the cached ones if the client kept no list of them."""
    client = _client(repo)
    try:
        return {file.path for file in client.get_cached_repo_tree(repo, revision=folder.name)}
    except client.errors.CachedRepoTreeNotFoundError:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _download_weights(
    repo: str,
    folder: Path,
    subfolder: str,
    names: set[str],
    variant: str | None,
    files: FileNames,
) -> None:
    """Download the weights among the files `names` of a network's folder."""

    def fetch(name: str) -> Path:
        with _one_line_errors(repo):
            path = subfolder + name
            return Path(_client(repo).hf_hub_download(repo, path, revision=folder.name))

    file = fetch(weights_file(names, variant, f"{repo}/{subfolder}".rstrip("/"), files))
    weight_map = read_json(file).get("weight_map") if file.suffix == ".json" else None
    shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    missing = sorted(shards - names)
    if missing:
        listed = ", ".join(missing[:4])[:200]
        raise ValueError(f"{file.name} of {repo} lists shards that do not exist: {listed}.")
    for shard in sorted(shards):
        fetch(shard)


def prepare(repo: str, private: bool = False) -> None:
    """Create a repository if it does not exist.

    Raise ValueError, ImportError or OSError if an upload to it would be refused.
    """
    client = _client(repo)
    hub = client.constants.ENDPOINT
    if client.constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it.")
    if not client.get_token():
        raise ValueError(
            "An upload needs a token that can write: "
            f"set HF_TOKEN to one from {hub}/settings/tokens."
        )
    api = client.HfApi()
    with _one_line_errors(repo):
        # None leaves the choice to the settings of the owner.
        api.create_repo(repo, private=private or None, exist_ok=True)
        api.auth_check(repo, write=True)
        exposed = private and not api.model_info(repo).private
    if exposed:
        raise ValueError(
            f"{repo} is public: make it private at {hub}/{repo}/settings, "
            "or name another repository."
        )


def upload(
    folder: Path, repo: str, *, private: bool = False, message: str = "Upload by ddpm_jax"
) -> str:
    """Upload the files of a folder, except hidden ones, in one commit. Return the address.

    The repository is created if needed. Raise ValueError, ImportError or OSError.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not visible:
        raise ValueError(f"{folder} has no files to upload: hidden files are left out.")
    prepare(repo, private)
    client = _client(repo)
    additions = [client.CommitOperationAdd(name.as_posix(), str(folder / name)) for name in visible]
    with _one_line_errors(repo):
        client.create_commit(repo, additions, commit_message=message)
    return f"{client.constants.ENDPOINT}/{repo}"


def _client(repo: str) -> ModuleType:
    """Import huggingface_hub. Raise ValueError if `repo` is not a valid name."""
    if not is_repository(repo):
        raise ValueError(f"{repo!r} is not the name of a hub repository: write it as owner/name.")
    home.provide_hub_cache()
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, get_cached_repo_tree  # noqa: F401
    except ImportError as error:
        message = (
            f"Downloads and uploads need a recent huggingface_hub ({error}): "
            'run pip install "ddpm_jax[hub]".'
        )
        raise ImportError(message) from error
    return huggingface_hub


@contextmanager
def _one_line_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's multi-line errors into an OSError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except RuntimeError as error:
        # If an upload of weights fails, the HTTP error is the cause of a RuntimeError.
        if not isinstance(error.__cause__, errors.HTTPError):
            raise
        raise _as_os_error(error.__cause__, repo, revision) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _as_os_error(error, repo, revision) from error


def _as_os_error(error: BaseException, repo: str, revision: str | None) -> OSError:
    """An error of the client as one line with cause and remedy."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    incomplete = ""
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
        incomplete = f", and {repo} is not complete in the cache {constants.HF_HUB_CACHE}"
    match error:
        case errors.RevisionNotFoundError():
            missing = f"{repo} has no revision {revision or 'main'}"
            existing = ", ".join(_revisions(repo))
            return FileNotFoundError(f"{missing}: name a commit or one of {existing}.")
        case errors.GatedRepoError():
            return PermissionError(
                f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN to your token."
            )
        case errors.HfHubHTTPError():
            status = error.response.status_code
            reason = " ".join((error.server_message or "no reason given").split())
            remedy = REMEDIES.get(status, "try again later")
            return OSError(f"{hub} answers {status} for {repo} ({reason}): {remedy}.")
        case errors.HTTPError():
            return ConnectionError(
                f"No answer from {hub} ({error}){incomplete}: check the network and HF_ENDPOINT."
            )
        case errors.OfflineModeIsEnabled():
            return FileNotFoundError(f"HF_HUB_OFFLINE is set{incomplete}: unset it.")
    return OSError(one_line(error))


def _revisions(repo: str) -> list[str]:
    """The branches and tags of a repository."""
    with _one_line_errors(repo):
        refs = _client(repo).HfApi().list_repo_refs(repo)
    return [ref.name for ref in (*refs.branches, *refs.tags)]
