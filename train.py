"""Train a recipe: config -> data -> state -> loop.

    python train.py --config digits
    python train.py --config cifar10 --optimizer.learning-rate 1e-4 --training.steps 2000
    python train.py --config cifar10 --data folder --data.path my_images --model conv_unet
    python train.py --config butterflies --init-from google/ddpm-cat-256 --push owner/name

Run the same command again, without `--overwrite`, to resume. `--config NAME --help` lists all
settings.
"""

from ddpm_jax.cli import train

if __name__ == "__main__":
    train.run()
