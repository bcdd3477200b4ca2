"""Compare two networks of the tutorials in PyTorch with ours.

    python tests/parity/tutorials.py [--quick]    # needs the extra `parity`

The ConvBlock U-Net (33,260,417 parameters) and BasicUNet (309,057) are written here in PyTorch from
their descriptions. Our networks read their random weights. There are four comparisons, the last one
only for the ConvBlock U-Net:

- The outputs differ by at most 5e-6 of the largest output.
- The gradients of the loss differ by at most 1e-4 of the largest gradient.
- The losses of 100 training steps are at most as far from PyTorch in float64 as PyTorch in float32
  is. Rounding in PyTorch depends on the number of threads and on the library that convolves, so the
  bound is the largest distance of four float32 runs: with 1, 2 and 4 threads, and without oneDNN.
  Adam is accurate to float32 precision (`exact_adam`). A line without a bound shows our losses with
  optax's own Adam.
- The images after 1,000 sampling steps with variance beta, in which x is clamped after each step
  and both sides add the same noise, differ by at most 1/255.

The exit status is 1 if a comparison is over its bound. `--quick` takes 10 training steps and 50
sampling steps.
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from exact_adam import exact_adamw
from jax.tree_util import Partial
from torch import nn

from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, q_sample
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.pretrained.conv_unet_weights import load_conv_unet
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm
from ddpm_jax.training.step import init_state, make_train_step

FORWARD_BOUND = 5e-6
GRADIENT_BOUND = 1e-4
CHAIN_BOUND = 2 / 255  # one level of 255, in [-1, 1]
BATCH = 4
SCHEDULE = from_betas(linear_betas(1000))
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


class TimeEmbedding(nn.Module):
    """Sines and cosines of t 10000^(-i/half), interleaved."""

    def __init__(self, size):
        super().__init__()
        exponents = -torch.arange(size // 2, dtype=torch.float64) / (size // 2)
        self.register_buffer("frequencies", (10000.0**exponents).float())

    def forward(self, t):
        angles = t[:, None] * self.frequencies[None]  # (b, size / 2)
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (b, size)


class ConvBlock(nn.Module):
    """conv, norm, SiLU, + SiLU(linear(time)), conv, norm, SiLU, + shortcut."""

    def __init__(self, channels_in, channels, time_size):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(32, channels)
        self.time = nn.Linear(time_size, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, channels)
        same = channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x, time):
        silu = nn.functional.silu
        h = silu(self.norm1(self.conv1(x))) + silu(self.time(time))[:, :, None, None]
        return silu(self.norm2(self.conv2(h))) + self.shortcut(x)


class ConvBlockUNet(nn.Module):
    """Five levels of ConvBlocks, max pooling down, transposed convolutions up."""

    def __init__(self, channels=1, widths=(64, 128, 256, 512, 1024), time_size=256):
        super().__init__()
        self.time = nn.Sequential(
            TimeEmbedding(time_size), nn.Linear(time_size, time_size), nn.ReLU()
        )
        ins = (channels, *widths[:-1])
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))  # (1024, 512), ...
        self.down = nn.ModuleList(
            ConvBlock(i, o, time_size) for i, o in zip(ins, widths, strict=True)
        )
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
        self.up = nn.ModuleList(ConvBlock(i, o, time_size) for i, o in pairs)
        self.output = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x, t):
        time = self.time(t)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x, time)
            if i < len(self.down) - 1:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([skips.pop(), enlarge(x)], dim=1), time)
        return self.output(x)


class TorchBasicUNet(nn.Module):
    """Six 5x5 convolutions with SiLU, max pooling, nearest upsampling, additive skips."""

    def __init__(self):
        super().__init__()
        pairs = ((1, 32), (32, 64), (64, 64), (64, 64), (64, 32), (32, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 5, padding=2) for i, o in pairs)

    def forward(self, x, t):
        skips = []
        for i, convolution in enumerate(self.convolutions):
            if i > 3:
                x = nn.functional.interpolate(x, scale_factor=2) + skips.pop()
            x = nn.functional.silu(convolution(x))
            if i < 2:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        return x


def basic_params(model):
    """The parameters of a TorchBasicUNet as ours."""
    names = [f"{way}_{i}" for way in ("down", "up") for i in range(3)]
    return {
        name: {
            "kernel": convolution.weight.detach().numpy().transpose(2, 3, 1, 0),
            "bias": convolution.bias.detach().numpy(),
        }
        for name, convolution in zip(names, model.convolutions, strict=True)
    }


def read_conv_unet(model):
    """Our network and parameters, read from the file of the model's state dict."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "CIFAR_model.pt"
        torch.save(model.state_dict(), path)
        spec, params = load_conv_unet(path)
    return spec.model, params


