"""Measure how good a network or a set of samples is, as a table and as JSON.

    python -m ddpm_jax.evaluate --ckpt runs/digits --num 10000 --sampler unipc --steps 20
    python -m ddpm_jax.evaluate --ckpt runs/digits --measures bits ode_bits
    python -m ddpm_jax.evaluate --samples samples.npz --against my_images --out x.json
    python -m ddpm_jax.evaluate --ckpt runs/digits --loss
    python -m ddpm_jax.evaluate --compare a.json b.json

With `--out x.json`, x_nearest.png shows samples next to their nearest reference images, and
x_bits.png the variational bound over t. docs/evaluation.md says what each number means.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ddpm_jax.cli import arguments
from ddpm_jax.cli.evaluate_images import (
    compare_images,
    describe_reference,
    measure_samples,
    prepare_reference,
)
from ddpm_jax.cli.evaluate_loss import compare_loss
from ddpm_jax.cli.evaluate_network import (
    describe_network,
    describe_samples,
    draw,
    measure_network,
    measure_speed,
)
from ddpm_jax.cli.evaluate_options import USED, EvaluateOptions
from ddpm_jax.cli.evaluate_outputs import Part, check_outputs, report
from ddpm_jax.cli.run_options import image_config, named_step, own_remedies
from ddpm_jax.cli.sampling_arguments import default_sampling, describe, parse_with_sampling
from ddpm_jax.cli.text_options import find_pipeline
from ddpm_jax.data import SAME_DATA, DataSource, ImageSet, check_labels, check_values
from ddpm_jax.data.conditions import (
    ConditionedImages,
    given_part,
    load_conditioned,
    with_condition,
    with_condition_values,
)
from ddpm_jax.data.values import LEVELS, Levels, Scales
from ddpm_jax.errors import check
from ddpm_jax.evaluation.image_sets import CROP, read_reference
from ddpm_jax.evaluation.measures import compares_images
from ddpm_jax.evaluation.results import compare, read_result
from ddpm_jax.generation.conditions import check_given_size
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling, check_variance
from ddpm_jax.models import Params
from ddpm_jax.runs.directory import EVALUATION
from ddpm_jax.runs.sources import RunSource, Source, open_checkpoint

PROG = "python -m ddpm_jax.evaluate"
ANY_VALUES = ("loss", "speed")
"""Measures that are defined for other values than 8-bit levels."""
MISSING = (
    "Nothing to measure: give the directory of a run, such as --ckpt runs/digits, or images by "
    "--samples and --against."
)


def main(args: list[str]) -> None:
    """Run the command with these arguments."""
    with own_remedies({"--data.split": "--split"}):
        measure_or_compare(args)


def measure_or_compare(args: list[str]) -> None:
    """Measure what the arguments name, or compare results."""
    ckpt, args = arguments.take_option(args, "--ckpt")
    if ckpt is not None:
        measure_checkpoint(ckpt, args)
        return
    described = describe(EvaluateOptions)
    options = arguments.parse(EvaluateOptions, args, None, f"{PROG} --ckpt DIR", described)
    if options.compare:
        options.check_used("--compare", USED["--compare"])
        results = {str(path): read_result(path) for path in options.compare}
        print(compare(results, options.may_differ))
        return
    check(options.samples is not None, MISSING)
    measure_samples(options)


def measure_checkpoint(ckpt: str, args: list[str]) -> None:
    """Measure the network of `--ckpt`, and the samples that it draws."""
    sampler, args = arguments.take_option(args, "--sampler")
    check(
        find_pipeline(ckpt) is None,
        f"{ckpt} draws from prompts: draw images with sample.py, and give them as --samples.",
    )
    source = open_checkpoint(ckpt, named_step(args))
    if isinstance(source, RunSource):
        image_config(source)
    options, sampling = parse(args, ckpt, source, sampler)
    options.check_for_checkpoint()
    check_variance(source.spec.objective, options.variance)
    if not options.draws:
        check_sampling_left_out(ckpt, source, options, sampling)
    if options.loss:
        compare_loss(source, options.out)
        return
    out = options.out or source.output_folder / EVALUATION
    check_outputs(out)
    check_measures(source.values, options)
    options.set_up_jax(options.num_images)
    spec = dataclasses.replace(source.spec, sampling=sampling)
    params = source.params(options.weights)
    result = describe_network(ckpt, source, params, options)
    with options.explain_oom(spec.model):
        report(result, measure_parts(source, spec, params, options), out)


def measure_parts(
    source: Source, spec: ModelSpec, params: Params, options: EvaluateOptions
) -> Iterator[Part]:
    """Yield the numbers of each measure with its pictures. Only speed needs no reference images.

    Raise ValueError for a reference that does not fit, before anything is drawn.
    """
    if set(options.measures) != {"speed"}:
        images, described = reference_of(source, options)
        if options.measures_network:
            options.check_bits_num(len(images))
        if options.measures_network or isinstance(images, ConditionedImages):
            check_labels(images, spec.model.num_classes, source.classes, is_trained=True)
        yield described, {}
    if compares_images(options.measures):
        reference = prepare_reference(options, images, described["against_images"])
        samples = draw(spec, params, options, images)
        numbers, pictures = compare_images(options, *reference, images, samples)
        yield describe_samples(spec, options) | numbers, pictures
    if "speed" in options.measures:
        yield measure_speed(spec, params, options), {}
    if options.measures_network:
        yield from measure_network(spec, params, options, images)


def check_measures(values: Levels, options: EvaluateOptions) -> None:
    """Raise ValueError for measures of 8-bit images if the run's data has other values."""
    others = [measure for measure in options.measures if measure not in ANY_VALUES]
    check(
        values == LEVELS or not others,
        f"The data of this run ({values.describe()}) has no 8-bit levels, which "
        f"{' '.join(others)} need: give --measures {' '.join(ANY_VALUES)}.",
    )


