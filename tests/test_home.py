"""A user without a home directory, as in a container whose user id has no name."""

import os
import pwd

import jax
import pytest

from ddpm_jax import home
from ddpm_jax.cli import arguments
from ddpm_jax.data import tfds
from ddpm_jax.pretrained import hub


@pytest.fixture
def no_home(monkeypatch):
    """Neither HOME nor an entry in passwd, nor any variable that names another folder."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # Set first, so that the value which the code sets is removed after the test.
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    home.temporary_cache.cache_clear()
    yield
    home.temporary_cache.cache_clear()


@pytest.fixture
def updates(monkeypatch):
    """The settings made of JAX."""
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    return settings


def test_a_command_goes_on_without_a_compilation_cache(no_home, updates, capsys):
    arguments.use_compilation_cache()
    message = capsys.readouterr().err
    assert message.startswith("Compiled programs are not cached (The home directory in ~/.cache is")
    assert message.endswith("set JAX_COMPILATION_CACHE_DIR to a folder that can be written.\n")
    assert message.count("\n") == 1
    assert "jax_compilation_cache_dir" not in updates


def test_a_home_that_cannot_be_written_has_no_cache(updates, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments.use_compilation_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / ".cache" / "ddpm_jax")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    updates.clear()
    arguments.use_compilation_cache()
    assert "jax_compilation_cache_dir" not in updates
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [("2", None), ("", 0.05)])
def test_the_user_decides_which_programs_are_cached(
    updates, monkeypatch, tmp_path, given, expected
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", given)
    arguments.use_compilation_cache()
    assert updates.get("jax_persistent_cache_min_compile_time_secs") == expected


def test_a_cached_program_is_found_again_though_it_holds_an_address(updates, monkeypatch, tmp_path):
    """Only JAX on several GPUs writes one, so this checks no more than JAX's setting."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    arguments.use_compilation_cache()
    assert updates["jax_remove_custom_partitioning_ptr_from_cache_key"] is True


def test_data_and_hub_use_temporary_folders_and_say_so_once(no_home, capsys):
    for _ in range(2):
        folder = tfds.default_folder()
        # The client is imported already, so look at what a new process would read.
        hub._client("a/b")
    assert folder.is_dir()
    assert os.path.isdir(os.environ["HF_HOME"])
    data, cache = capsys.readouterr().err.splitlines()
    assert "the data set is kept only until the exit: set TFDS_DATA_DIR" in data
    assert "the hub's cache is kept only until the exit: set HF_HOME" in cache


def test_a_folder_that_the_user_names_is_used(no_home, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert tfds.default_folder() is None
    home.provide_hub_cache()
    assert os.environ["HF_HOME"] == str(tmp_path)
    assert capsys.readouterr().err == ""


def test_an_unknown_home_in_a_path_is_an_error_that_names_it(no_home):
    assert str(home.expand("a/b")) == "a/b"
    for path in ("~/images", "~nobody-here/images"):
        with pytest.raises(ValueError, match=f"home directory in {path} is unknown: give the path"):
            home.expand(path)
