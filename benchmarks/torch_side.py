"""The torch side of bench.py and gpu.py: diffusers' UNet2DModel trained and sampled as its own scripts do, at its best.

AdamW and the moving average are torch's fused and foreach forms, which are faster than diffusers' loops.
"""

import resource
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
    """What the figures are of."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} threads"
    )
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "on": device}


def load(folder, batch_size, device="cpu", autocast=None):
    """A net in the layout of diffusers, its optimizer, its average, and a batch; `autocast` such as "bfloat16"."""
    net = diffusers.UNet2DModel.from_pretrained(
        folder, subfolder="unet", low_cpu_mem_usage=False
    ).to(device)
    image = (
        torch.rand(
            batch_size, net.config.in_channels, net.config.sample_size, net.config.sample_size
        )
        * 2
        - 1
    )
    STATE.clear()
    STATE.update(net=net, run=net, device=device, memory_format=torch.contiguous_format)
    STATE.update(
        image=image.pin_memory() if device == "cuda" else image, scheduler=diffusers.DDPMScheduler()
    )
    torch.backends.cudnn.benchmark = True
    STATE["dtype"] = getattr(torch, autocast or "float32")


def use(compiled, channels_last, mode="default"):
    """Changes over to compiled or eager code, and to the layout."""
    torch.compiler.reset()
    STATE["memory_format"] = torch.channels_last if channels_last else torch.contiguous_format
    net = STATE["net"].to(memory_format=STATE["memory_format"])
    STATE["run"] = torch.compile(net, mode=mode) if compiled else net
    STATE["optimizer"] = torch.optim.AdamW(net.parameters(), lr=4e-4, fused=True)
    STATE["average"] = [p.detach().clone() for p in net.parameters()]


def network(x, t):
    """The net's output, in float32."""
    torch.compiler.cudagraph_mark_step_begin()
    with torch.autocast(STATE["device"], STATE["dtype"], enabled=STATE["dtype"] != torch.float32):
        return STATE["run"](x, t).sample.float()


def placed(x):
    """`x` on the device, in the layout."""
    return x.to(STATE["device"], non_blocking=True, memory_format=STATE["memory_format"])


def now():
    """The time when all that was asked for is done."""
    if STATE["device"] == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train(steps, accumulation=1):
    """Seconds of so many training steps, after one that is not counted: a process that lay idle is slow at first."""
    train_step(accumulation)
    began = now()
    for _ in range(steps):
        train_step(accumulation)
    return now() - began


def train_step(accumulation):
    """One optimizer step of so many micro-batches."""
    net, scheduler = STATE["net"], STATE["scheduler"]
    for _ in range(accumulation):
        x0 = placed(STATE["image"])
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        loss = functional.mse_loss(network(scheduler.add_noise(x0, eps, t), t), eps)
        (loss / accumulation).backward()
    STATE["optimizer"].step()
    STATE["optimizer"].zero_grad()
    with torch.no_grad():
        torch._foreach_lerp_(STATE["average"], list(net.parameters()), 1e-3)


@torch.inference_mode()
def forward(times):
    """Seconds of so many passes, after one that is not counted."""
    x = placed(STATE["image"])
    t = torch.full((len(x),), 500, device=x.device)
    network(x, t)
    began = now()
    for _ in range(times):
        network(x, t)
    return now() - began


@torch.inference_mode()
def sample(steps, count, sampler="ddim"):
    """Seconds of drawing so many pictures."""
    config = STATE["net"].config
    scheduler = SCHEDULERS[sampler]()
    scheduler.set_timesteps(steps)
    began = now()
    x = placed(torch.randn(count, config.in_channels, config.sample_size, config.sample_size))
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, torch.full((count,), t, device=x.device)), t, x).prev_sample
    x.cpu()
    return now() - began


def peak():
    """The most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    asked = versions, load, use, train, forward, sample, peak
    serve({function.__name__: function for function in asked})
