"""Read and write LoRA files of Stable Diffusion, and of our networks in the same form.

Files name a layer's tensors in one of five ways: `unet.to_q.lora_A.weight` (peft's names, as
diffusers writes them), `base_model.model.to_q.lora_A.weight` (peft itself, with its settings in
adapter_config.json), `unet.to_q.lora.down.weight` and `unet.processor.to_q_lora.down.weight`
(diffusers before peft), and `lora_unet_to_q.lora_down.weight` (kohya). Any form with a dot after
the part may omit it. kohya replaces dots by underscores, so names are compared with the spellings
of the network's own layers.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax.errors import check, check_choice
from ddpm_jax.models import Network, Params
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.pretrained.lora_settings import METADATA, Settings, read_settings
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.pretrained.torch_pickle import LazyTensor
from ddpm_jax.pretrained.untrusted_files import brief
from ddpm_jax.pretrained.weight_files import read_tensor_file, write_tensor_file
from ddpm_jax.pretrained.weight_names import (
    CLIP_PREFIX,
    first_names,
    from_torch,
    shape_in_torch,
    state_dict_name,
    to_torch,
)
from ddpm_jax.training.lora import (
    QUERY_KEY_VALUE_OUT,
    Lora,
    LoraParams,
    lora_shapes,
    merge_lora,
)

NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
"""The names of the file in folders of diffusers and of peft."""
PEFT_PREFIX = "base_model.model."
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""{part of a pipeline: its prefix in kohya's dialect}."""
MATRIX = re.compile(r"(.+?)(?:_lora|\.lora|\.lora_linear_layer)[._](A|B|down|up)\.weight")
ROLES = {"down": "A", "up": "B"}
OTHER_KINDS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
    "lora_mid": "a LoRA with a core tensor",
    "lora_bias": "a LoRA with biases",
    "lora_B.bias": "a LoRA with biases",
    "lora_up.bias": "a LoRA with biases",
}
"""{part of a tensor's name: the kind of file that has it, which is not read}."""


class Target(NamedTuple):
    """A layer of a network."""

    part: str
    path: str
    """The path of its kernel."""
    module: str
    """Its name in diffusers."""
    shape: tuple[int, ...]
    """The shape of its kernel in PyTorch's layout."""


def load_lora(path: str | Path, nets: Mapping[str, Network]) -> dict[str, LoraParams]:
    """Read a LoRA file, safetensors or .bin, or the one in a folder: {part: LoRA}.

    `nets` are the networks that it may change, {"unet": ..., "text_encoder": ...}; a network of
    pixels is a unet. B includes alpha / rank. Alpha is the tensor of the layer, else that of the
    settings, else the rank. Raise FileNotFoundError, or ValueError for a file of another kind or
    for other networks or unknown parts.
    """
    for part in nets:
        check_choice(KOHYA, part=part)
    path = _file(Path(path))
    tensors = read_tensor_file(path)
    layers = _by_module(path, tensors)
    found = _find_layers(path, layers, nets)
    modules: dict[str, list[str]] = {part: [] for part in nets}
    for target in found.values():
        modules[target.part].append(target.module)
    is_peft = any(name.startswith(PEFT_PREFIX) for name in tensors)
    settings = read_settings(path, is_peft, modules)
    scales = {
        module: _scale(path, target, layers[module], settings[target.part])
        for module, target in found.items()
    }
    # All names and shapes are checked before a tensor is read.
    loras: dict[str, LoraParams] = {}
    for module, target in found.items():
        pair = _read_pair(target, layers[module], scales[module])
        loras.setdefault(target.part, {})[target.path] = pair
    return loras


def _file(path: Path) -> Path:
    """The path of a LoRA file. In a folder, the name that diffusers gives comes before peft's."""
    if path.is_dir():
        check(
            not (path / "checkpoints").is_dir(),
            f"{path} is the directory of a run: export its LoRA by python -m ddpm_jax.export "
            f"--ckpt {path} --out X.safetensors.",
        )
        path /= next((name for name in (NAME, PEFT_NAME) if (path / name).exists()), NAME)
    if not path.is_file():
        raise FileNotFoundError(f"There is no LoRA file {path}: check its path.")
    return path


