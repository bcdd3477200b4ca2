"""Options of `python -m ddpm_jax.evaluate`."""

import dataclasses
from pathlib import Path
from typing import get_args

from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check, check_seed
from ddpm_jax.evaluation.features import check_features
from ddpm_jax.evaluation.measures import DEFAULT, MIN_IMAGES, Measure, compares_images

DEFAULT_NUM = 10_000
NETWORKS = {"bits", "ode_bits", "loss", "speed"}
"""The measures that need a network."""
ALWAYS_USED = {"batch_size", "platform", "compilation_cache", "debug"}
USED = {
    "--samples": {"samples", "against", "split", "num", "measures", "features", "out"},
    "--compare": {"compare", "may_differ"},
    "--loss": {"loss", "out"},
}
"""{option: the options that have an effect beside it, with those always used}."""
NOT_OF_NETWORKS = {"samples", "compare", "may_differ"}
USED_BY_MEASURES = (
    ({"num", "seeds", "features"}, {"frechet", "kid", "precision_recall", "nearest"}),
    ({"bits_num"}, {"bits", "ode_bits", "loss"}),
    ({"variance"}, {"bits", "ode_bits"}),
    ({"against", "split", "seed"}, set(get_args(Measure)) - {"speed"}),
)
"""Options of a network, with the measures that use them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchedRunOptions):
    """Measure a network, `--ckpt DIR`, or images, `--samples A --against B`.

    DIR is what sample.py takes. `--ckpt DIR --help` also lists the settings of sampling, such as
    `--sampler` and `--steps`, with the network's own as defaults.
    """

    measures: tuple[Measure, ...] = DEFAULT
    """Numbers to print. frechet, kid, precision_recall: samples beside the reference, by features;
    nearest: whether samples are copies; bits, ode_bits: bits per dimension, by the variational
    bound or the probability-flow ODE; loss: the training loss by bands of t; speed: images per
    second."""
    num: int | None = None
    """Number of samples; None for 10,000, or for all of --samples."""
    seeds: int = 1
    """Number of sets of samples, with the seeds --seed, --seed + 1, ..., to show the spread."""
    bits_num: int = 256
    """Number of reference images for bits, ode_bits and loss."""
    variance: Variance | None = None
    """Variance of the reverse step for bits and ode_bits; None for the objective's."""
    features: str = "pixels"
    """Vectors in which images are compared: pixels, or those of a network: efficientnet, inception,
    or a classifier that is trained on the data first (docs/evaluation.md)."""
    samples: Path | None = None
    """Existing samples: a folder of images, or an .npz with `images`. Needs --against."""
    against: Path | None = None
    """Reference images, a folder or an .npz with `images`; None for the data of the run."""
    split: str | None = None
    """Split of the reference, such as test; None for the recipe's. Not all data has splits."""
    out: Path | None = None
    """JSON file to write, with pictures beside it; None for evaluation.json in the run's directory,
    and for none with --samples."""
    loss: bool = False
    """Only compare the losses that the run has logged with those of its recipe, by bands of t."""
    compare: tuple[Path, ...] = ()
    """JSON files to compare. Numbers computed with different settings are refused."""
    may_differ: tuple[str, ...] = ()
    """Conditions that --compare may find different, such as n or sampling.steps."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.num is None or self.num >= MIN_IMAGES,
            f"--num must be at least {MIN_IMAGES}, not {self.num}.",
        )
        check(self.seeds >= 1, f"--seeds must be at least 1, not {self.seeds}.")
        check_seed(self.seed + self.seeds - 1, "The last seed")
        check(
            self.bits_num >= 2,
            f"--bits-num must be at least 2, for a standard error, not {self.bits_num}.",
        )
        check(bool(self.measures), "--measures names no measure: give one, or leave it out.")
        check_features(self.features)
        check(
            self.out is None or self.out.suffix == ".json",
            f"--out must end in .json, not {self.out}.",
        )
        check(len(self.compare) != 1, "--compare needs at least two files: give another one.")

    def check_for_samples(self) -> None:
        """Raise ValueError for options that do not fit `--samples`."""
        check(self.against is not None, "--samples needs reference images: give --against.")
        networks = NETWORKS & set(self.measures)
        check(
            not networks,
            f"These measures need a network, {', '.join(sorted(networks))}: give --ckpt, or other "
            "--measures.",
        )
        self.check_used("--samples", USED["--samples"])

    def check_for_checkpoint(self) -> None:
        """Raise ValueError for options that do not fit `--ckpt`."""
        names = {field.name for field in dataclasses.fields(EvaluateOptions)}
        self.check_used("--ckpt", names - NOT_OF_NETWORKS)
        if self.loss:
            self.check_used("--loss", USED["--loss"])
            return
        of_other_measures = set().union(
            *(options for options, measures in USED_BY_MEASURES if not measures & {*self.measures})
        )
        self.check_used(f"--measures {' '.join(self.measures)}", names - of_other_measures)

    def check_used(self, option: str, used: set[str]) -> None:
        """Raise ValueError for other options than those `used` beside this one."""
        unused = [
            f"--{field.name.replace('_', '-')}"
            for field in dataclasses.fields(EvaluateOptions)
            if getattr(self, field.name) != field.default and field.name not in used | ALWAYS_USED
        ]
        flags = ", ".join(unused)
        check(not unused, f"{option} does not use {flags}: leave out {flags}.")

    def check_bits_num(self, num_images: int) -> None:
        """Raise ValueError for more images than the reference has."""
        check(
            self.bits_num <= num_images,
            f"--bits-num {self.bits_num} is more than the {num_images:,} images of the data: "
            "lower it.",
        )

    @property
    def num_images(self) -> int:
        """The number of samples to draw for each seed."""
        return self.num or DEFAULT_NUM

    @property
    def sampling_seeds(self) -> range:
        """The seed of each set of samples."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def draws(self) -> bool:
        """Whether images are drawn from a network."""
        return not self.loss and ("speed" in self.measures or compares_images(self.measures))

    @property
    def measures_network(self) -> bool:
        """Whether a measure needs `--bits-num` reference images."""
        return bool({"bits", "ode_bits", "loss"} & set(self.measures))
