"""Train diffusers' network on PyTorch for a few steps and save it, as a whole process.

    python benchmarks/torch_process.py UNET_FOLDER IMAGE_FOLDER OUT --batch-size 16 --steps 3

`whole_process.py` times it beside train.py, whose work it does, in the form of diffusers' script
for training without conditions: a network with fresh parameters, images from a folder, AdamW,
diffusers' moving average, and at the end a pipeline and the state of the optimizer on disk. Unlike
that script it does not clip gradients, because the recipes that are compared do not.
"""

import argparse
import itertools
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn import functional


class Folder(torch.utils.data.Dataset):
    """The PNG images of a folder as (c, h, w) in [-1, 1], flipped at random."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = np.atleast_3d(Image.open(self.paths[index]))  # (h, w, c)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image / 127.5 - 1


def train(unet: Path, images: Path, out: Path, batch_size: int, steps: int) -> None:
    """Train and save."""
    net = diffusers.UNet2DModel.from_config(diffusers.UNet2DModel.load_config(unet))
    scheduler = diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-4)
    average = EMAModel(net.parameters())
    loader = torch.utils.data.DataLoader(Folder(images), batch_size=batch_size, shuffle=True)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, x0 in enumerate(itertools.islice(epochs, steps)):  # (b, c, h, w)
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),))
        loss = functional.mse_loss(net(scheduler.add_noise(x0, eps, t), t).sample, eps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        print(f"step {step + 1}, loss {loss.item():.4f}", flush=True)
    out.mkdir()
    torch.save(optimizer.state_dict(), out / "optimizer.pt")
    torch.save(average.state_dict(), out / "average.pt")
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("unet", type=Path, help="folder with the config.json of a UNet2DModel")
    parser.add_argument("images", type=Path, help="folder of PNG images")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    train(**vars(parser.parse_args()))
