"""The torch side of bench.py: diffusers' UNet2DModel trained and sampled as its own scripts do, as fast as it goes.

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

STATE = {}


def versions():
    """What the figures are of."""
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads()}


def load(folder, batch_size):
    """A net in the layout of diffusers, its optimizer, its average, and a batch."""
    net = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    STATE.clear()
    STATE.update(net=net, run=net, batch_size=batch_size, memory_format=torch.contiguous_format)
    STATE["average"] = [p.detach().clone() for p in net.parameters()]
    STATE["scheduler"] = diffusers.DDPMScheduler()
    image = torch.rand(batch_size, net.config.in_channels, net.config.sample_size, net.config.sample_size) * 2 - 1
    STATE["image"] = image


def use(compiled, channels_last):
    """Changes over to compiled or eager code, and to the layout."""
    torch.compiler.reset()
    STATE["memory_format"] = torch.channels_last if channels_last else torch.contiguous_format
    net = STATE["net"].to(memory_format=STATE["memory_format"])
    STATE["run"] = torch.compile(net) if compiled else net
    STATE["optimizer"] = torch.optim.AdamW(net.parameters(), lr=4e-4, fused=True)


def train(steps, accumulation=1):
    """Seconds of so many training steps."""
    net, run, scheduler = STATE["net"], STATE["run"], STATE["scheduler"]
    began = time.perf_counter()
    for _ in range(steps):
        for _ in range(accumulation):
            x0 = STATE["image"].to(memory_format=STATE["memory_format"])
            eps = torch.randn_like(x0)
            t = torch.randint(0, 1000, (len(x0),))
            loss = functional.mse_loss(run(scheduler.add_noise(x0, eps, t), t).sample, eps)
            (loss / accumulation).backward()
        STATE["optimizer"].step()
        STATE["optimizer"].zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(STATE["average"], list(net.parameters()), 1e-3)
    return time.perf_counter() - began


@torch.inference_mode()
def forward(times):
    """Seconds of so many passes."""
    x = STATE["image"].to(memory_format=STATE["memory_format"])
    t = torch.full((len(x),), 500)
    began = time.perf_counter()
    for _ in range(times):
        STATE["run"](x, t)
    return time.perf_counter() - began


@torch.inference_mode()
def sample(steps, count):
    """Seconds of drawing so many pictures by DDIM."""
    config = STATE["net"].config
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    began = time.perf_counter()
    x = torch.randn(count, config.in_channels, config.sample_size, config.sample_size)
    x = x.to(memory_format=STATE["memory_format"])
    for t in scheduler.timesteps:
        x = scheduler.step(STATE["run"](x, t).sample, t, x).prev_sample
    return time.perf_counter() - began


def peak():
    """The most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve({function.__name__: function for function in (versions, load, use, train, forward, sample, peak)})
