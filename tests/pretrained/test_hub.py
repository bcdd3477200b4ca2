"""Downloads and uploads by the real client, in separate processes, with a small local hub.

The client reads the environment when it is imported. So there are three processes: one with the
hub up, one with HF_HUB_OFFLINE, and one with the hub down. All tests share their results.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.hub import READ, WRITE, Repository, call, client, serve
from helpers.refusals import assert_refused
from huggingface_hub.utils import validate_repo_id

from ddpm_jax.pretrained import hub as hub_module
from ddpm_jax.pretrained.hub import is_repository
from ddpm_jax.pretrained.weight_files import NAME, read_tensors, write_tensors

NET = {"config.json": b'{"_class_name": "UNet2DModel"}'}
PIPELINE = {
    "model_index.json": b'{"unet": ["diffusers", "UNet2DModel"]}',
    "scheduler/scheduler_config.json": b"{}",
}
PLAIN = f"{NAME}.safetensors"
BIN = f"{NAME}.bin"
FP16 = f"{NAME}.fp16.safetensors"
INDEX = f"{NAME}.safetensors.index.json"
INDEX_FP16 = f"{NAME}.safetensors.index.fp16.json"
SHARDS = [f"{NAME}-0000{i}-of-00002.safetensors" for i in (1, 2)]
SHARDS_FP16 = [f"{NAME}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


def weights(*names):
    """Files that hold their own names, so they are no valid weights."""
    return {name: name.encode() for name in names}


def in_unet(files):
    return {f"unet/{name}": data for name, data in files.items()}


def sharded(index, shards):
    """An index and the shards that it lists."""
    return {index: json.dumps({"weight_map": dict(enumerate(shards))}).encode(), **weights(*shards)}


TEXT_PIPELINE = {
    "model_index.json": b'{"text_encoder": ["transformers", "CLIPTextModel"]}',
    # A file with the content of another one is not downloaded again.
    "scheduler/scheduler_config.json": b'{"a": 1}',
    "text_encoder/config.json": b'{"a": 2}',
    "tokenizer/vocab.json": b'{"a": 3}',
    "tokenizer/merges.txt": b"a b",
    "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "vae/config.json": b'{"a": 4}',
}
TEXT_WEIGHTS = ["text_encoder/model.safetensors", f"unet/{PLAIN}", f"vae/{PLAIN}"]
TEXT_FP16 = ["text_encoder/model.fp16.safetensors", f"unet/{FP16}", f"vae/{FP16}"]

# The files of a repository, the options of the download, and the files it must fetch.
LAYOUTS = {
    "at-the-root": (
        PIPELINE | NET | weights(PLAIN, BIN, FP16, "README.md", "scheduler_config.json"),
        {},
        [*PIPELINE, *NET, "scheduler_config.json", PLAIN],
    ),
    "pipeline": (
        PIPELINE
        | in_unet(NET | weights(PLAIN, BIN, FP16))
        | weights(f"vae/{PLAIN}", f"vae/{BIN}", "vae/config.json"),
        {},
        [*PIPELINE, *in_unet(NET), f"unet/{PLAIN}"],
    ),
    "bin": (NET | weights(BIN, f"vae/{PLAIN}"), {}, [*NET, BIN]),
    "shards": (
        PIPELINE | in_unet(NET | sharded(INDEX, SHARDS) | weights(BIN, *SHARDS_FP16)),
        {},
        [*PIPELINE, *in_unet(NET), *in_unet(sharded(INDEX, SHARDS))],
    ),
    "variant": (NET | weights(PLAIN, FP16, f"{NAME}.fp16.bin"), {"variant": "fp16"}, [*NET, FP16]),
    "shards-of-a-variant": (
        NET | weights(PLAIN) | sharded(INDEX_FP16, SHARDS_FP16),
        {"variant": "fp16"},
        [*NET, INDEX_FP16, *SHARDS_FP16],
    ),
    "only-a-variant": (NET | weights(FP16), {}, [*NET, FP16]),
    "another-class": (
        PIPELINE
        | {"unet/config.json": b'{"_class_name": "UNet2DConditionModel"}'}
        | weights(f"unet/{PLAIN}"),
        {},
        [*PIPELINE, "unet/config.json"],
    ),
    "text-to-image": (
        TEXT_PIPELINE
        | weights(
            *TEXT_WEIGHTS, f"unet/{BIN}", f"vae/{FP16}", "text_encoder/model.fp16.safetensors"
        )
        | weights("safety_checker/config.json", "safety_checker/model.safetensors", "v1-4.ckpt"),
        {},
        [*TEXT_PIPELINE, *TEXT_WEIGHTS],
    ),
    "text-to-image-variant": (
        TEXT_PIPELINE | weights(*TEXT_WEIGHTS, *TEXT_FP16),
        {"variant": "fp16"},
        [*TEXT_PIPELINE, *TEXT_FP16],
    ),
    "no-net": ({"model_index.json": b"{}"} | weights(f"vae/{PLAIN}"), {}, ["model_index.json"]),
}

# The files of a repository, the options of the download, and how the error begins.
MISTAKES = {
    "no-variant": (
        NET | weights(PLAIN, f"{NAME}.bf16.bin"),
        {"variant": "fp16"},
        f"FileNotFoundError: them/no-variant holds no weights ({FP16}): "
        "the variants there are None, bf16.",
    ),
    "two-variants": (
        in_unet(NET | weights(FP16) | {f"{NAME}.bin.index.bf16.json": b"{}"}),
        {},
        f"FileNotFoundError: them/two-variants/unet holds no weights ({PLAIN} or .bin): "
        "the variants there are bf16, fp16.",
    ),
    "no-weights": (
        NET,
        {},
        f"FileNotFoundError: them/no-weights holds no weights ({PLAIN} or .bin).",
    ),
    "no-layout": (
        weights("README.md", "model.safetensors"),
        {},
        "FileNotFoundError: them/no-layout has neither model_index.json nor config.json: "
        "name a repository in the diffusers layout.",
    ),
    "revisions": (
        NET | weights(PLAIN),
        {"revision": "v9"},
        "FileNotFoundError: them/revisions has no revision v9: name a commit or one of main.",
    ),
    "lost-shard": (
        NET | {INDEX: b'{"weight_map": {"a": "b.safetensors"}}'},
        {},
        f"ValueError: {INDEX} of them/lost-shard lists shards that do not exist: b.safetensors.",
    ),
    "hostile": (
        NET | {INDEX: b'{"weight_map": {"a": "../../../../../stolen.safetensors"}}'},
        {},
        f"ValueError: {INDEX} of them/hostile lists shards that do not exist: "
        "../../../../../stolen.safetensors.",
    ),
    "absolute": (
        NET | {INDEX: b'{"weight_map": {"a": "/stolen.safetensors"}}'},
        {},
        f"ValueError: {INDEX} of them/absolute lists shards that do not exist: "
        "/stolen.safetensors.",
    ),
}


# Tokens of the calls below.
READER = READ
WRITER = WRITE
STRANGER = "hf_wrong"


def other_calls(net, empty):
    """{name: call}: the further calls with the hub up. `net` and `empty` are folders to upload.

    Calls with different tokens use different repositories, so that a test can tell the tokens.
    """
    return {
        "json": call("download", "them/net", weights=False),
        "first": call("download", "them/net"),
        "again": call("download", "them/net"),
        "old": call("download", "them/net", revision="old"),
        "broken": call("download", "them/broken"),
        "hidden": call("download", "them/hidden"),
        "gated": call("download", "them/gated"),
        "none": call("download", "them/none"),
        "no token": call("upload", net, "us/net"),
        "shown": call("download", "them/shown", token=READER),
        "gated to a reader": call("download", "them/guarded", token=READER),
        "none to a reader": call("download", "them/nothing", token=READER),
        "upload by a reader": call("upload", net, "us/read", token=READER),
        "prepare there": call("prepare", "them/open", token=READER),
        "prepare new": call("prepare", "them/new", token=READER),
        "hidden from a stranger": call("download", "them/strange", token=STRANGER),
        "upload by a stranger": call("upload", net, "us/strange", token=STRANGER),
        "prepared": call("prepare", "us/net", private=True, token=WRITER),
        "uploaded": call(
            "upload", net, "us/net", private=True, message="After 100 steps", token=WRITER
        ),
        "back": call("download", "us/net", token=WRITER),
        "exposed": call("upload", net, "us/public", private=True, token=WRITER),
        "full": call("upload", net, "us/full", token=WRITER),
        "empty": call("upload", empty, "us/net", token=WRITER),
        "unnamed": call("upload", net, "not-a-name", token=WRITER),
    }


KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_model(net):
    """Write a model with a hidden folder."""
    (net / "unet").mkdir(parents=True)
    (net / ".cache").mkdir()
    (net / ".cache" / "secret").write_text("not for the hub")
    (net / "model_index.json").write_bytes(PIPELINE["model_index.json"])
    (net / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A net\n")
    (net / "unet" / "config.json").write_bytes(NET["config.json"])
    write_tensors(net / "unet", {"kernel": KERNEL})


def fill(hub):
    """Create the repositories of all calls."""
    for name, (files, _, _) in (LAYOUTS | MISTAKES).items():
        hub.repositories[f"them/{name}"] = Repository({"main": dict(files)})
    for name, path in (("hostile", "../../../../../stolen"), ("absolute", "/stolen")):
        hub.repositories[f"them/{name}"].branches["main"][f"{path}.safetensors"] = b"stolen"
    files = NET | weights(PLAIN)
    branches = {"main": files | weights(FP16), "old": NET | weights(BIN)}
    hub.repositories["them/net"] = Repository(branches)
    hub.repositories["them/broken"] = Repository(broken=True)
    for name in ("them/open", "us/public"):
        hub.repositories[name] = Repository()
    for name in ("hidden", "shown", "strange"):
        hub.repositories[f"them/{name}"] = Repository({"main": dict(files)}, private=True)
    for name in ("gated", "guarded"):
        hub.repositories[f"them/{name}"] = Repository({"main": dict(files)}, gated=True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The hub after all calls, and their results in each of the three processes."""
    top = tmp_path_factory.mktemp("hub")
    cache = top / "downloads" / "cache"
    net = top / "net"
    empty = top / "empty"
    empty.mkdir()
    write_model(net)
    calls = {
        name: call("download", f"them/{name}", **options)
        for name, (_, options, _) in (LAYOUTS | MISTAKES).items()
    }
    calls |= other_calls(net, empty)
    first = call("download", "them/net")
    other = call("download", "them/other")
    fp16 = call("download", "them/net", variant="fp16")
    with serve() as hub:
        fill(hub)
        online = client(hub, cache, *calls.values())
        requests = hub.requests
        hub.requests = []
        upload = call("upload", net, "us/net", token=WRITE)
        offline = client(hub, cache, first, fp16, other, upload, HF_HUB_OFFLINE="1")
        offline_requests = hub.requests
        hub.requests = requests
    down = client(hub, cache, first, other)
    return SimpleNamespace(
        hub=hub,
        top=top,
        net=net,
        online=dict(zip(calls, online, strict=True)),
        offline=offline,
        offline_requests=offline_requests,
        down=down,
        incomplete=f"is not complete in the cache {cache / 'hub'}",
    )


