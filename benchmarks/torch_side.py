"""PyTorch's side of bench.py and gpu.py: diffusers' UNet2DModel, trained and sampled.

It runs as in diffusers' own scripts, except for two faster forms: AdamW is PyTorch's fused one, and
the moving average is a foreach operation instead of diffusers' loop.
"""

import sys
import time
from pathlib import Path

import diffusers
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from sides import serve

SCHEDULERS = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}
STATE = {}


def versions():
    """The versions of PyTorch and diffusers, and the device."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{torch.get_num_threads()} threads"
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "on": device}


def load(folder, batch_size, device="cpu", autocast=None, clip_norm=None):
    """Load a network in the diffusers layout and make a batch.

    `autocast` is a dtype such as "bfloat16", or None for float32. `clip_norm` is the largest norm
    of a gradient, or None for no limit.
    """
    net = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    net = net.to(device)
    size = net.config.sample_size
    image = torch.rand(batch_size, net.config.in_channels, size, size) * 2 - 1  # (b, c, h, w)
    if device == "cuda":
        image = image.pin_memory()
    STATE.clear()
    STATE.update(net=net, run=net, device=device, memory_format=torch.contiguous_format)
    STATE.update(image=image, scheduler=diffusers.DDPMScheduler(), clip_norm=clip_norm)
    torch.backends.cudnn.benchmark = True
    STATE["dtype"] = getattr(torch, autocast or "float32")


def use(compiled, channels_last, mode="default"):
    """Switch to compiled or eager code and to a memory layout; reset optimizer and average."""
    torch.compiler.reset()
    STATE["memory_format"] = torch.channels_last if channels_last else torch.contiguous_format
    net = STATE["net"].to(memory_format=STATE["memory_format"])
    STATE["run"] = torch.compile(net, mode=mode) if compiled else net
    STATE["optimizer"] = torch.optim.AdamW(net.parameters(), lr=4e-4, fused=True)
    STATE["average"] = [p.detach().clone() for p in net.parameters()]


def network(x, t):
    """The network's output in float32."""
    torch.compiler.cudagraph_mark_step_begin()
    with torch.autocast(STATE["device"], STATE["dtype"], enabled=STATE["dtype"] != torch.float32):
        return STATE["run"](x, t).sample.float()


def to_device(x):
    """`x` on the device, in the memory layout."""
    return x.to(STATE["device"], non_blocking=True, memory_format=STATE["memory_format"])


def now():
    """Wait until the device is done, and return the time in seconds."""
    if STATE["device"] == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train(steps):
    """Run training steps and return the seconds.

    One step before them is not counted, because a process is slow at first after it was idle.
    """
    train_step()
    began = now()
    for _ in range(steps):
        train_step()
    return now() - began


def train_step():
    """Run one optimizer step."""
    net = STATE["net"]
    scheduler = STATE["scheduler"]
    x0 = to_device(STATE["image"])
    eps = torch.randn_like(x0)
    t = torch.randint(0, 1000, (len(x0),), device=x0.device)
    functional.mse_loss(network(scheduler.add_noise(x0, eps, t), t), eps).backward()
    if STATE["clip_norm"] is not None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), STATE["clip_norm"])
    STATE["optimizer"].step()
    STATE["optimizer"].zero_grad()
    with torch.no_grad():
        torch._foreach_lerp_(STATE["average"], list(net.parameters()), 1e-3)


@torch.inference_mode()
def forward(passes):
    """Run forward passes and return the seconds. One pass before them is not counted."""
    x = to_device(STATE["image"])
    t = torch.full((len(x),), 500, device=x.device)
    network(x, t)
    began = now()
    for _ in range(passes):
        network(x, t)
    return now() - began


@torch.inference_mode()
def sample(steps, num_images, sampler="ddim"):
    """Draw images and return the seconds."""
    config = STATE["net"].config
    scheduler = SCHEDULERS[sampler]()
    scheduler.set_timesteps(steps)
    size = config.sample_size
    began = now()
    x = to_device(torch.randn(num_images, config.in_channels, size, size))  # (b, c, h, w)
    for t in scheduler.timesteps.tolist():
        output = network(x, torch.full((num_images,), t, device=x.device))
        x = scheduler.step(output, t, x).prev_sample
    x.cpu()
    return now() - began


if __name__ == "__main__":
    served = (versions, load, use, train, forward, sample)
    serve({function.__name__: function for function in served})
