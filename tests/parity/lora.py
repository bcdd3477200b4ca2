"""Compare LoRAs with diffusers and peft, on a small Stable Diffusion with random weights.

    python tests/parity/lora.py    # needs the extra `parity`

It takes about 2 minutes of CPU time.

- Files of five dialects change the weights as diffusers' `load_lora_weights` and peft do, within
  1e-6. diffusers finds nothing in a file without the prefix `unet.`, so that file is compared with
  the same tensors under the prefix. So are two ways to give alpha.
- Folders that peft's `save_pretrained` writes for a U-Net and for a text encoder, with patterns of
  ranks and alphas, change the weights as peft does, within 1e-6.
- A file that we write opens in diffusers; U-Net and text encoder differ by at most 5e-6 of the
  largest output.
- The gradients of A and B differ by at most 1e-5 of the largest gradient.

The last line names the figure nearest to its bound. The exit status is 1 if one is over.
"""

import shared  # before torch

# isort: split
import json
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from stable_diffusion_pipelines import write_pipeline

sys.path.insert(1, str(Path(__file__).parents[1]))
from helpers.lora import DIALECTS, random_pair, spell, write
from helpers.nets import by_path, random_like

from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pretrained.lora_files import load_lora, save_lora, with_lora
from ddpm_jax.pretrained.lora_settings import METADATA
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion, load_stable_diffusion
from ddpm_jax.pretrained.weight_names import state_dict_name, to_torch
from ddpm_jax.training.lora import Lora, init_lora, lora_shapes, merge_lora