def test_a_download_fetches_exactly_the_files_of_the_network(answers):
    for name, (files, _, needed) in LAYOUTS.items():
        assert answers.hub.fetched(f"them/{name}") == sorted(needed), name
        folder = Path(answers.online[name])
        downloaded = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")
        }
        assert downloaded == {file: files[file] for file in needed}, name


def test_a_failed_download_ends_in_one_line(answers):
    for name, (_, _, message) in MISTAKES.items():
        assert answers.online[name].startswith(message), name
        assert "\n" not in answers.online[name], name


def test_nothing_is_written_outside_the_cache(answers):
    assert [path.name for path in (answers.top / "downloads").iterdir()] == ["cache"]
    assert not list(answers.top.rglob("*stolen*"))
    assert not Path("/stolen.safetensors").exists()


def test_the_downloaded_weights_are_the_ones_that_are_read(answers):
    """The weights of these layouts are invalid, so the error names the file that was read."""
    for name, (_, options, needed) in LAYOUTS.items():
        weights_name = next((file for file in needed if NAME in file), None)
        if weights_name is None:
            assert name in ("another-class", "no-net")
            continue
        folder = Path(answers.online[name], weights_name).parent
        with pytest.raises(ValueError, match=r"\.(safetensors|bin)") as error:
            read_tensors(folder, **options)
        message = str(error.value)
        assert any(str(folder / Path(file).name) in message for file in needed), (name, message)


