"""Each check raises a ValueError with one line, and nothing otherwise."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.nets import SMALLEST
from helpers.refusals import assert_refused

from ddpm_jax import errors
from ddpm_jax.config import Checkpoint, Evaluation, Log, Training
from ddpm_jax.data.batches import batch_indices
from ddpm_jax.data.folder import Folder
from ddpm_jax.devices.parallel import Parallel, parallelize
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import (
    check,
    check_at_least,
    check_choice,
    check_rows,
    check_seed,
    check_settings,
    check_shape,
    check_whole,
)
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.settings_json import to_json
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.lora import Lora
from ddpm_jax.training.optimizer import Optimizer


def test_check_raises_only_if_the_condition_is_false():
    check(True, "Never raised.")
    with pytest.raises(ValueError, match=r"^steps must be at least 1\.$"):
        check(False, "steps must be at least 1.")


def test_values_below_the_minimum_are_refused():
    check_at_least(1, steps=1, batch_size=None)
    cases = [(0, r"^batch_size must be at least 1, not 0\.$"), (-3, "at least 1, not -3")]
    assert_refused(lambda size: check_at_least(1, steps=1, batch_size=size), cases)


def test_a_name_that_is_not_among_the_valid_ones_is_refused():
    for valid in (("eps", "v"), {"eps": 0, "v": 1}):
        check_choice(valid, target="v")
        cases = [("w", r"^Unknown target 'w': choose one of eps, v\.$"), (["v"], r"target \['v'\]")]
        assert_refused(lambda target, valid=valid: check_choice(valid, target=target), cases)


def test_python_numbers_are_no_arrays_and_any_name_may_be_checked():
    with pytest.raises(ValueError, match=r"t must have shape \(2,\) .* not \(\)"):
        check_shape((2,), t=0)
    with pytest.raises(ValueError, match=r"label must have 2 rows, one per image, not shape \(\)"):
        check_rows(2, label=[0, 1])
    check_rows(2, count=np.zeros(2))
    check_shape((2,), shape=np.zeros(2))


def test_a_misspelt_choice_is_refused(monkeypatch):
    # The type check that is on in tests would refuse it earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cases = [
        (
            lambda: Optimizer(name="Adam"),
            "Unknown optimizer.name 'Adam': choose one of adam, adamw",
        ),
        (lambda: Optimizer(decay="linear"), "Unknown optimizer.decay 'linear'"),
        (
            lambda: Parallel(route="pmaps"),
            "Unknown parallel.route 'pmaps': choose one of pmap, jit",
        ),
        (lambda: parallelize(lambda axis: None, "pmaps"), "Unknown route"),
        (lambda: Training(steps=1, on_patience="Rollback"), "Unknown training.on_patience"),
        (lambda: Checkpoint(on_failure="go on"), "Unknown checkpoint.on_failure"),
        (lambda: replace(SMALLEST, time_embedding="positional"), "Unknown time_embedding"),
        (lambda: replace(SMALLEST, augmentation=("color",)), "choose one of blitting, geometry"),
        (lambda: ClipText(activation="relu"), "Unknown activation"),
        (lambda: Objective(loss_kind="VLB"), "Unknown objective.loss_kind"),
        (lambda: Sampling(end="sigma_max"), "Unknown end 'sigma_max': choose one of clean, sigma"),
        (lambda: Folder(path="images", resize="stretch"), "Unknown data.resize"),
        (lambda: Folder(path="images", condition="gray"), "Unknown data.condition 'gray'"),
    ]
    assert_refused(lambda make: make(), cases)
    assert Sampling(end=None).end is Folder(path="images", condition=None).condition is None


def test_a_setting_of_another_type_is_refused(monkeypatch):
    # The type check that is on in tests would refuse it earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cases = [
        (lambda: Sampling(steps=4.0), r"^steps must be an integer, not 4\.0\.$"),
        (lambda: Sampling(guidance_scale="7"), "guidance_scale must be a number, not '7'"),
        (lambda: Sampling(clip_x0="no"), "clip_x0 must be True or False, not 'no'"),
        (lambda: Sampling(sampler=None), "sampler must be a text, not None"),
        (
            lambda: Sampling(guidance_interval=3.0),
            r"guidance_interval must be a tuple, not 3\.0\.$",
        ),
        (lambda: Sampling(timesteps=(9, "0")), "timesteps must be a number, not '0'"),
        (lambda: Training(steps=1, batch_size=8.0), "training.batch_size must be an integer"),
        (lambda: Log(every=None), "log.every must be an integer, not None"),
        (lambda: Evaluation(num=10.5), "evaluation.num must be an integer"),
        (lambda: Ema(decay="0.9"), "ema.decay must be a number"),
        (
            lambda: Lora(rank=4, targets="conv"),
            r"lora.targets must be a tuple, not 'conv': write \('conv',\)\.$",
        ),
        (lambda: replace(SMALLEST, widths=(8.5,)), "widths must be an integer, not 8.5"),
        (lambda: Folder(path=3), "data.path must be a text, not 3"),
    ]
    cases += [
        (lambda: Sampling(guidance_interval=(1, 2, 3)), "must have 2 values, not 3"),
        (lambda: Sampling(steps=True), "steps must be an integer, not True"),
        (lambda: Sampling(timesteps=range(9)), r"timesteps must be a tuple, not range\(0, 9\)\.$"),
        (lambda: Log(channels=None), r"log.channels must be a tuple, not None\.$"),
    ]
    assert_refused(lambda make: make(), cases)


def test_settings_become_plain_values_of_python(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    of_numpy = Sampling(steps=np.int64(4), guidance_scale=jnp.float32(7), clip_x0=np.bool_(True))
    plain = Sampling(steps=4, guidance_scale=7.0, clip_x0=True)
    assert json.dumps(to_json(of_numpy)) == json.dumps(to_json(plain))
    assert Sampling(timesteps=np.array([9.0, 0.0])) == Sampling(timesteps=(9.0, 0.0))
    options = {"sampler": "unipc", "options": {"order": np.int64(2)}}
    assert json.dumps(to_json(Sampling(**options))) == json.dumps(
        to_json(Sampling(sampler="unipc", options={"order": 2}))
    )
    net = replace(SMALLEST, widths=(np.int64(8),), attention=tuple(np.array([False])))
    assert json.dumps(to_json(net)) == json.dumps(to_json(replace(SMALLEST, attention=(False,))))
    assert Lora(targets=["attention"]) == Lora()
    assert hash(replace(SMALLEST, widths=np.array([8]))) == hash(replace(SMALLEST, widths=[8]))
    assert Folder(path=Path("images")) == Folder(path="images")


def test_an_option_of_sampling_may_be_traced(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    sampling = jax.jit(lambda eta: Sampling(sampler="ddim", options={"eta": eta}).options["eta"])
    assert sampling(0.5) == 0.5


def test_settings_without_a_simple_type_are_not_read():
    @dataclasses.dataclass
    class Own:
        pair: tuple[int, str] = (1, "a")
        empty: tuple[()] = ()
        only: Literal[True] = True
        valid: Literal["a"] = "b"  # type: ignore[assignment]

    assert_refused(check_settings, [(Own(), "Unknown valid 'b': choose one of a")])
    check_settings(Own(valid="a"))
    Own.__annotations__["other"] = "OnlyForTypeCheckers"
    errors._allowed_values.cache_clear()
    check_settings(Own(valid="c"))  # type: ignore[arg-type]


def test_numbers_that_are_not_whole_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    check_whole(steps=4, seed=np.uint32(1), batch_size=None, step=np.array(1.5))
    cases = [(4.0, r"^steps must be an integer, not 4\.0\.$"), (np.float32(1.5), "not 1.5")]
    assert_refused(lambda steps: check_whole(steps=steps), cases)
    assert_refused(check_seed, [(1.5, "seed must be an integer, not 1.5")])
    assert_refused(lambda n: batch_indices(0, 0, n, 8), [(2.5, "batch_size must be an int")])


def test_seeds_outside_32_bits_are_refused():
    for seed in (0, 2**32 - 1, np.uint32(2**32 - 1), np.array(-1)):
        check_seed(seed)
    message = r"^seed must be in \[0, 2\*\*32\), not "
    assert_refused(check_seed, [(seed, message) for seed in (-1, 2**32, np.int64(2**32))])


def test_seeds_of_pytorch_have_64_bits():
    check_seed(2**64 - 1, bits=64)
    cases = [(seed, r"^seed must be in \[0, 2\*\*64\), not ") for seed in (-1, 2**64)]
    assert_refused(lambda seed: check_seed(seed, bits=64), cases)


def test_arrays_that_jax_would_broadcast_are_refused():
    check_shape((2, 3), eps=np.zeros((2, 3)), weight=None)
    check_rows(2, label=np.zeros((2, 5)), batch={"a": np.zeros(2), "b": None})
    cases = [((1, 3), r"^eps must have shape \(2, 3\) to match the batch, not \(1, 3\)\.$")]
    assert_refused(lambda shape: check_shape((2, 3), eps=np.zeros(shape)), cases)
    cases = [
        ([np.zeros(2), np.zeros(1)], r"^label must have 2 rows, one per image, not shape \(1,\)"),
        (np.zeros(()), r"not shape \(\)"),
    ]
    assert_refused(lambda label: check_rows(2, label=label), cases)