def to_nchw(array, dtype=torch.float32):
    return torch.tensor(np.asarray(array).transpose(0, 3, 1, 2)).to(dtype)


def batches(image_size, channels, steps):
    """Each step's smooth images in [-1, 1], timesteps and noise."""
    rng = np.random.default_rng(0)
    k = np.arange(4)
    waves = np.cos(np.pi * k * (np.arange(image_size)[:, None] + 0.5) / image_size)  # (size, 4)
    weights = rng.normal(size=(steps, BATCH, 4, 4, channels)) / (1 + k[:, None, None] + k[:, None])
    x0 = np.tanh(np.einsum("yk,xl,sbklc->sbyxc", waves, waves, weights)).astype(np.float32)
    t = rng.integers(0, 1000, (steps, BATCH)).astype(np.int32)
    eps = rng.normal(size=x0.shape).astype(np.float32)
    return list(zip(x0, t, eps, strict=True))


def train_torch(model, data, dtype, threads=2, onednn=True):
    """The loss of each step of Adam on the mean squared error of eps, and step 1's gradients."""
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn
    model = copy.deepcopy(model).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    grads = []
    for x0, t, eps in data:
        x0, eps = to_nchw(x0, dtype), to_nchw(eps, dtype)
        t = torch.tensor(t)
        alpha_bar = ALPHA_BAR[t].to(dtype)[:, None, None, None]
        xt = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        loss = nn.functional.mse_loss(model(xt, t.to(dtype)), eps)
        optimizer.zero_grad()
        loss.backward()
        grads = grads or [parameter.grad.numpy().copy() for parameter in model.parameters()]
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), grads


def train_jax(model, params, data, tx):
    """The losses of our training step with the optimizer `tx`, on the same batches."""

    def loss(params, keys, batch):
        xt = q_sample(SCHEDULE, batch["image"], batch["t"], batch["eps"])
        return jnp.mean((model.apply(params, xt, batch["t"]) - batch["eps"]) ** 2, (1, 2, 3))

    step = jax.jit(make_train_step(loss, tx))
    state = init_state(params, tx)
    losses = []
    for x0, t, eps in data:
        batch = {"image": x0, "t": jnp.asarray(t), "eps": eps, "key": None}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


def gradients(model, params, batch):
    """The gradients of the first step's loss, as a tree like the parameters."""
    x0, t, eps = batch

    def loss(params):
        xt = q_sample(SCHEDULE, jnp.asarray(x0), jnp.asarray(t), jnp.asarray(eps))
        return jnp.mean((model.apply(params, xt, jnp.asarray(t)) - eps) ** 2)

    return jax.jit(jax.grad(loss))(params)


def torch_gradients_as_ours(torch_model, grads, read):
    """PyTorch's gradients in our tree: stored as parameters, then read as weights are read."""
    carrier = copy.deepcopy(torch_model)
    with torch.no_grad():
        for parameter, grad in zip(carrier.parameters(), grads, strict=True):
            parameter.copy_(torch.tensor(grad))
    return read(carrier)


def chain_torch(model, xT, noises):
    """Sample as the tutorial does: mean of Algorithm 2, sqrt(beta) noise, x clamped every step."""
    x = to_nchw(xT)
    steps = len(noises)
    with torch.no_grad():
        for t in reversed(range(steps)):
            eps_hat = model(x, torch.full((len(x),), float(t)))
            beta, alpha_bar = BETAS[t].float(), ALPHA_BAR[t].float()
            x = (x - beta / (1 - alpha_bar).sqrt() * eps_hat) / (1 - beta).sqrt()
            if t:
                x = x + beta.sqrt() * to_nchw(noises[steps - 1 - t])
            x = x.clamp(-1, 1)
    return x.numpy().transpose(0, 2, 3, 1)