def test_a_second_download_fetches_nothing(answers):
    online = answers.online
    assert online["json"] == online["first"] == online["again"] != online["old"]
    assert Path(online["old"], BIN).exists()
    assert answers.hub.fetched("them/net") == sorted([*NET, PLAIN, BIN])


def test_a_cached_network_opens_without_the_hub(answers):
    first = answers.online["first"]
    offline, *missing, refused = answers.offline
    down, unreachable = answers.down
    assert first == offline == down
    assert not answers.offline_requests
    assert missing == [
        f"FileNotFoundError: HF_HUB_OFFLINE is set, and {name} {answers.incomplete}: unset it."
        for name in ("them/net", "them/other")
    ]
    reason = "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it."
    assert refused == f"ValueError: {reason}"
    address = answers.hub.address
    assert unreachable.startswith(f"ConnectionError: No answer from {address} (")
    rest = f"and them/other {answers.incomplete}: check the network and HF_ENDPOINT."
    assert unreachable.endswith(rest)


def test_a_refused_request_names_the_status_and_the_remedy(answers):
    hub = answers.hub
    online = answers.online
    read = "check the name and, for a private repository, set HF_TOKEN to a token that can read it"
    write = "set HF_TOKEN to a token that has this permission"
    no_password = "Invalid username or password."
    wrong_token = "Invalid credentials in Authorization header"

    def status(number, name, reason, remedy):
        return f"OSError: {hub.address} answers {number} for {name} ({reason}): {remedy}."

    def gated(name):
        access = f"ask for access at {hub.address}/{name}, then set HF_TOKEN to your token"
        return f"PermissionError: {name} is gated: {access}."

    expected = {
        "broken": status(503, "them/broken", "no reason given", "try again later"),
        "hidden": status(401, "them/hidden", no_password, read),
        "gated": gated("them/gated"),
        "none": status(401, "them/none", no_password, read),
        "no token": "ValueError: An upload needs a token that can write: "
        f"set HF_TOKEN to one from {hub.address}/settings/tokens.",
        "gated to a reader": gated("them/guarded"),
        "none to a reader": status(404, "them/nothing", "Repository not found", read),
        "upload by a reader": status(403, "us/read", "You may not write to us", write),
        "prepare there": status(403, "them/open", "You may not write to them", write),
        "prepare new": status(403, "them/new", "You may not write to them", write),
        "hidden from a stranger": status(401, "them/strange", wrong_token, read),
        "upload by a stranger": status(401, "us/strange", wrong_token, read),
    }
    for name, message in expected.items():
        assert online[name] == message, name
    assert Path(online["shown"], PLAIN).read_bytes() == PLAIN.encode()


