"""Whole pipelines on small random weights, beside diffusers: the images of 50 steps.

diffusers draws by torch.Generator("cpu") with a seed, and we by `noise="torch-cpu"` and the same
seed. Each line shows the largest difference of the pixels in [0, 1], and how many values are equal
as 8-bit numbers. Bounds: 1e-5 and 99.9 %. The last lines are for pipelines that we saved and
diffusers opened, whose images must be the same, and for the modules that sample.py imports to draw
a prompt, which must not be PyTorch's.

`python tests/parity/stable_diffusion_pipelines.py` writes the images of small pipelines that the
suite compares with (tests/fixtures/stable_diffusion_pipelines.npz).
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import diffusers
import jax
import numpy as np
import shared
import torch
import transformers
from PIL import Image
from stable_diffusion_tokenizer import write_tokenizer

sys.path.insert(1, str(Path(__file__).parents[1]))
from helpers.text import (
    FIXTURE,
    HUB_SCHEDULER,
    IMAGE,
    MASK,
    RECORDED,
    RECORDED_CALL,
    tiny_model,
)

from ddpm_jax.pretrained.stable_diffusion import load_stable_diffusion, save_stable_diffusion
from ddpm_jax.text_to_image.draw import draw_pixels
from ddpm_jax.text_to_image.request import Request

PIPELINE_CLASSES = {
    "text": diffusers.AutoPipelineForText2Image,
    "image": diffusers.AutoPipelineForImage2Image,
    "inpaint": diffusers.AutoPipelineForInpainting,
}
PROMPT = "A red heart, beating"
NEGATIVE = "blurry!"
SIZE = {"height": 64, "width": 48}
MAX_DIFFERENCE = 1e-5
MAX_DIFFERENT = 1e-3
SHOWN_DIFFERENCE = 1e4
"""Factor of the differences in pictures."""
FOREIGN = ("torch", "transformers", "tensorflow", "diffusers")
DRAW = """
import sys
from ddpm_jax.cli import sample
sample.main(sys.argv[1:])
print(*sorted({modules} & sys.modules.keys()))
"""


class Case(NamedTuple):
    """A pipeline: its task, its scheduler, and the calls' settings."""

    name: str
    task: str = "text"
    scheduler: str | None = None
    resaved: bool = False
    """Whether diffusers saved the pipeline again, which makes all keys of the JSON explicit."""
    seed: int = 1145
    options: dict = {}  # noqa: RUF012
    inpaints: bool = False


CASES = [
    Case("PNDM of the hub"),
    Case("UniPC of the hub's JSON", scheduler="UniPCMultistepScheduler"),
    Case("UniPC of a saved JSON", scheduler="UniPCMultistepScheduler", resaved=True, seed=37),
    Case("DPM++ of the hub's JSON", scheduler="DPMSolverMultistepScheduler", seed=2**32 + 5),
    Case(
        "Euler of the hub's JSON, rescaled",
        scheduler="EulerDiscreteScheduler",
        options={"guidance_rescale": 0.7, "guidance_scale": 5.5},
    ),
    Case("image to image, DDIM", "image", "DDIMScheduler", options={"strength": 0.6}),
    Case(
        "inpaint, 4 channels, UniPC",
        "inpaint",
        "UniPCMultistepScheduler",
        options={"strength": 0.8},
    ),
    Case("inpaint, 9 channels, Euler", "inpaint", "EulerDiscreteScheduler", inpaints=True),
    Case("Euler of a saved JSON", scheduler="EulerDiscreteScheduler", resaved=True),
    Case("image to image, DPM++", "image", "DPMSolverMultistepScheduler", resaved=True),
    Case("inpaint, 4 channels, strength 1", "inpaint", "DDIMScheduler"),
    Case(
        "inpaint, 9 channels, strength 0.5",
        "inpaint",
        "UniPCMultistepScheduler",
        options={"strength": 0.5},
        inpaints=True,
    ),
]


def write_pipeline(folder: Path, inpaints: bool) -> None:
    """Write a pipeline of small random networks with the scheduler JSON of the hub."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        in_channels=9 if inpaints else 4,
    )
    vae = diffusers.AutoencoderKL(
        sample_size=64,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=521,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=519,
            eos_token_id=520,
            pad_token_id=520,
        )
    )
    with torch.no_grad():
        # Fresh norms and biases are 1 and 0, which would hide mistakes.
        for net in (unet, vae, text_encoder):
            for parameter in net.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipeline_class = (
        diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    )
    pipeline_class(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.PNDMScheduler.from_config(HUB_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(HUB_SCHEDULER))


def pictures() -> tuple[Image.Image, Image.Image]:
    """An image and a mask of another size than what is drawn."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    image = Image.fromarray(small).resize((70, 90), Image.Resampling.BICUBIC)
    mask = np.zeros((90, 70), np.uint8)
    mask[20:75, 10:45] = 255
    return image, Image.fromarray(mask)


def theirs(folder: Path, case: Case) -> np.ndarray:
    """The pixels of diffusers, float in [0, 1]."""
    pipeline = PIPELINE_CLASSES[case.task].from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if case.scheduler:
        scheduler_class = getattr(diffusers, case.scheduler)
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
    image, mask = pictures()
    inputs = {
        "text": SIZE,
        "image": {"image": image.resize((SIZE["width"], SIZE["height"]), Image.Resampling.LANCZOS)},
        "inpaint": {"image": image, "mask_image": mask, **SIZE},
    }[case.task]
    generator = torch.Generator("cpu").manual_seed(case.seed)
    options = {"guidance_scale": 7.5, **case.options}
    result = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        generator=generator,
        num_inference_steps=50,
        output_type="np",
        **inputs,
        **options,
    )
    return result.images