def chain_jax(model, params, keys, xT, grid):
    """Sample with our sampler. Return the final x and the noise of each step."""
    denoise = make_denoiser(SCHEDULE, Partial(model.apply, params), "eps", None)
    sampler = ddpm(variance="fixed_large", clip_sample=1.0)
    step = jax.jit(sampler.step)
    draw = jax.jit(step_noise)
    noises = []
    xt, state = xT, sampler.init(xT)
    for i in range(len(grid.i)):
        row = grid.row(i)
        noises.append(np.asarray(draw(keys, row, xt)))
        xt, state = step(keys, denoise, xt, row, state)
    return np.asarray(xt), noises


def report(name, value, bound):
    """Print one line. Return whether the value is over its bound."""
    over = not value <= bound
    print(f"  {name:44}{value:9.1e}  bound {bound:.1e}{'  OVER' if over else ''}", flush=True)
    return over


def compare(name, torch_model, model, params, read, steps, image_size):
    """Print the first three comparisons of a network. Return how many are over their bounds."""
    print(f"{name}: {model.parameter_count():,} parameters")
    data = batches(image_size, 1, steps)
    x0, t, _ = data[0]
    with torch.no_grad():
        theirs = torch_model(to_nchw(x0), torch.tensor(t).float()).numpy().transpose(0, 2, 3, 1)
    ours = np.asarray(jax.jit(model.apply)(params, jnp.asarray(x0), jnp.asarray(t)))
    forward = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    losses, grads = train_torch(torch_model, data, torch.float32)
    exact, _ = train_torch(torch_model, data, torch.float64)
    our_grads = jax.tree.leaves(gradients(model, params, data[0]))
    their_grads = jax.tree.leaves(torch_gradients_as_ours(torch_model, grads, read)[1])
    largest = max(np.max(np.abs(grad)) for grad in their_grads)
    apart = max(np.max(np.abs(a - b)) for a, b in zip(our_grads, their_grads, strict=True))
    ours_from_exact = [
        np.max(np.abs(train_jax(model, params, data, tx) - exact) / exact)
        for tx in (exact_adamw(1e-4, 0.0), optax.adam(1e-4))
    ]
    runs = [losses]
    for options in ({"threads": 1}, {"threads": 4}, {"onednn": False}):
        runs.append(train_torch(torch_model, data, torch.float32, **options)[0])
    torch_from_exact = max(np.max(np.abs(run - exact) / exact) for run in runs)
    print(f"  losses with optax's Adam, from float64      {ours_from_exact[1]:9.1e}")
    return (
        report("outputs, relative to the largest", forward, FORWARD_BOUND)
        + report("gradients, relative to the largest", apart / largest, GRADIENT_BOUND)
        + report(
            f"losses of {steps} steps, from float64",
            ours_from_exact[0],
            torch_from_exact,
        )
    )


def main():
    """Print all comparisons. Return how many are over their bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, jax {jax.__version__}")
    steps = 10 if quick else 100

    basic = TorchBasicUNet()
    ours = BasicUNet(image_size=28, channels=1)
    read = lambda torch_model: (ours, basic_params(torch_model))  # noqa: E731
    failed = compare("BasicUNet", basic, ours, basic_params(basic), read, steps, 28)

    torch_model = ConvBlockUNet()
    model, params = read_conv_unet(torch_model)
    failed += compare(
        "ConvBlock U-Net", torch_model, model, params, read_conv_unet, steps, model.image_size
    )
    keys = sample_keys(0, jnp.arange(2))
    xT = initial_noise(keys, model.image_shape)
    grid = make_grid(SCHEDULE, spaced(1000, 1000)[-50:] if quick else spaced(1000, 1000))
    end, noises = chain_jax(model, params, keys, xT, grid)
    apart = np.max(np.abs(end - chain_torch(torch_model, xT, noises)))
    failed += report(f"images after {len(noises)} clamped steps", apart, CHAIN_BOUND)
    return failed


if __name__ == "__main__":
    sys.exit(int(main() > 0))
