"""Train the recipe of a run in PyTorch with diffusers, from the same weights on the same batches.

    python benchmarks/torch_twin.py --ckpt runs/digits --out runs/digits-torch    # needs PyTorch

The network is diffusers' UNet2DModel with the initial weights of the run. Each step takes the
images of the run's batch at that step; timesteps, noise and hidden labels are PyTorch's own. The
optimizer, the learning rate at each step, the clipping and the average of the parameters are those
of the recipe. Training ends at the run's step, or at `--steps`. Then draw `--num` images with the
averaged parameters and the exported scheduler. If there are classes, their labels repeat in order,
with the run's guidance. Recipes with settings that the twin does not have are refused.

Write `samples.npz`, `loss.jsonl` and the pipeline in the diffusers layout to `--out`. Measure both
results with the same command: `python -m ddpm_jax.evaluate --samples X.npz --against DATA`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddpm_jax.cli.arguments import one_line_errors
from ddpm_jax.cli.run_options import image_config
from ddpm_jax.data.batches import batch_at, stream
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.errors import check
from ddpm_jax.pretrained.pipeline_folder import save_pretrained
from ddpm_jax.runs.initial_weights import first_trained
from ddpm_jax.runs.sources import open_run
from ddpm_jax.training.ema import decay_rate
from ddpm_jax.training.optimizer import learning_rate
from ddpm_jax.training.step import training_keys

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
BATCH = 64
TWIN_HAS = {
    "objective": {
        "schedule": ("linear", "scaled_linear", "squaredcos", "sigmoid"),
        "target": ("eps", "v"),
        "timestep_sampling": ("uniform",),
        "weighting": ("simple",),
        "loss_kind": ("simple",),
    },
    "sampling": {"guidance_interval": (None,), "guidance_rescale": (None,)},
    "training": {"dtype": ("float32",)},
    "lora": {"rank": (0,)},
}
"""{part of a recipe: {setting: the values that the twin has}}. Others may have any value."""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="directory of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="training steps; those of the run by default")
    parser.add_argument("--num", type=int, default=2000, help="images to draw")
    parser.add_argument("--sample-steps", type=int, default=100)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    run = open_run(options.ckpt)
    config = image_config(run)
    check_recipe(config)
    key, _ = training_keys(config.training.seed)
    save_pretrained(config, first_trained(config, key), options.out)
    net = diffusers.UNet2DModel.from_pretrained(options.out, subfolder="unet")
    torch.manual_seed(config.training.seed)
    average = train(net, config, options.steps or run.step, options.out)
    with torch.no_grad():
        for parameter, mean in zip(net.parameters(), average, strict=True):
            parameter.copy_(mean)
    net.save_pretrained(options.out / "unet")
    images = draw(net, config, options)
    np.savez_compressed(options.out / "samples.npz", images=images)
    print(options.out / "samples.npz")


def check_recipe(config):
    """Raise ValueError for settings that change our training or sampling, but not the twin's."""
    refused = [
        f"{group}.{name}"
        for group, settings in TWIN_HAS.items()
        for name, valid in settings.items()
        if getattr(getattr(config, group), name) not in valid
    ]
    check(
        not refused,
        f"The twin in PyTorch does not have the recipe's {', '.join(refused)}: give another run.",
    )


def train(net, config, steps, out):
    """Train the network, write its losses, and return the average of its parameters."""
    images = config.load_images()
    settings = config.optimizer
    rate = learning_rate(
        settings, config.total_steps(len(images)), config.steps_per_epoch(len(images))
    )
    options = {"weight_decay": settings.weight_decay} if settings.name == "adamw" else {}
    optimizer = OPTIMIZERS[settings.name](net.parameters(), lr=settings.learning_rate, **options)
    scheduler = diffusers.DDPMScheduler.from_pretrained(out, subfolder="scheduler")
    average = [p.detach().clone() for p in net.parameters()]
    training = config.training
    ema = config.ema
    net.train()

    def batch(step):
        return batch_at(images, training.seed, step, training.batch_size, flip=config.data.flip)

    began = time.perf_counter()
    with open(out / "loss.jsonl", "w") as log, tqdm(total=steps, unit="step") as bar:
        for step, examples in enumerate(stream(batch, 0, steps), 1):
            loss = loss_of(net, scheduler, config, examples)
            loss.backward()
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = float(rate(step - 1))
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                moved = float(decay_rate(ema.decay, ema.warmup, step))
                torch._foreach_lerp_(average, list(net.parameters()), moved)
            log.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            bar.update()
    print(f"{steps} steps in {time.perf_counter() - began:.0f} s")
    return average


def loss_of(net, scheduler, config, examples):
    """The mean squared error of a batch in the target of the scheduler."""
    x0 = torch.from_numpy(examples["image"].transpose(0, 3, 1, 2)).contiguous()
    eps = torch.randn_like(x0)
    t = torch.randint(0, config.objective.timesteps, (len(x0),))
    labels = None
    if config.model.num_classes:
        labels = torch.from_numpy(examples["label"]).long()
        hidden = torch.rand(len(labels)) < config.model.label_dropout
        labels = torch.where(hidden, config.model.num_classes, labels)
    output = net(scheduler.add_noise(x0, eps, t), t, class_labels=labels).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    return functional.mse_loss(output, scheduler.get_velocity(x0, eps, t) if is_v else eps)


@torch.inference_mode()
def draw(net, config, options):
    """Draw uint8 images (n, h, w, c) by the scheduler of the exported run."""
    net.eval()
    index = json.loads((options.out / "model_index.json").read_text())
    kind = getattr(diffusers, index["scheduler"][1])
    scheduler = kind.from_pretrained(options.out, subfolder="scheduler")
    generator = torch.Generator().manual_seed(config.training.seed)
    drawn = []
    for start in tqdm(range(0, options.num, BATCH), "Drawing", unit="batch"):
        count = min(BATCH, options.num - start)
        scheduler.set_timesteps(options.sample_steps)
        height, width, channels = config.model.image_shape
        x = torch.randn(count, channels, height, width, generator=generator)
        x = x * scheduler.init_noise_sigma
        steps = {"generator": generator} if kind is diffusers.DDPMScheduler else {}
        for t in scheduler.timesteps:
            output = guided(net, config, scheduler.scale_model_input(x, t), t, start)
            x = scheduler.step(output, t, x, **steps).prev_sample
        drawn.append(to_uint8(x.numpy().transpose(0, 2, 3, 1)))
    return np.concatenate(drawn)


def guided(net, config, x, t, start):
    """The network's output for labels that repeat in order, guided as the recipe is."""
    classes = config.model.num_classes
    if not classes:
        return net(x, t).sample
    labels = torch.arange(start, start + len(x)) % classes
    scale = config.sampling.guidance_scale
    conditional = net(x, t, class_labels=labels).sample
    if scale == 1:
        return conditional
    unconditional = net(x, t, class_labels=torch.full_like(labels, classes)).sample
    return unconditional + scale * (conditional - unconditional)


if __name__ == "__main__":
    with one_line_errors(False):
        main()