def add_lora(
    nets: Mapping[str, tuple[Network, Params]], path: str | Path, scale: float = 1.0
) -> dict[str, Params]:
    """The parameters of each part with a LoRA file added. Raise as `load_lora` does."""
    loras = load_lora(path, {part: net for part, (net, _) in nets.items()})
    return {
        part: merge_lora(params, loras.get(part, {}), scale) for part, (_, params) in nets.items()
    }


def with_lora(model: StableDiffusion, path: str | Path, scale: float = 1.0) -> StableDiffusion:
    """Add a LoRA file to the U-Net and the text encoder. Raise as `load_lora` does."""
    nets = {
        "unet": (model.unet, model.unet_params),
        "text_encoder": (model.text_encoder, model.text_params),
    }
    params = add_lora(nets, path, scale)
    return model._replace(unet_params=params["unet"], text_params=params["text_encoder"])


def save_lora(
    path: str | Path,
    loras: Mapping[str, LoraParams],
    nets: Mapping[str, Network],
    settings: Lora,
) -> None:
    """Write the LoRA of each part with peft's names, and rank and alpha in the metadata.

    `settings` are those with which they were trained.
    """
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    for part, lora in loras.items():
        modules = []
        for kernel, (a, b) in lora.items():
            module = _module(nets[part], kernel)
            # B is the kernel (1, 1, r, o) of a convolution.
            window = (1,) * (a.ndim - 2)
            wide_b = np.asarray(b).reshape(*window, *b.shape)
            tensors[f"{part}.{module}.lora_A.weight"] = to_torch(kernel, np.asarray(a))
            tensors[f"{part}.{module}.lora_B.weight"] = to_torch(kernel, wide_b)
            # peft compares the ends of names, and transformers 5.6 dropped this prefix.
            modules.append(module.removeprefix(CLIP_PREFIX))
        config = {
            "r": settings.rank,
            "lora_alpha": settings.scale * settings.rank,
            "target_modules": sorted(modules),
        }
        metadata |= {f"{part}.{key}": value for key, value in config.items()}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    text = json.dumps(metadata, indent=2, sort_keys=True)
    write_tensor_file(Path(path), tensors, {METADATA: text})


def split_parts(net: Network, lora: LoraParams) -> tuple[dict[str, LoraParams], dict[str, Network]]:
    """The LoRA and the network of each part of a network, as `save_lora` takes them.

    A network that has a `unet` and a `text_encoder` has its parameters under these names. Any other
    one is a unet.
    """
    nets = {part: getattr(net, part) for part in KOHYA if hasattr(net, part)}
    if not nets:
        return {"unet": lora}, {"unet": net}
    loras: dict[str, LoraParams] = {}
    for path, pair in lora.items():
        part, _, rest = path.partition("/")
        loras.setdefault(part, {})[rest] = pair
    return loras, nets


def _module(net: Network, kernel: str) -> str:
    return state_dict_name(net, kernel).removesuffix(".weight")