CHANGE_BOUND = 1e-6
OUTPUT_BOUND = 5e-6
GRADIENT_BOUND = 1e-5
RANK = 4
ATTENTION = (".attn1.", ".attn2.", "self_attn")
FURTHER = (".ff.net", ".proj_in", ".mlp.", ".conv1", ".conv2", "time_emb_proj")
PEFT = [
    (
        "unet",
        diffusers.UNet2DConditionModel,
        ["to_q", "to_k", "conv1", "ff.net.2"],
        {"alpha_pattern": {r"down_blocks\.\d.*to_q": 1, "conv1": 2}, "rank_pattern": {"to_k": 2}},
    ),
    (
        "text_encoder",
        transformers.CLIPTextModel,
        ["q_proj", "v_proj", "fc1"],
        {"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 1}, "use_rslora": True},
    ),
]
"""(part, class, layers, further settings of peft)."""
SETTINGS = Lora(rank=RANK, alpha=6.0, targets=("attention", "conv", "ff.net.2", "fc1"))


def nets_of(model: StableDiffusion) -> dict:
    return {"unet": model.unet, "text_encoder": model.text_encoder}


def weights(model: StableDiffusion) -> dict[str, np.ndarray]:
    """Our weights in PyTorch's layout by the names of diffusers."""
    params = {"unet": model.unet_params, "text_encoder": model.text_params}
    return {
        f"{part}.{state_dict_name(net, path)}": to_torch(path, leaf)
        for part, net in nets_of(model).items()
        for path, leaf in by_path(params[part]).items()
        if path.endswith("kernel")
    }


def random_pairs(model: StableDiffusion, parts: tuple[str, ...], patterns: tuple[str, ...]) -> dict:
    """Random A and B, small enough that rounding of the weights does not hide differences."""
    chosen = {}
    for part in parts:
        net = nets_of(model)[part]
        for path, shape in lora_shapes(net.shapes()).items():
            module = state_dict_name(net, path).removesuffix(".weight")
            if any(pattern in module for pattern in patterns):
                in_torch = to_torch(path, np.zeros(shape)).shape
                a, b = random_pair(module, in_torch, RANK)
                chosen[part, module] = (a / 10, b)
    return chosen


def their_weights(folder: Path, file: Path | None) -> dict[str, np.ndarray]:
    """The weights of diffusers with a LoRA file fused into them."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    if file is not None:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora(components=["unet", "text_encoder"])
    found = {}
    for part in ("unet", "text_encoder"):
        found |= named_weights(part, getattr(pipeline, part))
    return found


def named_weights(part: str, network: torch.nn.Module) -> dict[str, np.ndarray]:
    """The weights of a network of PyTorch by the names of `weights`."""
    found = {}
    for name, tensor in network.state_dict().items():
        name = name.replace(".base_layer", "")
        if part == "text_encoder" and not name.startswith("text_model."):
            name = f"text_model.{name}"
        if "lora_" not in name:
            found[f"{part}.{name}"] = tensor.numpy().copy()
    return found


def report(name: str, difference: float, bound: float) -> shared.Figure:
    figure = shared.Figure(name, float(difference), bound)
    print(f"{name:44} {difference:.1e}{'  OVER' if figure.over else ''}", flush=True)
    return figure


def compare_dialects(folder: Path, model: StableDiffusion, scratch: Path) -> list[shared.Figure]:
    """Compare the changes of the weights by files of each dialect and each place of alpha."""
    before = weights(model)
    their_before = their_weights(folder, None)
    figures = []
    both = ("unet", "text_encoder")
    rank_and_alpha = json.dumps(
        {f"{part}.{key}": value for part in both for key, value in _peft_config().items()}
    )
    cases = [(dialect, dialect, None, {}) for dialect in DIALECTS]
    cases += [
        ("kohya, alpha in tensors", "kohya", 1.0, {}),
        ("peft, alpha in the metadata", "peft", None, {METADATA: rank_and_alpha}),
    ]
    for name, dialect, alpha, metadata in cases:
        parts = ("unet",) if dialect == "bare" else both
        # Old files hold attention alone. The suite holds kohya's names of the other layers.
        attention_alone = dialect in ("old diffusers", "kohya") or metadata
        patterns = ATTENTION if attention_alone else (*ATTENTION, *FURTHER)
        pairs = random_pairs(model, parts, patterns)
        file = write(scratch / f"{dialect}.safetensors", spell(dialect, pairs, alpha), **metadata)
        readable = file
        if dialect == "bare":
            readable = write(scratch / "prefixed.safetensors", spell("peft", pairs))
        after = weights(with_lora(model, file))
        their_after = their_weights(folder, readable)
        differences = [
            np.abs((after[key] - before[key]) - (their_after[key] - their_before[key])).max()
            for key in before
        ]
        changed = sum(bool(np.any(their_after[key] != their_before[key])) for key in before)
        assert changed == len(pairs), f"{name}: diffusers changes {changed} of {len(pairs)} layers"
        figures.append(report(f"{name}, {changed} layers", np.max(differences), CHANGE_BOUND))
    return figures


def compare_peft(folder: Path, model: StableDiffusion, scratch: Path) -> list[shared.Figure]:
    """Compare the weights with a LoRA that peft saved by itself."""
    figures = []
    before = weights(model)
    for part, kind, targets, settings in PEFT:
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=6, target_modules=targets, init_lora_weights=False, **settings
        )
        wrapped = peft.get_peft_model(kind.from_pretrained(folder / part), config)
        wrapped.save_pretrained(scratch / f"peft-{part}")
        theirs = named_weights(part, wrapped.merge_and_unload())
        ours = weights(with_lora(model, scratch / f"peft-{part}"))
        keys = [key for key in before if key.startswith(part)]
        changed = sum(bool(np.any(ours[key] != before[key])) for key in keys)
        assert changed, f"the LoRA of {part} changes nothing"
        # Python's max would hide NaN.
        difference = np.max([np.abs(ours[key] - theirs[key]).max() for key in keys])
        figures.append(report(f"peft, {part}, {changed} layers", difference, CHANGE_BOUND))
    return figures


def _peft_config() -> dict:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"]
    return {"r": RANK, "lora_alpha": 3, "target_modules": targets}


def compare_saved(folder: Path, model: StableDiffusion, scratch: Path) -> list[shared.Figure]:
    """Compare the outputs and gradients of networks with a LoRA that we wrote."""
    params = {"unet": model.unet_params, "text_encoder": model.text_params}
    key = jax.random.key(0)
    loras = {
        part: random_like(init_lora(key, tree, part_settings(part)), 0.05)
        for part, tree in params.items()
    }
    file = scratch / "ours.safetensors"
    save_lora(file, loras, nets_of(model), SETTINGS)
    assert set(load_lora(file, nets_of(model))) == set(loras)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(scratch), weight_name=file.name, adapter_name="ours")
    rng = np.random.default_rng(0)
    xt = rng.standard_normal((2, 4, 8, 6), np.float32)
    t = np.array([981, 12])
    ids = rng.integers(0, 519, (2, 77))
    texts = pipeline.text_encoder(torch.from_numpy(ids))[0]
    output = pipeline.unet(torch.from_numpy(xt), torch.from_numpy(t), texts.detach()).sample
    torch.mean(output**2).backward()
    states = texts.detach().numpy()

    def unet(lora):
        merged = merge_lora(params["unet"], lora, SETTINGS.scale)
        condition = TextCondition(jnp.asarray(states))
        return model.unet.apply(merged, jnp.asarray(xt).transpose(0, 2, 3, 1), t, condition)

    merged_text = merge_lora(params["text_encoder"], loras["text_encoder"], SETTINGS.scale)
    our_texts = jax.jit(model.text_encoder.apply)(merged_text, jnp.asarray(ids, jnp.int32))
    our_output, grads = jax.jit(
        lambda lora: (unet(lora), jax.grad(lambda lora: jnp.mean(unet(lora) ** 2))(lora))
    )(loras["unet"])
    plain = jax.jit(unet)(jax.tree.map(jnp.zeros_like, loras["unet"]))
    in_torch = output.detach().numpy().transpose(0, 2, 3, 1)
    print(f"{'change of the U-Net by the LoRA':44} {relative(plain, in_torch):.1e}")
    figures = [
        report("text encoder, ours in diffusers", relative(our_texts, states), OUTPUT_BOUND),
        report("U-Net, ours in diffusers", relative(our_output, in_torch), OUTPUT_BOUND),
    ]
    theirs = {name: p.grad for name, p in pipeline.unet.named_parameters() if p.grad is not None}
    differences = []
    for path, pair in grads.items():
        module = state_dict_name(model.unet, path).removesuffix(".weight")
        for letter, ours in zip("AB", pair, strict=True):
            grad = theirs.pop(f"{module}.lora_{letter}.ours.weight").numpy()
            ours = np.asarray(ours)
            if letter == "B":
                ours = ours.reshape(*[1 for _ in grad.shape[2:]], *ours.shape)
            differences.append(np.abs(to_torch(path, ours) - grad).max())
    assert not [name for name in theirs if "lora_" in name]
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(grads))
    gradients = report("gradients of A and B", np.max(differences) / largest, GRADIENT_BOUND)
    return [*figures, gradients]


def part_settings(part: str) -> Lora:
    """The settings with the targets of one part."""
    targets = SETTINGS.targets[:3] if part == "unet" else ("attention", SETTINGS.targets[3])
    return Lora(rank=SETTINGS.rank, alpha=SETTINGS.alpha, targets=targets)


def relative(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def main() -> int:
    shared.make_parser(__doc__).parse_args()
    warnings.simplefilter("ignore")
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = scratch / "pipeline"
        write_pipeline(folder, inpaints=False)
        model = load_stable_diffusion(folder)
        figures = compare_dialects(folder, model, scratch)
        figures += compare_peft(folder, model, scratch)
        figures += compare_saved(folder, model, scratch)
    return shared.conclude("LoRAs of a small Stable Diffusion, in diffusers and here", figures)


if __name__ == "__main__":
    sys.exit(main())