def ours(folder: Path, case: Case) -> np.ndarray:
    """Our pixels, float in [0, 1]."""
    model = load_stable_diffusion(folder, scheduler=case.scheduler)
    image, mask = pictures()
    options = dict(case.options)
    request = Request(
        prompts=[PROMPT],
        negative_prompts=[NEGATIVE],
        seed=case.seed,
        noise="torch-cpu",
        images=[] if case.task == "text" else [image],
        masks=[mask] if case.task == "inpaint" else [],
        strength=options.pop("strength", None),
        **SIZE,
    )
    sampling = model.sampling.override(**options)
    return np.clip(draw_pixels(model, request, sampling) / 2 + 0.5, 0, 1)


def compare(pictures: Path | None = None) -> tuple[list[shared.Figure], int]:
    """Print a line per case. Return two figures of each, and how many of the last lines are wrong.

    Save a picture of each case in the folder `pictures` if it is given.
    """
    warnings.simplefilter("ignore")
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            folder = Path(scratch) / f"{case.inpaints}"
            if not folder.exists():
                write_pipeline(folder, case.inpaints)
            if case.resaved:
                saved = Path(scratch) / f"{case.inpaints}-saved"
                pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
                pipeline.save_pretrained(saved)
                folder = saved
            expected = theirs(folder, case)
            drawn = ours(folder, case)
            difference = np.abs(drawn - expected).max()
            equal = np.mean(np.round(drawn * 255) == np.round(expected * 255))
            print(
                f"{case.name:36} {difference:.1e}  {equal:8.3%}  std {expected.std():.3f}",
                flush=True,
            )
            figures += image_figures(case.name, difference, equal)
            if pictures is not None:
                save_picture(pictures / f"{case.name}.png", expected[0], drawn[0])
        wrong = sum(saved_differs(Path(scratch), case) for case in (CASES[0], CASES[7]))
        wrong += imports_foreign_modules(Path(scratch) / "False")
    return figures, wrong


def saved_differs(scratch: Path, case: Case) -> bool:
    """Whether a pipeline that we saved and diffusers opens draws another image than the original.

    Print a line.
    """
    original = scratch / f"{case.inpaints}"
    saved = scratch / f"{case.inpaints}-ours"
    save_stable_diffusion(load_stable_diffusion(original), saved)
    same = np.array_equal(theirs(saved, case), theirs(original, case))
    result = "equal" if same else "different"
    print(f"saved by us, opened by diffusers: {case.name:28} {result}", flush=True)
    return not same


def imports_foreign_modules(folder: Path) -> bool:
    """Whether sample.py imports one of `FOREIGN` to draw a prompt. Print a line."""
    code = DRAW.format(modules=set(FOREIGN))
    options = ["--prompt", PROMPT, "--sampler", "ddim", "--steps", "2"]
    out = str(folder.parent / "drawn.png")
    command = [sys.executable, "-c", code, "--ckpt", str(folder), *options, "--out", out]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    imported = done.stdout.splitlines()[-1]
    print(f"of {', '.join(FOREIGN)}, sample.py imports: {imported or 'none'}", flush=True)
    return bool(imported)


def save_picture(path: Path, theirs: np.ndarray, ours: np.ndarray) -> None:
    """Save two images (h, w, 3) in [0, 1] and their amplified difference side by side."""
    difference = np.clip(SHOWN_DIFFERENCE * np.abs(ours - theirs), 0, 1)
    row = np.concatenate([theirs, ours, difference], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * row).astype(np.uint8)).save(path)


def image_figures(name: str, difference: float, equal: float) -> list[shared.Figure]:
    """The largest difference of pixels in [0, 1], and the share of 8-bit values that differ."""
    return [
        shared.Figure(f"pixels of {name}", difference, MAX_DIFFERENCE),
        shared.Figure(f"8-bit values that differ, {name},", 1 - equal, MAX_DIFFERENT),
    ]


def write_fixture() -> None:
    """Write the images that diffusers draws with `tiny_model`, saved by us."""
    images = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, recorded in RECORDED.items():
            folder = Path(scratch) / name
            save_stable_diffusion(tiny_model(recorded.inpaints), folder)
            options = {"guidance_scale": 7.5, "num_inference_steps": RECORDED_CALL["steps"]}
            if recorded.strength:
                options["strength"] = recorded.strength
            if recorded.guidance_rescale:
                options["guidance_rescale"] = recorded.guidance_rescale
            inputs = {
                "text": {},
                "image": {"image": Image.fromarray(IMAGE)},
                "inpaint": {
                    "image": Image.fromarray(IMAGE),
                    "mask_image": Image.fromarray(MASK),
                    "height": 8,
                    "width": 8,
                },
            }[recorded.task]
            pipeline = PIPELINE_CLASSES[recorded.task].from_pretrained(folder)
            images[name] = pipeline(
                RECORDED_CALL["prompt"],
                negative_prompt=RECORDED_CALL["negative_prompt"],
                generator=torch.Generator("cpu").manual_seed(RECORDED_CALL["seed"]),
                output_type="np",
                **inputs,
                **options,
            ).images
            print(name, images[name].shape, images[name].std())
    np.savez_compressed(FIXTURE, **images)


if __name__ == "__main__":
    write_fixture()
