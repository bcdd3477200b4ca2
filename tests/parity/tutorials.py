"""Compare two networks of the tutorials in PyTorch with ours.

    python tests/parity/tutorials.py [--quick]    # needs the extra `parity`

It takes about 15 minutes of CPU time and 5 GiB of memory.

The ConvBlock U-Net (33,260,417 parameters) and BasicUNet (309,057) are written in PyTorch from
their descriptions (`tutorials_nets`). Our networks read their random weights. There are four
comparisons, the last one only for the ConvBlock U-Net:

- The outputs differ by at most 5e-6 of the largest output.
- The gradients of the loss differ by at most 1e-4 of the largest gradient.
- The losses of 100 training steps are at most as far from PyTorch in float64 as PyTorch in float32
  is. Rounding in PyTorch depends on the number of threads and on the library that convolves, so the
  bound is the largest distance of several float32 runs: with 2, 1 and 4 threads, and without
  oneDNN. A run is left out if an earlier one is as far from float64 as ours. Adam is accurate to
  float32 precision (`exact_adam`). A line without a bound shows our losses of BasicUNet with
  optax's own Adam.
- The image after 1,000 sampling steps with variance beta, in which x is clamped after each step and
  both sides add the same noise, differs by at most 1/255.

The exit status is 1 if a comparison is over its bound. `--quick` takes 10 training steps and 50
sampling steps.
"""

import shared  # before torch

# isort: split
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
from tutorials_nets import ConvBlockUNet, TorchBasicUNet

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
LEARNING_RATE = 1e-4
SCHEDULE = from_betas(linear_betas(1000))
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
FLOAT32_RUNS = {
    "2 threads": {},
    "1 thread": {"threads": 1},
    "4 threads": {"threads": 4},
    "no oneDNN": {"onednn": False},
}


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


def batches(image_size, batch_size, steps):
    """Each step's smooth images in [-1, 1], timesteps and noise."""
    rng = np.random.default_rng(0)
    k = np.arange(4)
    waves = np.cos(np.pi * k * (np.arange(image_size)[:, None] + 0.5) / image_size)  # (size, 4)
    weights = rng.normal(size=(steps, batch_size, 4, 4, 1)) / (1 + k[:, None, None] + k[:, None])
    x0 = np.tanh(np.einsum("yk,xl,sbklc->sbyxc", waves, waves, weights)).astype(np.float32)
    t = rng.integers(0, 1000, (steps, batch_size)).astype(np.int32)
    eps = rng.normal(size=x0.shape).astype(np.float32)
    return list(zip(x0, t, eps, strict=True))


def train_torch(model, data, dtype=torch.float32, threads=2, onednn=True):
    """The loss of each step of Adam on the mean squared error of eps, and step 1's gradients."""
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn
    model = copy.deepcopy(model).to(dtype)
    # The fused form takes a fifth of the time. In float32 the default rounds as users see it.
    fused = dtype == torch.float64
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)
    losses = []
    grads = []
    for x0, t, eps in data:
        x0, eps = to_nchw(x0, dtype), to_nchw(eps, dtype)
        t = torch.tensor(t)
        alpha_bar = ALPHA_BAR[t].to(dtype)[:, None, None, None]
        xt = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        loss = torch.nn.functional.mse_loss(model(xt, t.to(dtype)), eps)
        optimizer.zero_grad()
        loss.backward()
        grads = grads or [parameter.grad.numpy().copy() for parameter in model.parameters()]
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), grads


def train_jax(model, params, data, tx):
    """The losses of our training step on the same batches, and step 1's gradients.

    One program gives both, because XLA takes a minute to compile the ConvBlock U-Net's.
    """

    def loss(params, keys, batch):
        xt = q_sample(SCHEDULE, batch["image"], batch["t"], batch["eps"])
        return jnp.mean((model.apply(params, xt, batch["t"]) - batch["eps"]) ** 2, (1, 2, 3))

    step = jax.jit(make_train_step(loss, tx))
    state = init_state(params, tx)
    losses = []
    grads = None
    keys = sample_keys(0, jnp.arange(len(data[0][0])))  # this loss draws nothing
    for x0, t, eps in data:
        batch = {"image": x0, "t": jnp.asarray(t), "eps": eps, "key": keys}
        state, metrics = step(state, batch)
        if grads is None:
            # Adam's mean starts at 0, so after one step it is 0.1 of the gradient.
            grads = jax.tree.map(lambda mu: mu / 0.1, optax.tree.get(state.opt_state, "mu"))
        losses.append(float(metrics["loss"]))
    return np.array(losses), grads


def torch_gradients_as_ours(torch_model, grads, read):
    """PyTorch's gradients in our tree: stored as parameters, then read as weights are read."""
    carrier = copy.deepcopy(torch_model)
    with torch.no_grad():
        for parameter, grad in zip(carrier.parameters(), grads, strict=True):
            parameter.copy_(torch.tensor(grad))
    return read(carrier)


def chain_torch(model, xT, noises):
    """Sample as the tutorial does: mean of Algorithm 2, sqrt(beta) noise, x clamped every step."""
    torch.set_num_threads(2)
    torch.backends.mkldnn.enabled = True
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
    """Sample with our sampler, one compiled step at a time.

    Return the final x and the noise of each step.
    """
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
        if (i + 1) % 250 == 0:
            shared.print_progress(f"{i + 1} of our sampling steps")
    return np.asarray(xt), noises


