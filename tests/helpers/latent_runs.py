"""A folder of small captioned images, and a recipe of an autoencoder and a network of latents."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.data.folder import Folder
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.latent_config import AutoencoderRun, LatentConfig
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.training.ema import Ema

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
SHAPES = ("square", "stripe")

AUTOENCODER = ImageAutoencoder(
    image_size=8, channels=3, latent_channels=4, widths=(8, 8), layers_per_level=1, groups=4
)
TEXT_UNET = TextUNet(
    image_size=4,
    channels=4,
    label_dropout=0.1,
    vocab_size=520,
    max_length=14,
    text_width=8,
    text_layers=1,
    text_heads=2,
    widths=(8,),
    attention=(False,),
    head_dim=8,
    groups=4,
)
CONFIG = LatentConfig(
    autoencoder=AutoencoderRun(
        model=AUTOENCODER, training=Training(batch_size=8, steps=4), ema=Ema(decay=0.5)
    ),
    model=TEXT_UNET,
    data=Folder(path="captioned", caption_column="text"),
    training=Training(batch_size=8, steps=8),
    ema=Ema(decay=0.5),
    sampling=Sampling(sampler="ddim", steps=4, clip_x0=False, guidance_scale=3.0),
    checkpoint=Checkpoint(every=4),
    log=Log(every=1, samples=2, sample_steps=2),
    captions=("red square", "blue stripe"),
)


def captioned_images(folder: Path) -> Path:
    """Write six images with captions such as "red square", and their metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            image = np.full((8, 8, 3), 255, np.uint8)
            image[2:6, 2:6] = rgb
            if shape == "stripe":
                image[:, 3:5] = rgb
            name = f"{colour}-{shape}.png"
            Image.fromarray(image).save(folder / name)
            lines.append({"file_name": name, "text": f"{colour} {shape}", "group": colour})
    write_metadata(folder, lines)
    return folder


def write_metadata(folder: Path, lines: list[dict]) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