def test_every_request_carries_the_token_that_is_set_and_no_other(answers):
    for repository, token in (
        ("them/hidden", None),
        ("them/gated", None),
        ("them/none", None),
        ("them/shown", f"Bearer {READ}"),
        ("them/guarded", f"Bearer {READ}"),
        ("them/nothing", f"Bearer {READ}"),
    ):
        assert answers.hub.tokens(repository) == {token}, repository


def test_an_upload_is_one_commit_and_a_download_returns_its_files(answers):
    hub = answers.hub
    online = answers.online
    net = answers.net
    assert online["prepared"] == "None"
    assert online["uploaded"] == f"{hub.address}/us/net"
    uploaded = hub.repositories["us/net"]
    files = {
        path.relative_to(net).as_posix(): path.read_bytes()
        for path in net.rglob("*.*")
        if path.is_file() and path.name != "secret"
    }
    assert uploaded.private
    assert uploaded.messages == ["After 100 steps"]
    assert uploaded.branches["main"] == files
    assert {len(data) for data in hub.blobs.values()} == {len(files[f"unet/{PLAIN}"])}
    kernel = read_tensors(Path(online["back"], "unet"))["kernel"].read()
    np.testing.assert_array_equal(kernel, KERNEL)


def test_a_private_upload_creates_a_private_repository_and_refuses_a_public_one(answers):
    hub = answers.hub
    requests = [
        (request["name"], request.get("visibility") == "private" or request.get("private") is True)
        for request in hub.created
        if request["name"] in ("net", "public", "full")
    ]
    assert requests == [("net", True), ("net", True), ("public", True), ("full", False)]
    assert not hub.repositories["us/public"].messages
    assert answers.online["exposed"] == (
        "ValueError: us/public is public: make it private at "
        f"{hub.address}/us/public/settings, or name another repository."
    )


def test_a_failed_upload_ends_in_one_line(answers):
    online = answers.online
    failed = f"OSError: {answers.hub.address} answers 404 for us/full (PUT /nowhere/"
    assert online["full"].startswith(failed)
    assert "\n" not in online["full"]
    empty = answers.top / "empty"
    no_files = f"ValueError: {empty} has no files to upload: hidden files are left out."
    assert online["empty"] == no_files
    no_name = "'not-a-name' is not the name of a hub repository: write it as owner/name."
    assert online["unnamed"] == f"ValueError: {no_name}"


def test_valid_names_of_repositories_are_accepted_by_the_client_too():
    for name in ("a/b", "google/ddpm-cifar10-32", "a/b_c.d", "a/gitb", "a/" + 96 * "b", "A-1/2"):
        validate_repo_id(name)
        assert is_repository(name), name


def test_invalid_names_of_repositories_are_recognised():
    names = "gpt2 a/.b a/b- -a/b ./a /a a/ ~/a a/b--c a/b..c a/b.git a/b/c a/é".split()
    for name in (*names, "", "a/b\n", "a/" + 97 * "b"):
        assert not is_repository(name), name


def test_a_missing_client_is_an_error_that_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r'need a recent huggingface_hub .*: run pip install "ddpm_jax\[hub\]"'
    assert_refused(hub_module.download, [("owner/name", message)], ImportError)


def test_an_error_that_is_not_from_the_hub_is_not_changed():
    for error in (RuntimeError("a bug"), KeyError("a bug"), PermissionError("a locked cache")):
        with pytest.raises(type(error)) as raised, hub_module._one_line_errors("owner/name"):
            raise error
        assert raised.value is error
