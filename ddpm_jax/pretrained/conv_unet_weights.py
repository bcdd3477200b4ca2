"""The ConvBlock U-Net of a well-known DDPM project: read the state dict that PyTorch saved.

Copies of the project name the modules differently. Every copy registers them in the same order,
so tensors are matched by their kind (convolution, norm, linear, ...), order and shape.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Params
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.pretrained.torch_pickle import LazyTensor, read_bin

IMAGE_SIZE = 32
"""The project's image size, which a state dict does not contain."""
SUFFIXES = (".pt", ".pth")
KINDS = {
    "conv3": "a 3x3 convolution",
    "conv1": "a 1x1 convolution",
    "up": "a transposed convolution",
    "norm": "a group norm",
    "linear": "a linear layer",
}
Module = dict[str, LazyTensor]


def is_torch_file(ckpt: str) -> bool:
    """Whether `ckpt` is named like the files that PyTorch projects save, and is no folder."""
    return Path(ckpt).suffix in SUFFIXES and not Path(ckpt).is_dir()


def load_conv_unet(path: Path, image_size: ImageSize = IMAGE_SIZE) -> tuple[ModelSpec, Params]:
    """Read a state dict; return its model spec and the parameters.

    The spec samples as the project does: 1,000 steps with variance beta, and x clamped to [-1, 1]
    after each step. Raise ValueError for any other file.
    """
    check(path.is_file(), f"There is no file {path}: give the state dict of a ConvBlock U-Net.")
    try:
        tensors = read_bin(path)
    except ValueError as error:
        raise ValueError(f"{error} {_remedy(path)}") from error
    modules = _by_kind(path, tensors)
    model = _model(path, modules, image_size)
    spec = ModelSpec(
        model=model,
        objective=Objective(schedule="linear"),
        sampling=Sampling(
            options={"variance": "fixed_large", "clip_sample": 1.0},
            clip_x0=False,
        ),
    )
    return spec, _params(path, model, modules)


def _remedy(path: Path) -> str:
    """How to make a state dict of a file that holds a module or a whole training state."""
    load = f"torch.load('{path.name}', weights_only=False)"
    return (
        f"If it holds a whole module, run torch.save({load}.state_dict(), 'state.pt') in the "
        "project's folder; if it holds a dict of more than weights, save the state dict alone."
    )


def _by_kind(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, list[tuple[str, Module]]]:
    """The modules (name, tensors) of each kind, in the order of the state dict."""
    modules: dict[str, Module] = {}
    for name, tensor in tensors.items():
        module_name, _, leaf = name.rpartition(".")
        if leaf in ("weight", "bias"):
            modules.setdefault(module_name, {})[leaf] = tensor
        else:
            _check_buffer(path, name, tensor)
    kinds: dict[str, list[tuple[str, Module]]] = {kind: [] for kind in KINDS}
    for name, module in modules.items():
        check("weight" in module, f"{path}: {name} has a bias and no weight.")
        kinds[_kind(path, name, module["weight"].shape)].append((name, module))
    return kinds


def _check_buffer(path: Path, name: str, tensor: LazyTensor) -> None:
    """Raise ValueError unless the tensor holds the frequencies of the time embedding."""
    n = tensor.shape[0] if len(tensor.shape) == 1 else 0
    expected = 10000.0 ** (-np.arange(n) / max(n, 1))
    check(
        n > 0 and np.allclose(tensor.read(), expected, rtol=1e-3, atol=0),
        f"{path} is not a ConvBlock U-Net with group norm: it has {name}, which is neither a "
        "weight nor the frequencies 10000^(-i/n) of the time embedding.",
    )


def _kind(path: Path, name: str, shape: tuple[int, ...]) -> str:
    kinds = {(3, 3): "conv3", (1, 1): "conv1", (2, 2): "up"}
    if len(shape) == 4 and shape[2:] in kinds:
        return kinds[shape[2:]]
    if len(shape) in (1, 2):
        return {1: "norm", 2: "linear"}[len(shape)]
    raise ValueError(f"{path} is not a ConvBlock U-Net: {name} has the shape {shape}.")


def _model(path: Path, modules: Mapping[str, list], image_size: ImageSize) -> ConvUNet:
    """The network whose parameters have these shapes."""
    levels = len(modules["up"]) + 1
    convolutions = [module["weight"].shape for _, module in modules["conv3"]]
    check(
        levels > 1 and len(convolutions) == 2 * (2 * levels - 1) and len(modules["linear"]) > 0,
        f"{path} is not a ConvBlock U-Net: it has {len(convolutions)} 3x3 convolutions and "
        f"{levels - 1} transposed convolutions.",
    )
    return ConvUNet(
        image_size=image_size,
        channels=convolutions[0][1],
        widths=tuple(shape[0] for shape in convolutions[0 : 2 * levels : 2]),
        time_embedding_dim=modules["linear"][0][1]["weight"].shape[0],
    )


def _paths(model: ConvUNet, shapes: Params) -> dict[str, list[str]]:
    """Our modules of each kind, in the order in which the project registers its own."""
    levels = len(model.widths)
    decoder = list(reversed(range(levels - 1)))
    blocks = [*(f"down_{i}" for i in range(levels)), *(f"up_{i}" for i in decoder)]
    shortcuts = [block for block in blocks if "conv_shortcut" in shapes[block]]
    return {
        "conv3": [f"{block}/{name}" for block in blocks for name in ("conv1", "conv2")],
        "norm": [f"{block}/{name}" for block in blocks for name in ("norm1", "norm2")],
        "linear": ["time_linear", *(f"{block}/time_emb_proj" for block in blocks)],
        "conv1": [*(f"{block}/conv_shortcut" for block in shortcuts), "conv_out"],
        "up": [f"upsample_{i}" for i in decoder],
    }


def _params(path: Path, model: ConvUNet, modules: Mapping[str, list]) -> Params:
    """The parameters as our tree. Raise ValueError if a module is missing or has other shapes."""
    shapes = model.shapes()
    params: Params = {}
    for kind, paths in _paths(model, shapes).items():
        theirs = modules[kind]
        check(
            len(theirs) == len(paths),
            f"{path} is not a ConvBlock U-Net: it has {len(theirs)} modules like {KINDS[kind]}, "
            f"not {len(paths)}.",
        )
        for our_path, (their_name, module) in zip(paths, theirs, strict=True):
            block, _, name = our_path.rpartition("/")
            parent = params.setdefault(block, {}) if block else params
            parent_shapes = shapes[block] if block else shapes
            leaves = _leaves(kind, module)
            got = {leaf: array.shape for leaf, array in leaves.items()}
            expected = {leaf: spec.shape for leaf, spec in parent_shapes[name].items()}
            check(
                got == expected,
                f"{path}: {their_name} has the shapes {got}, not {expected} as {our_path}.",
            )
            parent[name] = leaves
    return params


def _leaves(kind: str, module: Module) -> dict[str, np.ndarray]:
    """The tensors of a module in the layout of our parameters."""
    arrays = {leaf: tensor.read() for leaf, tensor in module.items()}
    weight = arrays.pop("weight")
    if kind == "norm":
        return {"scale": weight, **arrays}
    axes = {"linear": (1, 0), "up": (0, 2, 3, 1)}.get(kind, (2, 3, 1, 0))  # OIHW -> HWIO
    return {"kernel": np.ascontiguousarray(weight.transpose(axes)), **arrays}
