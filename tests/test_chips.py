"""Counts of the work of compiled programs, as benchmarks/chips.py makes them."""

import dataclasses
import importlib
import importlib.metadata
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.latent_runs import TEXT_UNET
from helpers.nets import SMALLEST
from helpers.training import CONV_UNET, recipe
from jax.sharding import Mesh
from jax.tree_util import Partial

from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import walk
from ddpm_jax.models.attention import attend
from ddpm_jax.samplers import sample_keys

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULE = """HloModule jit_step, is_scheduled=true

%fused_add (param_0: bf16[8,4], param_1: f32[4]) -> bf16[8,4] {
  %param_0 = bf16[8,4]{1,0} parameter(0)
  %param_1 = f32[4]{0} parameter(1)
  %wide = f32[8,4]{1,0} convert(%param_0)
  ROOT %add.1 = bf16[8,4]{1,0} add(%wide, %param_1)
}

%fused_slice (param_0.1: f32[8,100]) -> f32[8,2] {
  %param_0.1 = f32[8,100]{1,0} parameter(0)
  %bitcast.1 = f32[8,100]{1,0} bitcast(%param_0.1)
  ROOT %slice.1 = f32[8,2]{1,0} slice(%bitcast.1), slice={[0:8], [0:2]}
}

%fused_reduce (param_0.2: f32[8,4]) -> f32[4] {
  %param_0.2 = f32[8,4]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[4]{0} reduce(%param_0.2, %zero), dimensions={0}, to_apply=%sum
}

%body (carry: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %carry = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x.1 = bf16[8,4]{1,0} get-tuple-element(%carry), index=1
  %product = bf16[8,4]{1,0} custom-call(%x.1, %x.1), custom_call_target="__cublas$gemm"
  ROOT %tuple.1 = (s32[], bf16[8,4]{1,0}) tuple(%product, %x.1)
}

ENTRY %main (x: bf16[8,4], b: f32[4], w: f32[8,100]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[4]{0} parameter(1)
  %w = f32[8,100]{1,0} parameter(2)
  %add = bf16[8,4]{1,0} fusion(%x, %b), kind=kLoop, calls=%fused_add, \
metadata={op_name="jit(step)/unet/down_1/conv1/add"}
  %conv = (bf16[8,4]{1,0}, u8[0]{0}) custom-call(%add, %w), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/transpose(jvp())/down_2/conv"}
  %near = f32[8,4]{1,0:T(8,128)S(1)} exponential(%b)
  %part = f32[8,2]{1,0} fusion(%w), kind=kLoop, calls=%fused_slice
  %sums = f32[4]{0} fusion(%near), kind=kInput, calls=%fused_reduce
  %start = (f32[4]{0}, f32[4]{0}) all-reduce-start(%b, %b), replica_groups={{0,1}}, to_apply=%sum
  %done = (f32[4]{0}, f32[4]{0}) all-reduce-done(%start)
  %loop = (s32[], bf16[8,4]{1,0}) while(%tuple), condition=%test, body=%body, \
backend_config={"known_trip_count":{"n":"50"}}
  ROOT %last = bf16[8,4]{1,0} copy(%x)
}
"""


@pytest.fixture(autouse=True)
def add_benchmarks_to_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def test_kernels_are_counted_with_their_bytes_and_how_often_a_loop_runs_them():
    kernels = module("hlo").kernels(MODULE)
    counted = [(each.kind, each.bytes, each.times) for each in kernels]
    assert counted == [
        # (8, 4) in bfloat16 is 64 bytes, read and written; the bias has 16.
        ("other", 64 + 16 + 64, 1),
        ("convolution", 64 + 3200 + 64, 1),
        # Its result stays on the chip.
        ("other", 16, 1),
        # It reads 64 bytes of an array of 3,200.
        ("copy", 64 + 64, 1),
        ("reduction", 16, 1),
        # It sends both arrays, and the second half of it is no other kernel.
        ("collective", 64, 1),
        ("product", 3 * 64, 50),
        ("copy", 64 + 64, 1),
    ]
    assert kernels[0].place == "forward down/conv1/add"
    assert kernels[1].place.startswith("backward")
    assert kernels[5].result_bytes == 32
    gathered = "  %y = (f32[4], f32[16]) all-gather-start(%x), dimensions={0}"
    text = f"ENTRY %main (x: f32[4]) -> f32[16] {{\n  %x = f32[4] parameter(0)\n{gathered}\n}}\n"
    assert module("hlo").kernels(text)[0].result_bytes == 64
    # What stays on the chip is not moved, but sent.
    (on_chip,) = module("hlo").kernels(text.replace("f32[16])", "f32[16]{0:S(1)})"))
    assert (on_chip.bytes, on_chip.result_bytes) == (16, 64)


