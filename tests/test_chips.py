"""Counts of the work of compiled programs, as benchmarks/chips.py makes them."""

import importlib
import importlib.metadata
from pathlib import Path

import jax
import pytest
from helpers.training import CONV_UNET, recipe

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


def test_a_chip_is_bound_by_the_slowest_of_arithmetic_memory_and_links():
    chip = module("chip_kinds").CHIPS["h100"]
    assert chip.shortest_time(989e12, 1.0, 1.0) == 1.0
    assert chip.shortest_time(1.0, 2 * 3350e9, 1.0) == 2.0
    assert chip.shortest_time(1.0, 1.0, 4 * 450e9) == 4.0
    assert chip.mfu(989e12, 2.0) == 50


def test_a_program_that_is_kept_is_not_compiled_again(tmp_path, monkeypatch, capsys):
    """A ring over 8 chips sends 7/8 of an array; the result of a reduce-scatter is 1/8 of one."""
    chips = module("chips")
    program = chips.Program("cifar10", "step", "h100", "1x8")
    monkeypatch.setattr(chips, "compile_one", lambda *_: pytest.fail("compiled again"))
    figures = {"arguments": 70e9, "outputs": 1e9, "temporaries": 10e9, "flops": 8e12}
    chips.keep(program, tmp_path, MODULE, figures)
    assert chips.ensure_compiled(program, tmp_path, limit=0)
    fits, sent = chips.row(program, MODULE, figures).split(" | ")[7:9]
    assert (fits, sent) == ("no", "0 MB in 1")
    collective = module("hlo").kernels(MODULE)[5]
    sent = {
        operation: chips.bytes_sent(collective._replace(operation=operation), 8)
        for operation in ("all-reduce", "all-gather", "reduce-scatter")
    }
    assert sent == {
        "all-reduce": 2 * 7 / 8 * 32,
        "all-gather": 7 / 8 * 32,
        "reduce-scatter": 7 * 32,
    }


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
    text, figures = chips.compile_work(work, module("chip_kinds").H100)
    kinds = {kernel.kind for kernel in module("hlo").kernels(text)}
    assert "convolution" in kinds
    assert "__cudnn$conv" in text
    assert ("collective" in kinds) == (len(devices) > 1)
    assert figures["flops"] > 0
