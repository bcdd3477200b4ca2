"""Options of `python -m ddpm_jax.evaluate`."""

import dataclasses
from pathlib import Path

from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check, check_seed
from ddpm_jax.evaluation.features import check_features
from ddpm_jax.evaluation.measures import DEFAULT, MIN_IMAGES, Measure

DEFAULT_NUM = 10_000
NETWORKS = {"bits", "ode_bits", "loss", "speed"}
"""The measures that need a network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchedRunOptions):
    """Measure a network, `--ckpt DIR`, or images, `--samples A --against B`."""

    measures: tuple[Measure, ...] = DEFAULT
    """Numbers to print: bits and ode_bits are bits per dimension by the variational bound and by
    the probability-flow ODE, loss is the training loss by bands of t, speed is images per second.
    """
    num: int | None = None
    """Number of samples; None for 10,000, or for all of --samples."""
    seeds: int = 1
    """Number of sets of samples, with the seeds --seed, --seed + 1, ..., to show the spread."""
    bits_num: int = 256
    """Number of reference images for bits, ode_bits and loss."""
    variance: Variance | None = None
    """Variance of the reverse step for bits and ode_bits; None for the objective's."""
    features: str = "pixels"
    """Vectors in which images are compared: a module of ddpm_jax/evaluation/features."""
    samples: Path | None = None
    """Samples that are there: a folder of images, or an .npz with `images`. Needs --against."""
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
    """JSON files to set beside each other. Numbers that were made differently are refused."""
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
            f"--out {self.out} is no name of a JSON file: end it in .json.",
        )
        check(len(self.compare) != 1, "--compare needs at least two files: give another one.")
        check(
            not self.compare or (self.samples is None and self.against is None),
            "--compare reads results that are there: leave out --samples and --against.",
        )

    def check_for_samples(self) -> None:
        """Raise ValueError for options that do not fit `--samples`."""
        check(self.against is not None, "--samples needs reference images: give --against.")
        networks = NETWORKS & set(self.measures)
        check(
            not networks,
            f"{' and '.join(sorted(networks))} needs a network: give --ckpt, or other --measures.",
        )
        check(not self.loss, "--loss needs a run: give --ckpt, or leave out --loss.")
        check(self.seeds == 1, "--seeds draws samples, and those of --samples are there: leave it.")

    def check_for_checkpoint(self) -> None:
        """Raise ValueError for options that do not fit `--ckpt`."""
        check(
            self.samples is None and not self.compare,
            "--ckpt draws its samples: leave out --samples and --compare, or --ckpt.",
        )

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
    def measures_network(self) -> bool:
        """Whether a measure needs `--bits-num` reference images."""
        return bool({"bits", "ode_bits", "loss"} & set(self.measures))