def fusion(*lines, shapes=("f32[8,100]", "f32[8,100]", "f32[]")):
    """A module that launches one kernel, which runs these lines on x, y and z of these shapes."""
    arrays = dict(zip("xyz", shapes, strict=True))
    parameters = [
        f"  %{name} = {shape} parameter({i})" for i, (name, shape) in enumerate(arrays.items())
    ]
    result = re.search(r" = (.*) [a-z-]+\(", lines[-1])[1]
    operands = [line.replace("%", "%entry_") for line in parameters]
    called = f"  ROOT %kernel = {result} fusion(%entry_x, %entry_y, %entry_z), calls=%fused"
    body = [*parameters, *(f"  {line}" for line in lines)]
    head = "(x: f32[]) -> f32[] {"
    return "\n".join(
        [f"%fused {head}", *body, "}", "", f"ENTRY %main {head}", *operands, called, "}"]
    )


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        # A slice of 8 x 2 of the 8 x 100 elements, of 4 bytes each.
        (["%c = f16[8,100] convert(%x)", "ROOT %s = f16[8,2] slice(%c)"], 64),
        (["%c = f32[8,100] add(%x, %y)", "ROOT %s = f32[8,2] slice(%c)"], 2 * 64),
        (["%b = f32[8,100] broadcast(%z)", "%c = f32[8,100] add(%x, %b)",
          "ROOT %s = f32[8,2] slice(%c)"], 64 + 4),
        (["%c = f32[8,200] concatenate(%x, %y)", "ROOT %s = f32[8,100] slice(%c)"], 3200),
        (["%c = f32[8,100] negate(%x)", "%s = f32[8,2] slice(%c)", "%t = f32[8,3] slice(%x)",
          "ROOT %r = (f32[8,2], f32[8,3]) tuple(%s, %t)"], 64 + 96),
        (["%i = f32[2,100] gather(%x, %z)", "ROOT %s = f32[2,100] negate(%i)"], 800 + 4),
        # All of an array, where another user or each result needs it.
        (["%s = f32[8,2] slice(%x)", "%r = f32[100] reduce(%x, %z)",
          "ROOT %t = (f32[8,2], f32[100]) tuple(%s, %r)"], 3200 + 4),
        (["%c = f32[8,100] sort(%x)", "ROOT %s = f32[8,2] slice(%c)"], 3200),
    ],
)  # fmt: skip
def test_a_kernel_reads_the_part_of_an_array_that_its_results_need(lines, read):
    hlo = module("hlo")
    (kernel,) = hlo.kernels(fusion(*lines))
    assert kernel.bytes - kernel.result_bytes == read


UPDATE = "%u = f32[8,100] dynamic-update-slice(%x, %y, %z)"


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        # The update of 8 elements is read and written. The index has 4 bytes.
        ([f"ROOT {UPDATE}"], 32 + 4 + 32),
        ([UPDATE, "ROOT %b = f32[800] bitcast(%u)"], 32 + 4 + 32),
        ([UPDATE, "ROOT %t = (f32[8,100], f32[8,1]) tuple(%u, %y)"], 32 + 4 + 32 + 32),
        # The rest of the result is written if it is no operand, and both if it is used further.
        (["%o = f32[8,100] broadcast(%z)", UPDATE.replace("%x", "%o").replace("%u", "ROOT %u")],
         32 + 4 + 3200),
        ([UPDATE, "ROOT %n = f32[8,100] negate(%u)"], 3200 + 32 + 4 + 3200),
    ],
)  # fmt: skip
def test_an_update_in_place_moves_the_part_that_is_updated(lines, moved):
    shapes = ("f32[8,100]", "f32[8,1]", "s32[]")
    (kernel,) = module("hlo").kernels(fusion(*lines, shapes=shapes))
    assert kernel.bytes == moved


def test_the_branch_that_moves_the_most_counts_and_a_loop_of_unknown_length_is_refused():
    text = (
        "%wait (x: f32[8]) -> f32[8] {\n  ROOT %x.1 = f32[8] parameter(0)\n}\n"
        "%work (x: f32[8]) -> f32[8] {\n  %x.2 = f32[8] parameter(0)\n"
        "  ROOT %n = f32[8] negate(%x.2)\n}\n"
        "ENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8] parameter(0)\n"
        "  ROOT %c = f32[8] conditional(%x, %x, %x), branch_computations={%wait, %work}\n}\n"
    )
    kernels = module("hlo").kernels
    assert [kernel.bytes for kernel in kernels(text)] == [64]
    named = text.replace(
        "branch_computations={%wait, %work}", "true_computation=%wait, false_computation=%work"
    )
    assert kernels(named) == kernels(text)
    unknown = MODULE.replace("known_trip_count", "trip_count")
    with pytest.raises(
        ValueError, match=r"The length of the loop loop is unknown: count a program"
    ):
        kernels(unknown)


