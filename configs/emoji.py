"""Text to image at 32 px from captioned emoji, on latents of its own.

    python train.py --config emoji --data.path PATH
    python sample.py --ckpt runs/emoji --prompt "red heart" --guidance-scale 3

Two runs: an autoencoder to latents of 8x8x8, 689,083 parameters, then a text encoder and a U-Net
of these latents, 3,048,040 parameters. The settings of the first run are `--autoencoder.*`.
Hardware: a CPU, or any GPU.
Time: 0.3 to 0.5 s per step of the autoencoder and 0.4 to 0.6 s per step of the network on two slow
CPU cores, so half an hour and an hour.
Data: PATH is a folder of images with a metadata.jsonl, one object {"file_name", "text"} a line;
written for 3,786 Twemoji of 64 px, resized to 32 px. For images of 64 px add
`--autoencoder.model.image-size 64 --autoencoder.model.widths 16 32 64 64`.
Expected: reconstructions of a mean PSNR of 30.3 dB on 512 of the training images
(`python benchmarks/autoencoder.py --ckpt runs/emoji/autoencoder --num 512`). The network of the
package, `--ckpt emoji`, was trained by this recipe and for 10,000 steps more; docs/results.md has
the commands and shows what it draws. The network's run of 8,000 steps was begun with
--training.steps 40000 and resumed at steps 1,872 and 3,333 with 10000 and 8000: until then its
learning rate was higher than the recipe's.
"""

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.data.folder import Folder
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.latent_config import AutoencoderRun, LatentConfig
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

optimizer = Optimizer(
    name="adamw", learning_rate=1e-3, decay="cosine", warmup_steps=200, clip_norm=1.0
)

config = LatentConfig(
    autoencoder=AutoencoderRun(
        model=ImageAutoencoder(
            image_size=32, channels=3, latent_channels=8, widths=(16, 32, 64), groups=8
        ),
        training=Training(batch_size=16, steps=4000),
        optimizer=optimizer,
        ema=Ema(decay=0.995),
    ),
    model=TextUNet(image_size=8, channels=8, label_dropout=0.1),
    data=Folder(path="twemoji", caption_column="text"),
    objective=Objective(schedule="squaredcos", target="v"),
    training=Training(batch_size=32, steps=8000),
    optimizer=optimizer,
    ema=Ema(decay=0.9995),
    sampling=Sampling(sampler="ddim", steps=50, clip_x0=False, guidance_scale=3.0),
    checkpoint=Checkpoint(every=500),
    log=Log(every=50, samples_every=2000, samples=16, sample_steps=20),
    captions=(
        "red heart",
        "blue heart",
        "pizza",
        "japan flag",
        "dog face",
        "rocket",
        "woman firefighter, medium skin tone",
        "grinning face",
    ),
)
