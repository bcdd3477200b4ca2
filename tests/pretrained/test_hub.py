"""Downloads and uploads by the real client, in processes of its own, against a small hub on this machine."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import READ, WRITE, Repository, call, client, serve
from huggingface_hub.utils import validate_repo_id

from ddpm_jax.pretrained import hub as ours
from ddpm_jax.pretrained.hub import is_repository
from ddpm_jax.pretrained.weight_files import NAME, read_tensors, write_tensors

NET = {"config.json": b'{"_class_name": "UNet2DModel"}'}
PIPELINE = {"model_index.json": b'{"unet": ["diffusers", "UNet2DModel"]}', "scheduler/scheduler_config.json": b"{}"}
PLAIN, BIN, FP16 = f"{NAME}.safetensors", f"{NAME}.bin", f"{NAME}.fp16.safetensors"
INDEX, INDEX_FP16 = f"{NAME}.safetensors.index.json", f"{NAME}.safetensors.index.fp16.json"
SHARDS = [f"{NAME}-0000{i}-of-00002.safetensors" for i in (1, 2)]
SHARDS_FP16 = [f"{NAME}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


def weights(*names):
    return {name: name.encode() for name in names}


def in_unet(files):
    return {f"unet/{name}": data for name, data in files.items()}


def sharded(index, shards):
    return {index: json.dumps({"weight_map": dict(enumerate(shards))}).encode(), **weights(*shards)}


# The files of a repository, what is asked of download, and the files whose bytes are to be asked for.
LAYOUTS = {
    "at-the-root": (
        PIPELINE | NET | weights(PLAIN, BIN, FP16, "README.md", "scheduler_config.json"),
        {},
        [*PIPELINE, *NET, "scheduler_config.json", PLAIN],
    ),
    "pipeline": (
        PIPELINE | in_unet(NET | weights(PLAIN, BIN, FP16)) | weights(f"vae/{PLAIN}", f"vae/{BIN}", "vae/config.json"),
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
    "of-another-class": (
        PIPELINE | {"unet/config.json": b'{"_class_name": "UNet2DConditionModel"}'} | weights(f"unet/{PLAIN}"),
        {},
        [*PIPELINE, "unet/config.json"],
    ),
    "no-net": ({"model_index.json": b"{}"} | weights(f"vae/{PLAIN}"), {}, ["model_index.json"]),
}

# Files, what is asked of download, and the error.
MISTAKES = {
    "no-variant": (
        NET | weights(PLAIN, f"{NAME}.bf16.bin"),
        {"variant": "fp16"},
        f"FileNotFoundError: them/no-variant holds no weights ({FP16}); there are those of no variant, bf16",
    ),
    "two-variants": (
        in_unet(NET | weights(FP16) | {f"{NAME}.bin.index.bf16.json": b"{}"}),
        {},
        f"FileNotFoundError: them/two-variants/unet holds no weights ({PLAIN} or .bin); there are bf16, fp16",
    ),
    "no-weights": (NET, {}, f"FileNotFoundError: them/no-weights holds no weights ({PLAIN} or .bin)"),
    "no-layout": (
        weights("README.md", "model.safetensors"),
        {},
        "FileNotFoundError: them/no-layout holds no model_index.json and no config.json: "
        "it is not in the layout of diffusers",
    ),
    "revisions": (
        NET | weights(PLAIN),
        {"revision": "v9"},
        "FileNotFoundError: them/revisions has no revision v9: name a commit or one of main",
    ),
    "lost-shard": (
        NET | {INDEX: b'{"weight_map": {"a": "b.safetensors"}}'},
        {},
        f"ValueError: them/lost-shard has no b.safetensors beside {INDEX}, which places tensors there",
    ),
    "hostile": (
        NET | {INDEX: b'{"weight_map": {"a": "../../../../../stolen.safetensors"}}'},
        {},
        f"ValueError: them/hostile has no ../../../../../stolen.safetensors beside {INDEX}",
    ),
    "absolute": (
        NET | {INDEX: b'{"weight_map": {"a": "/stolen.safetensors"}}'},
        {},
        f"ValueError: them/absolute has no /stolen.safetensors beside {INDEX}",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def downloads(folder):
    """The hub and the results of a download of every layout and mistake, in one process."""
    every = LAYOUTS | MISTAKES
    with serve() as hub:
        for name, (files, _, _) in every.items():
            hub.repositories[f"them/{name}"] = Repository({"main": dict(files)})
        hub.repositories["them/hostile"].branches["main"]["../../../../../stolen.safetensors"] = b"stolen"
        hub.repositories["them/absolute"].branches["main"]["/stolen.safetensors"] = b"stolen"
        calls = [call("download", f"them/{name}", **options) for name, (_, options, _) in every.items()]
        results = client(hub, folder / "downloads" / "cache", *calls)
    return hub, dict(zip(every, results, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_download_fetches_what_the_net_needs_and_no_more(downloads, name):
    hub, results = downloads
    files, _, needed = LAYOUTS[name]
    assert hub.fetched(f"them/{name}") == sorted(needed)
    there = {path.relative_to(results[name]).as_posix(): path for path in Path(results[name]).rglob("*.*")}
    assert {file: path.read_bytes() for file, path in there.items()} == {file: files[file] for file in needed}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line(downloads, name):
    _, results = downloads
    assert results[name].startswith(MISTAKES[name][2])
    assert "\n" not in results[name]


def test_nothing_is_written_outside_the_cache(downloads, folder):
    downloads  # noqa: B018
    assert [path.name for path in (folder / "downloads").iterdir()] == ["cache"]
    assert not list(folder.rglob("*stolen*"))
    assert not Path("/stolen.safetensors").exists()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("of-another-class", "no-net")])
def test_what_is_fetched_is_what_is_read(downloads, name):
    _, results = downloads
    _, options, needed = LAYOUTS[name]
    file = next(file for file in [*needed, ""] if NAME in file)
    with pytest.raises(ValueError, match=r"\.(safetensors|bin)"):  # the weights of these tests are none
        read_tensors(Path(results[name], file).parent, **options)


def test_a_second_download_fetches_nothing_and_a_cached_one_needs_no_hub(tmp_path):
    net, other = call("download", "them/net"), call("download", "them/other")
    with serve() as hub:
        hub.repositories["them/net"] = Repository({"main": NET | weights(PLAIN, FP16), "old": NET | weights(BIN)})
        hub.repositories["them/broken"] = Repository(broken=True)
        json_alone, first, again, old, broken = client(
            hub,
            tmp_path,
            call("download", "them/net", weights=False),
            net,
            net,
            call("download", "them/net", revision="old"),
            call("download", "them/broken"),
        )
        assert hub.fetched("them/net") == sorted([*NET, PLAIN, BIN])
        hub.requests.clear()
        fp16 = call("download", "them/net", variant="fp16")
        upload = call("upload", Path(__file__).parent, "us/net")
        offline, *not_there, refused = client(hub, tmp_path, net, fp16, other, upload, HF_HUB_OFFLINE="1")
        assert not hub.requests
    down, unreachable = client(hub, tmp_path, net, other)
    assert json_alone == first == again == offline == down
    assert Path(old, BIN).exists()
    assert old != first
    assert broken == f"OSError: {hub.address} answers 503 for them/broken (no reason given): try again later"
    where = f"is not whole in the cache {tmp_path / 'hub'}"
    assert not_there == [
        f"FileNotFoundError: HF_HUB_OFFLINE is set, and {name} {where}: unset it" for name in ("them/net", "them/other")
    ]
    assert refused == "ValueError: HF_HUB_OFFLINE is set: nothing can be uploaded until it is unset"
    assert unreachable.startswith(f"ConnectionError: no answer from {hub.address} (")
    assert unreachable.endswith(f"and them/other {where}: check the network and HF_ENDPOINT")


def test_who_may_read_and_write(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text("{}")
    names = ["them/private", "them/gated", "them/none"]
    calls = [call("download", name) for name in names]
    calls += [call("upload", tmp_path / "net", "us/net"), call("prepare", "them/open"), call("prepare", "them/new")]
    with serve() as hub:
        hub.repositories["them/open"] = Repository()
        hub.repositories["them/private"] = Repository({"main": NET | weights(PLAIN)}, private=True)
        hub.repositories["them/gated"] = Repository({"main": NET | weights(PLAIN)}, gated=True)
        nobody = client(hub, tmp_path / "a", *calls[:4])
        assert {token for _, _, token in hub.requests} == {None}
        hub.requests.clear()
        reader = client(hub, tmp_path / "b", *calls, HF_TOKEN=READ)
        assert {token for _, path, token in hub.requests if "/them/" in path} == {f"Bearer {READ}"}
        stranger = client(hub, tmp_path / "c", calls[0], calls[3], HF_TOKEN="hf_wrong")
    see, write = (
        "check the name and, if it is private, set HF_TOKEN to a token that may see it",
        "set HF_TOKEN to a token",
    )
    password, wrong = "Invalid username or password.", "Invalid credentials in Authorization header"

    def answers(status, name, said, remedy):
        return f"OSError: {hub.address} answers {status} for {name} ({said}): {remedy}"

    assert nobody == [
        answers(401, "them/private", password, see),
        reader[1],
        answers(401, "them/none", password, see),
        f"ValueError: an upload needs a token that may write: set HF_TOKEN to one of {hub.address}/settings/tokens",
    ]
    assert Path(reader[0], PLAIN).read_bytes() == PLAIN.encode()
    assert reader[1:] == [
        f"PermissionError: them/gated is gated: ask for access at {hub.address}/them/gated, "
        "then set HF_TOKEN to your token",
        answers(404, "them/none", "Repository not found", see),
        answers(403, "us/net", "You may not write to us", f"{write} that may do this"),
        answers(403, "them/open", "You may not write to them", f"{write} that may do this"),
        answers(403, "them/new", "You may not write to them", f"{write} that may do this"),
    ]
    assert stranger == [answers(401, "them/private", wrong, see), answers(401, "us/net", wrong, see)]


def test_an_upload_is_one_commit_that_a_download_gives_back(tmp_path):
    net = tmp_path / "net"
    (net / "unet").mkdir(parents=True)
    (net / ".cache").mkdir()
    (net / ".cache" / "secret").write_text("not for the hub")
    (net / "model_index.json").write_bytes(PIPELINE["model_index.json"])
    (net / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A net\n")
    (net / "unet" / "config.json").write_bytes(NET["config.json"])
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensors(net / "unet", {"kernel": kernel})
    (tmp_path / "empty").mkdir()
    to_private = call("upload", net, "us/net", private=True, message="After 100 steps")
    with serve() as hub:
        hub.repositories["us/public"] = Repository()
        prepared, address, there, exposed, full, empty, named = client(
            hub,
            tmp_path / "cache",
            call("prepare", "us/net", private=True),
            to_private,
            call("download", "us/net"),
            call("upload", net, "us/public", private=True),
            call("upload", net, "us/full"),
            call("upload", tmp_path / "empty", "us/net"),
            call("upload", net, "not-a-name"),
            HF_TOKEN=WRITE,
        )
        assert prepared == "None"
        assert address == f"{hub.address}/us/net"
        asked = [(it["name"], it.get("visibility") == "private" or it.get("private") is True) for it in hub.created]
        assert asked == [("net", True), ("net", True), ("public", True), ("full", False)]
        uploaded = hub.repositories["us/net"]
        files = {path.relative_to(net).as_posix(): path.read_bytes() for path in net.rglob("*.*") if path.is_file()}
        assert uploaded.private
        assert uploaded.messages == ["After 100 steps"]
        assert uploaded.branches["main"] == files
        assert {len(data) for data in hub.blobs.values()} == {len(files[f"unet/{PLAIN}"])}
        assert not hub.repositories["us/public"].messages
    np.testing.assert_array_equal(read_tensors(Path(there, "unet"))["kernel"].read(), kernel)
    settings = f"{hub.address}/us/public/settings"
    assert exposed == f"ValueError: us/public is public: make it private at {settings}, or name another repository"
    assert full.startswith(f"OSError: {hub.address} answers 404 for us/full (PUT /nowhere/")
    assert empty == f"ValueError: {tmp_path / 'empty'} holds no files to upload"
    assert named == "ValueError: 'not-a-name' cannot be a repository of the hub: name one as owner/name"


@pytest.mark.parametrize("name", ["a/b", "google/ddpm-cifar10-32", "a/b_c.d", "a/gitb", "a/" + 96 * "b", "A-1/2"])
def test_a_repository_has_a_name_that_the_client_takes(name):
    validate_repo_id(name)
    assert is_repository(name)


@pytest.mark.parametrize(
    "name", [*"a/.b a/b- -a/b ./a /a a/ ~/a a/b--c a/b..c a/b.git a/b/c a/é".split(), "", "a/b\n", "a/" + 97 * "b"]
)
def test_other_names_are_those_of_no_repository(name):
    assert not is_repository(name)


def test_a_name_without_an_owner_is_no_repository():
    assert not is_repository("gpt2")
    with pytest.raises(ValueError, match="'gpt2' cannot be a repository of the hub: name one as owner/name"):
        ours.download("gpt2")


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'need a recent huggingface_hub .*: pip install "ddpm_jax\[hub\]"') as error:
        ours.download("owner/name")
    assert "\n" not in str(error.value)


def test_an_error_that_is_no_user_s_stays_what_it_is():
    for error in (RuntimeError("a bug"), KeyError("a bug"), PermissionError("a locked cache")):
        with pytest.raises(type(error), match=r"a bug|a locked cache") as raised, ours._one_line_errors("owner/name"):
            raise error
        assert raised.value is error