@pytest.mark.parametrize(("direction", "times"), [("LT", 7), ("GT", None)])
def test_the_condition_of_a_loop_gives_its_length_if_nothing_else_does(direction, times):
    condition = f"""
%test (carry: (s32[], bf16[8,4])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(7), metadata={{op_name="jit(walk)"}}
  %carry.1 = (s32[], bf16[8,4]{{1,0}}) parameter(0)
  %number = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%number, %limit), direction={direction}, metadata={{}}
}}
"""
    text = condition + MODULE.replace("known_trip_count", "trip_count")
    if times is None:
        with pytest.raises(ValueError, match="length of the loop"):
            module("hlo").kernels(text)
        return
    assert [kernel.times for kernel in module("hlo").kernels(text)].count(times) == 1


def test_totals_are_summed_by_label_and_count_repeated_kernels():
    hlo = module("hlo")
    launched, moved = hlo.totals(hlo.kernels(MODULE), lambda kernel: kernel.kind)
    assert (launched["product"], moved["product"]) == (50, 50 * 3 * 64)
    assert (launched["copy"], moved["copy"]) == (2, 4 * 64)


def test_a_chip_is_bound_by_the_slowest_of_arithmetic_memory_and_links():
    chip = module("chip_kinds").CHIPS["h100"]
    assert chip.shortest_time(989e12, 1.0, 0.5) == 1.0
    assert chip.shortest_time(1.0, 2 * 3350e9, 1.0) == 2.0
    assert chip.shortest_time(1.0, 1.0, 4.0) == 4.0
    assert chip.mfu(989e12, 2.0) == 50


@pytest.mark.parametrize(
    ("chip", "shape", "arguments", "fits"),
    [
        # JAX takes 60 of the 80 GB of an H100, and all 16 of a TPU v5e.
        ("h100", "1x2", 47e9, "yes"),
        ("h100", "1x2", 50e9, "no"),
        ("v5e", "2x1", 4e9, "yes"),
        ("v5e", "2x1", 6e9, "no"),
    ],
)
def test_a_program_fits_into_the_memory_that_jax_takes(chip, shape, arguments, fits):
    chips = module("chips")
    program = chips.Program("cifar10", "step", chip, shape)
    figures = {"arguments": arguments, "outputs": 1e9, "temporaries": 10e9, "flops": 8e12}
    cells = chips.row(program, MODULE, figures).split(" | ")
    assert cells[7:9] == [fits, "0 MB in 1"]


def test_a_sampler_runs_on_one_chip():
    chips = module("chips")
    program = chips.Program("digits", "sampler", "v5e", "2x2")
    figures = {"arguments": 1e9, "outputs": 1e9, "temporaries": 1e9, "flops": 8e12}
    cells = chips.row(program, MODULE, figures).split(" | ")
    assert cells[:2] == ["| digits sampler on v5e 2x2", "1 x TPU v5e"]
    assert cells[5] == "8.00"


def test_a_kept_program_is_compiled_again_only_if_its_source_has_changed(tmp_path, monkeypatch):
    chips = module("chips")
    program = chips.Program("cifar10", "step", "h100")
    scale = 2.0
    compiled = []

    def build(program):
        x = jax.ShapeDtypeStruct((3,), jnp.float32)
        return module("chip_programs").Work(jax.jit(lambda x: scale * x), (x,), 6.0)

    def compile_lowered(lowered, chip):
        compiled.append(lowered)
        return "HloModule", {"seconds": len(compiled)}

    monkeypatch.setattr(chips, "build", build)
    monkeypatch.setattr(chips, "compile_lowered", compile_lowered)
    monkeypatch.setattr(chips, "COMPILERS", {"cuda": "jax"})
    for _ in range(2):
        chips.compile_one(program, tmp_path)
    assert len(compiled) == 1
    assert chips.kept_figures(program, tmp_path)["flops"] == 6
    scale = 3.0
    chips.compile_one(program, tmp_path)
    monkeypatch.setattr(chips, "OPTIONS", {"cuda": {"xla_gpu_autotune_level": 1}})
    chips.compile_one(program, tmp_path)
    monkeypatch.setattr(chips, "COMPILERS", {"cuda": "numpy"})
    for _ in range(2):
        chips.compile_one(program, tmp_path)
    assert len(compiled) == 4
    assert chips.kept_figures(program, tmp_path)["seconds"] == 4