def _by_module(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """The tensors A, B and alpha of each layer. Raise ValueError for a file of another kind."""
    layers: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(PEFT_PREFIX)
        if match := MATRIX.fullmatch(name):
            layers[match[1]][ROLES.get(match[2], match[2])] = tensor
        elif name.endswith(".alpha"):
            layers[name.removesuffix(".alpha").removesuffix("_lora")]["alpha"] = tensor
        else:
            kinds = [kind for part, kind in OTHER_KINDS.items() if part in name]
            kind = kinds[0] if kinds else "no LoRA that can be read"
            raise ValueError(f"{path} is {kind}: it has {brief(name)}; use a plain LoRA.")
    check(len(layers) > 0, f"{path} holds no tensor: give a LoRA file.")
    for module, pair in layers.items():
        missing = {"A", "B"} - set(pair)
        check(not missing, f"{path}: {brief(module)} has no {' and no '.join(sorted(missing))}.")
    return dict(layers)


def _targets(nets: Mapping[str, Network]) -> dict[str, Target]:
    """The layers of the networks, by each spelling of their names."""
    spelled = {}
    for part, net in nets.items():
        for kernel, shape in lora_shapes(net.shapes()).items():
            module = _module(net, kernel)
            target = Target(part, kernel, module, shape_in_torch(kernel, shape))
            for name in _old_names(module):
                spelled[f"{part}.{name}"] = target
                spelled[f"{KOHYA[part]}_{name.replace('.', '_')}"] = target
                spelled[name] = target
                if isinstance(net, ClipText):
                    short = name.removeprefix(CLIP_PREFIX)
                    spelled |= {short: target, f"{part}.{short}": target}
    return spelled


def _old_names(module: str) -> Iterator[str]:
    """Yield a layer's name and, for attention, its name in old files (to_q also for q_proj)."""
    yield module
    parent, _, name = module.removesuffix(".0").rpartition(".")
    for names in QUERY_KEY_VALUE_OUT:
        if name in names:
            yield f"{parent}.{QUERY_KEY_VALUE_OUT[0][names.index(name)]}"


def _find_layers(
    path: Path, layers: Mapping[str, Mapping[str, LazyTensor]], nets: Mapping[str, Network]
) -> dict[str, Target]:
    """The layer of each module of a file. Raise ValueError unless all fit the networks."""
    spelled = _targets(nets)
    found = {module: spelled.get(module.replace(".processor.", ".")) for module in layers}
    unknown = [module for module, target in found.items() if target is None]
    check(
        not unknown,
        f"{path} is for another network: this one has no layer for {len(unknown)} of its "
        f"{len(layers)} ({brief(first_names(unknown))}).",
    )
    known = {module: target for module, target in found.items() if target is not None}
    for module, target in known.items():
        _check_pair(path, target, layers[module])
    changes = {target: _changed_shape(layers[module]) for module, target in known.items()}
    others = [
        f"{target.module} as {change}, not {_without_ones(target.shape)}"
        for target, change in changes.items()
        if change != _without_ones(target.shape)
    ]
    check(
        not others,
        f"{path} is for another network: {len(others)} of its {len(known)} layers have another "
        f"shape; it changes {brief(first_names(others))}.",
    )
    paths = {(target.part, target.path) for target in known.values()}
    check(len(paths) == len(known), f"{path} has a layer under two names: use one dialect.")
    return known


def _check_pair(path: Path, target: Target, pair: Mapping[str, LazyTensor]) -> None:
    """Raise ValueError unless A and B can be multiplied and alpha is a number."""
    a = _without_ones(pair["A"].shape)
    b = _without_ones(pair["B"].shape)
    check(0 not in (*a, *b), f"{path}: A and B of {target.module} are empty: use another file.")
    check(
        len(a) >= 2 and len(b) == 2 and a[0] == b[1],
        f"{path}: A and B of {target.module} cannot be multiplied: A has the shape "
        f"{pair['A'].shape} and B {pair['B'].shape}.",
    )
    if "alpha" in pair:
        is_one_number = math.prod(pair["alpha"].shape) == 1
        check(is_one_number, f"{path}: alpha of {target.module} is no number.")


def _changed_shape(pair: Mapping[str, LazyTensor]) -> tuple[int, ...]:
    """The shape of the weight that B A changes, without the window of a 1x1 convolution."""
    return (pair["B"].shape[0], *_without_ones(pair["A"].shape)[1:])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the window of a 1x1 convolution, which files may omit."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _scale(path: Path, target: Target, pair: Mapping[str, LazyTensor], settings: Settings) -> float:
    """alpha / rank of a layer. Raise ValueError for settings of another rank, or without number."""
    values = settings.values
    rank = pair["A"].shape[0]
    noted = settings.ranks.get(target.module, values.get("r"))
    check(
        noted in (None, rank),
        f"{path}: the rank of {target.module} is {rank} by its shape and {brief(noted)} by its "
        f"{settings.source}.",
    )
    alpha: Any
    if "alpha" in pair:
        alpha = float(pair["alpha"].read().ravel()[0])
    else:
        alpha = settings.alphas.get(target.module, values.get("lora_alpha"))
    if alpha is None:
        return 1.0
    is_number = isinstance(alpha, (int, float)) and math.isfinite(alpha)
    check(is_number, f"{path}: alpha of {target.module} is {brief(alpha)}, not a number.")
    has_root = "alpha" not in pair and values.get("use_rslora")
    return alpha / math.sqrt(rank) if has_root else alpha / rank


def _read_pair(target: Target, pair: Mapping[str, LazyTensor], scale: float) -> tuple[Array, Array]:
    """A (..., i, r) and B (r, o) of a layer in our layout, with the scale in B."""
    a = pair["A"].read()
    b = pair["B"].read()
    a = from_torch(target.path, a.reshape(len(a), *target.shape[1:]))
    return jnp.asarray(a), jnp.asarray(np.float32(scale) * b.reshape(len(b), -1).T)
