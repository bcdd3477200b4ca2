"""Step caching: its shallow part is a part of the net, its walk is the one written out by hand, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_generation import random_params
from example_step_caching import (
    CLASSES,
    GRID,
    GUIDED,
    KEYS,
    LABELS,
    NETS,
    ONCE,
    PARAMS,
    RECIPE,
    REMADE,
    SCHEDULE,
    SMALL,
    XT,
)
from jax.tree_util import Partial

import sample as script
from ddpm_jax import samplers
from ddpm_jax.editing import inpaint, resampled
from ddpm_jax.generation import generate, network_of
from ddpm_jax.grids import make_grid, spaced
from ddpm_jax.on_run import PretrainedNet
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import sample, sample_in_chunks
from ddpm_jax.step_caching import Apply, Evaluation, cached


def inputs(net, count=2):
    """xt and t."""
    xt = np.random.default_rng(1).standard_normal((count, *net.image_shape), np.float32)
    return jnp.asarray(xt), jnp.arange(3, 3 + count, dtype=jnp.int32)


def runs_in(net, depth):
    """Whether a part of the net is in its shallow part, by the part's name."""
    down = [f"down_0/{part}_{j}" for part in ("resnet", "attention") for j in range(depth)]
    last = range(net.layers_per_level - depth, net.layers_per_level + 1)
    up = [f"up_0/{part}_{j}" for part in ("resnet", "attention") for j in last]
    ends = ["conv_in", "norm_out", "conv_out", "time_linear_1", "time_linear_2", "time_frequencies"]
    return lambda name: name in down + up + ends


def parts(params):
    """The parameters by part of the net, those of the levels by block."""
    for name, part in params.items():
        level = name.startswith(("up_", "down_")) and name[-1].isdigit() and "sample" not in name
        yield from ({f"{name}/{block}": value for block, value in part.items()} if level else {name: part}).items()


def nested(parts):
    """The inverse of `parts`."""
    tree = {}
    for name, part in parts.items():
        *level, last = name.split("/")
        (tree.setdefault(level[0], {}) if level else tree)[last] = part
    return tree


@pytest.mark.parametrize(
    ("name", "depth"), [("plain", 0), ("plain", 1), ("resnet", 1), ("one level", 1), ("fourier", 0)]
)
def test_the_shallow_part_of_the_same_input_is_the_net(name, depth):
    """It finds only its own parameters, so that no other block can run."""
    net, params = NETS[name], random_params(NETS[name])
    xt, t = inputs(net)
    whole = jax.jit(lambda *given: (net.apply(*given), net.apply_and_keep(*given, depth=depth)))
    wanted, (output, deep) = whole(params, xt, t)
    np.testing.assert_allclose(output, wanted, atol=1e-5)
    run = jax.jit(partial(net.apply_and_keep, depth=depth))
    own = runs_in(net, depth)
    few = nested({name: part for name, part in parts(params) if own(name)})
    assert len(jax.tree.leaves(few)) < len(jax.tree.leaves(params))
    shallow, kept = run(few, xt, t, deep=deep)
    np.testing.assert_allclose(shallow, output, atol=1e-5)
    np.testing.assert_array_equal(kept, deep)
    assert jnp.max(jnp.abs(run(few, xt, t, deep=deep + 1)[0] - output)) > 1e-3
    assert jnp.max(jnp.abs(run(few, xt + 1, t, deep=deep)[0] - output)) > 1e-3


def test_a_shallower_part_takes_fewer_operations():
    def flops(depth, deep=None):
        lowered = jax.jit(partial(SMALL.apply_and_keep, depth=depth)).lower(SMALL.shapes(), *inputs(SMALL), deep=deep)
        return lowered.compile().cost_analysis()["flops"]

    deep = [jax.ShapeDtypeStruct((2, 8, 8, width), jnp.float32) for width in SMALL.widths]
    assert flops(0, deep[0]) < flops(1, deep[1]) < 0.7 * flops(0)


def test_an_interval_of_1_is_the_full_walk():
    full, one = (
        generate(RECIPE, PARAMS, num=3, batch_size=3, seed=1, sampling=RECIPE.sampling.changed(**how))
        for how in ({}, {"cache_interval": 1})
    )
    assert np.abs(full.astype(int) - one).max() <= 1
    assert len(np.unique(full)) > 40


def cached_walk(interval, depth, sampling, sampler, chunks=1, grid=GRID):
    """The last state of a walk that caches steps."""
    network = network_of(CLASSES, PARAMS, LABELS, sampling, Apply(Evaluation(CLASSES, depth)))
    denoise = make_denoiser(SCHEDULE, network, "x0")
    *_, x0 = sample_in_chunks(KEYS, denoise, cached(sampler, interval, denoise, XT), grid, XT, chunks)
    return x0