def test_the_sampler_of_the_table_draws_the_images_of_a_walk(monkeypatch):
    """It cannot call `walk`, whose grid is no array that JAX traces."""
    programs = module("chip_programs")
    monkeypatch.setattr(programs, "STEPS", 2)
    config = recipe()
    params = jax.tree.map(lambda x: x + 0.01, config.model.init(jax.random.key(0)))
    keys = sample_keys(0, jnp.arange(8))
    network = Partial(partial(config.model.apply, dtype=jnp.bfloat16), params)
    sampling = Sampling(sampler="ddim", steps=2)
    *_, expected = walk(keys, config.objective, network, config.model.image_shape, sampling, 1)
    drawn = programs.sampler(config, jax.devices()).function(params, keys, None)
    np.testing.assert_allclose(drawn, expected, atol=0.02)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (TEXT_UNET, (3, TEXT_UNET.max_length)),
        (dataclasses.replace(SMALLEST, num_classes=2), (3,)),
        (CONV_UNET, None),
    ],
)
def test_the_abstract_labels_are_a_condition_of_the_network(net, shape):
    labels = module("chip_programs").labels_of(net, 3)
    assert getattr(labels, "shape", None) == shape
    xt = jax.ShapeDtypeStruct((3, *net.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((3,), jnp.int32)
    batch = {} if labels is None else {"label": labels}

    def apply(params, xt, t, batch):
        return net.apply(params, xt, t, net.condition_of(batch))

    assert jax.eval_shape(apply, net.shapes(), xt, t, batch).shape == xt.shape


@pytest.fixture
def gpu_plugin():
    """Skip the test unless the plugin for GPUs is installed, and keeps from looking for one."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    found = importlib.metadata.version("jax-cuda12-plugin")
    if (found, jax.config.jax_platforms) != (jax.__version__, "cpu"):
        pytest.skip(f"The plugin is for JAX {found}, and needs JAX_PLATFORMS=cpu.")
    # JAX could not read the program again: do not write it to the cache of the tests.
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)


@pytest.mark.parametrize(("shape", "route", "fsdp"), [("1x1", "pmap", 1), ("1x2", "jit", 2)])
def test_a_training_step_is_compiled_for_gpus_that_are_not_there(
    gpu_plugin, optimized, shape, route, fsdp
):
    chips = module("chips")
    devices = module("chip_kinds").devices("h100", shape)
    work = module("chip_programs").training_step(recipe(model=CONV_UNET), devices, route, fsdp)
    h100 = module("chip_kinds").H100
    text, figures = chips.compile_lowered(chips.lower(work, h100), h100)
    kernels = module("hlo").kernels(text)
    kinds = {kernel.kind for kernel in kernels}
    assert "convolution" in kinds
    assert "__cudnn$conv" in text
    assert ("collective" in kinds) == (len(devices) > 1)
    sent = sum(module("links").bytes_sent(kernel, len(devices)) for kernel in kernels)
    assert (sent > 0) == (len(devices) > 1)
    assert work.flops > 0
    assert figures["temporaries"] > 0


@pytest.mark.parametrize(("chip", "fused"), [("h100", True), ("a100", False)])
def test_attention_with_wide_heads_is_by_cudnn_on_an_h100_and_plain_on_an_a100(
    gpu_plugin, chip, fused
):
    """The chip that the program is for decides, not the one at hand."""
    kind = module("chip_kinds").CHIPS[chip]
    mesh = Mesh(module("chip_kinds").devices(chip, "1x1"), ("data",))
    place = module("chip_programs").place
    q = place(jax.ShapeDtypeStruct((2, 1, 64, 256), jnp.bfloat16), mesh)
    work = module("chip_programs").Work(jax.jit(partial(attend)), (q, q, q), 1.0)
    try:
        module("chips").require_cudnn()
    except SystemExit as error:
        pytest.skip(str(error))
    text, _ = module("chips").compile_lowered(module("chips").lower(work, kind), kind)
    assert ("__cudnn$fmhaSoftmax" in text) == fused
    assert ("dot(" in text) != fused


def test_chips_know_the_compute_capability_of_a_gpu():
    chips = module("chip_kinds").CHIPS
    found = [chips[name].capability for name in ("h100", "a100", "v5e")]
    assert found == [(9, 0), (8, 0), (0, 0)]
