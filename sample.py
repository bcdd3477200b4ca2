"""Draw samples from a trained network: checkpoint -> sampler -> pictures.

    python sample.py --ckpt runs/digits --num 64 --steps 100 --out samples.png
    python sample.py --ckpt runs/digits_classes --label 3,5,7 --guidance-scale 2 --sampler heun
    python sample.py --ckpt runs/digits --image five.png --strength 0.6
    python sample.py --ckpt google/ddpm-cat-256 --steps 50
    python sample.py --ckpt CompVis/stable-diffusion-v1-4 --prompt "a red heart" --out heart.png

--ckpt is a run, a folder or hub repository in the diffusers layout, or a state dict (.pt) of the
ConvBlock U-Net. Its recipe gives the default of every other setting. `--ckpt DIR --help` lists the
settings. Stable Diffusion has settings of its own, such as --prompt (docs/text-to-image.md).
"""

from ddpm_jax.cli import sample

if __name__ == "__main__":
    sample.run()