def report(name, value, bound):
    """Print one line. Return its figure."""
    figure = shared.Figure(name, float(value), float(bound))
    mark = "  OVER" if figure.over else ""
    print(f"  {name:58}{value:9.1e}  bound {bound:.1e}{mark}", flush=True)
    return figure


def furthest_from(exact, losses):
    """The largest difference of losses from those in float64, relative to the loss."""
    return np.max(np.abs(losses - exact) / exact)


def compare_outputs(name, torch_model, model, params, batch):
    """The figure of the outputs for one batch."""
    x0, t, _ = batch
    with torch.no_grad():
        theirs = torch_model(to_nchw(x0), torch.tensor(t).float()).numpy().transpose(0, 2, 3, 1)
    ours = np.asarray(jax.jit(model.apply)(params, jnp.asarray(x0), jnp.asarray(t)))
    apart = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    return report(f"{name}: outputs, relative to the largest", apart, FORWARD_BOUND)


def compare_gradients(name, ours, theirs):
    """The figure of the gradients, in trees like the parameters."""
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    largest = max(np.max(np.abs(grad)) for grad in theirs)
    # Python's max would hide NaN.
    apart = np.max([np.max(np.abs(a - b)) for a, b in zip(ours, theirs, strict=True)])
    return report(f"{name}: gradients, relative to the largest", apart / largest, GRADIENT_BOUND)


def compare_training(name, torch_model, model, params, read, data):
    """The figures of the gradients and of the losses."""
    losses, grads = train_jax(model, params, data, exact_adamw(LEARNING_RATE, 0.0))
    shared.print_progress(f"{len(data)} of our training steps")
    exact, _ = train_torch(torch_model, data, torch.float64)
    shared.print_progress("PyTorch in float64")
    ours_from_exact = furthest_from(exact, losses)
    torch_from_exact = []
    for run, options in FLOAT32_RUNS.items():
        their_losses, their_grads = train_torch(torch_model, data, **options)
        torch_from_exact.append(furthest_from(exact, their_losses))
        shared.print_progress(f"PyTorch in float32, {run}: {torch_from_exact[-1]:.1e}")
        if run == "2 threads":
            their_grads = torch_gradients_as_ours(torch_model, their_grads, read)[1]
            gradients = compare_gradients(name, grads, their_grads)
        if torch_from_exact[-1] >= ours_from_exact:
            break
    name = f"{name}: losses of {len(data)} steps, from float64"
    return gradients, report(name, ours_from_exact, max(torch_from_exact))


def compare_basic(steps):
    """The figures of BasicUNet.

    With 2 images in a batch, the rounding of the sum that XLA prints as the loss is larger than the
    distance of the training runs: 7.1e-7, of which 2.2e-7 remain if rows are summed first.
    """
    torch_model = TorchBasicUNet()
    model = BasicUNet(image_size=28, channels=1)
    params = basic_params(torch_model)
    read = lambda torch_model: (model, basic_params(torch_model))  # noqa: E731
    print(f"BasicUNet: {model.parameter_count():,} parameters")
    data = batches(28, 4, steps)
    outputs = compare_outputs("BasicUNet", torch_model, model, params, data[0])
    training = compare_training("BasicUNet", torch_model, model, params, read, data)
    losses, _ = train_jax(model, params, data, optax.adam(LEARNING_RATE))
    apart = furthest_from(train_torch(torch_model, data, torch.float64)[0], losses)
    print(f"  losses with optax's own Adam, from float64 {apart:.1e}")
    return outputs, *training


def compare_conv_block(steps, sampling_steps):
    """The figures of the ConvBlock U-Net.

    Its images have 32 pixels: with 16, the coarsest level would have one pixel, which only the
    middle of a 3x3 kernel sees. Two images in a batch show whether rows mix and whether the loss is
    their mean; more take more time. The chain draws one image for the same reason.
    """
    torch_model = ConvBlockUNet()
    model, params = read_conv_unet(torch_model)
    name = "ConvBlock U-Net"
    print(f"{name}: {model.parameter_count():,} parameters")
    data = batches(model.image_size, 2, steps)
    outputs = compare_outputs(name, torch_model, model, params, data[0])
    training = compare_training(name, torch_model, model, params, read_conv_unet, data)
    keys = sample_keys(0, jnp.arange(1))
    xT = initial_noise(keys, model.image_shape)
    grid = make_grid(SCHEDULE, spaced(1000, 1000)[-sampling_steps:])
    end, noises = chain_jax(model, params, keys, xT, grid)
    apart = np.max(np.abs(end - chain_torch(torch_model, xT, noises)))
    chain = report(f"{name}: image after {sampling_steps} clamped steps", apart, CHAIN_BOUND)
    return outputs, *training, chain


def main():
    """Print all comparisons. Return the exit status."""
    parser = shared.make_parser(__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, jax {jax.__version__}")
    steps, sampling_steps = (10, 50) if quick else (100, 1000)
    figures = compare_basic(steps) + compare_conv_block(steps, sampling_steps)
    return shared.conclude("two networks of the tutorials, in PyTorch and here", figures)


if __name__ == "__main__":
    sys.exit(main())