def by_hand(interval, depth, sampling, sampler):
    """The same as a loop, in which the features are variables."""
    deep, xt, memory = {}, XT, sampler.init(XT)
    run = jax.jit(CLASSES.apply_and_keep, static_argnames="depth")

    def apply(fresh, params, x, t, labels):
        said, output = [labels[::2], labels[1::2]] if len(labels) > 3 else [labels], []
        for k, some in enumerate(said):  # the guided and the unguided half, each by itself
            part = x[k :: len(said)], t[k :: len(said)], some
            found, deep[k] = run(params, *part, depth=depth, deep=None if fresh else deep[k])
            output.append(found)
        return jnp.stack(output, 1).reshape(-1, *output[0].shape[1:])

    for i in range(8):
        network = network_of(CLASSES, PARAMS, LABELS, sampling, lambda *args, i=i: apply(i % interval == 0, *args))
        xt, memory = sampler.step(KEYS, make_denoiser(SCHEDULE, network, "x0"), xt, GRID.row(i), memory)
    return xt


def test_a_guided_walk_is_the_loop_written_out():
    """With a sampler that both remembers and draws noise, in one part and in four."""
    sampler, depth = samplers.make("dpmpp_2m_sde"), 1
    wanted = by_hand(3, depth, GUIDED, sampler)
    assert jnp.max(jnp.abs(wanted - cached_walk(1, depth, GUIDED, sampler))) > 0.01
    for chunks in (1, 4):
        np.testing.assert_allclose(cached_walk(3, depth, GUIDED, sampler, chunks), wanted, atol=1e-4)


def told(sampler, grid, interval, around=lambda sampler: sampler):
    """Whether the net was fresh, and its t, at each step of a walk that asked it."""
    seen = []

    def evaluate(whole, xt, t, deep=None):
        if deep is not None:
            jax.debug.callback(lambda *said: seen.append(tuple(map(float, said))), whole[1], t[0], ordered=True)
        return 0.5 * xt, xt[..., :1]

    denoise = make_denoiser(SCHEDULE, Partial(Apply(evaluate), jnp.zeros(())))
    sample(KEYS, denoise, around(cached(sampler, interval, denoise, XT)), grid, XT)
    jax.effects_barrier()
    return seen


def test_the_net_is_fresh_at_the_first_of_so_many_steps_wherever_a_walk_begins():
    grid = make_grid(SCHEDULE, spaced(20, 8)[3:])
    seen = told(samplers.make("ddim"), grid._replace(i=grid.i + 3), 2)
    assert seen == [(1 - k % 2, float(t)) for k, t in enumerate(grid.t)]


def test_a_resampled_walk_is_fresh_after_each_step_up():
    """Two stretches of 3 rows, each walked twice, then the last row: 1 2 3, up, 1 2 3, up, and so on."""
    grid = resampled(make_grid(SCHEDULE, spaced(20, 7)), 2, 3)
    images, masks = jnp.zeros_like(XT), jnp.ones((3, 8, 8, 1), bool)
    seen = told(samplers.make("ddim"), grid, 2, lambda sampler: inpaint(sampler, images, masks))
    rises = np.asarray(grid.t_next) > np.asarray(grid.t)
    wanted, since = [], 0
    for t, up in zip(np.asarray(grid.t), rises, strict=True):
        wanted += [] if up else [(float(since % 2 == 0), float(t))]
        since = 0 if up else since + 1
    assert seen == wanted
    assert rises.sum() >= 2


@pytest.mark.parametrize("name", ONCE)
def test_every_sampler_of_one_evaluation_can_cache(name):
    """The memory after a step is of the form of that before it, as a scan needs it."""
    denoise = make_denoiser(SCHEDULE, Partial(Apply(lambda whole, xt, t, deep=None: (xt, xt[..., :1])), ()))
    sampler = cached(samplers.make(name), 2, denoise, XT)
    before = jax.eval_shape(sampler.init, XT)
    x_next, after = jax.eval_shape(sampler.step, KEYS, denoise, XT, GRID.row(2), before)
    assert (x_next.shape, after) == (XT.shape, before)


def test_a_picture_does_not_depend_on_the_batch():
    """Guided and edited, on eight devices 16 and 8 pictures at a time."""
    sampling = RECIPE.sampling.changed(cache_interval=2, guidance_scale=2.0)
    draw = partial(generate, RECIPE, PARAMS, num=11, seed=3, sampling=sampling, labels=[1], edit=REMADE)
    whole, few = draw(batch_size=11), draw(batch_size=8)
    assert np.abs(whole.astype(int) - few).max() <= 1
    assert len({picture.tobytes() for picture in whole[0]}) == 11
    assert len(np.unique(whole)) > 60


def test_what_does_not_recompile():
    def draw(seed, interval, params=PARAMS):
        how = RECIPE.sampling.changed(cache_interval=interval, guidance_scale=2.0)
        return generate(RECIPE, params, num=16, batch_size=8, seed=seed, sampling=how, stages=2)

    first, count = draw(0, 2), samplers._walk_jit._cache_size()
    others = draw(1, 2), draw(0, 3), draw(0, 2, jax.tree.map(lambda p: 1.1 * p, PARAMS))
    assert all((other != first).any() for other in others)
    assert samplers._walk_jit._cache_size() == count


def test_the_command_line_takes_both_settings(tmp_path):
    source = PretrainedNet(str(tmp_path), RECIPE)
    sampling = script.parse(["--cache-interval", "3", "--cache-depth", "1"], "net", source, None)[1]
    assert (sampling.cache_interval, sampling.cache_depth) == (3, 1)
    assert script.parse([], "net", source, None)[1].cache_interval is None