def parse(
    args: list[str], ckpt: str, source: Source, sampler: str | None
) -> tuple[EvaluateOptions, Sampling]:
    """Parse the options of the command and the settings of sampling, as sample.py does."""
    default = default_sampling(source.spec, sampler)
    return parse_with_sampling(EvaluateOptions, args, default, f"{PROG} --ckpt {ckpt}")


def check_sampling_left_out(
    ckpt: str, source: Source, options: EvaluateOptions, sampling: Sampling
) -> None:
    """Raise ValueError if the command line gave settings of sampling."""
    _, default = parse([], ckpt, source, None)
    option = "--loss" if options.loss else f"--measures {' '.join(options.measures)}"
    check(sampling == default, f"{option} draws nothing: leave out the settings of sampling.")


def reference_of(source: Source, options: EvaluateOptions) -> tuple[ImageSet, dict[str, Any]]:
    """The reference images and the part of a result on them: `--against`, or the run's data.

    Raise ValueError if there are none, for other values than the network's, and for a split that
    the data does not have.
    """
    data = source.config.data if isinstance(source, RunSource) else None
    if options.against is not None:
        shape = source.spec.model.image_shape
        images = read_reference(options.against, shape, options.split, data or CROP)
        name, split = str(options.against), options.split
        if data is not None:
            check(
                given_part(data.condition) is None,
                f"--against gives no {data.condition} that the network is conditioned on: leave it "
                "out.",
            )
            images = with_condition(data, images)
            images = with_condition_values(images, source.condition_values)
    elif data is not None:
        data = with_split(data, options.split)
        size = source.spec.model.image_size, source.spec.model.channels
        images = load_conditioned(data, *size, Scales(source.values, source.condition_values))
        name = data.describe()
        split = getattr(data, "split", None) if data.has_splits else None
    else:
        raise ValueError(
            "This checkpoint does not name its data: give reference images, --against."
        )
    check_given_size(source.spec.model, images, SAME_DATA)
    check_values(images.values, source.values, SAME_DATA)
    return images, describe_reference(images, name, split)


def with_split(data: DataSource, split: str | None) -> DataSource:
    """The data source with another split. Raise ValueError if the data has no splits."""
    if split is None:
        return data
    check(data.has_splits, f"The data has no splits ({data.describe()}): leave out --split.")
    change: dict[str, Any] = {"split": split}
    return dataclasses.replace(data, **change)


if __name__ == "__main__":
    arguments.run(main)
