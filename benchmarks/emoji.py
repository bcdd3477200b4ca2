"""Measure a network of the recipe emoji: a run, an export, or the one of the package.

    python benchmarks/emoji.py --ckpt emoji --path twemoji --out emoji-report

Each line of metadata.jsonl in the folder needs a "category" beside "file_name" and "text", as
`twemoji.py` writes it.

- guidance.png: captions of the data and others that recombine their words, drawn at guidance 1, 3
  and 7, two seeds each.
- The accuracy of a small classifier of the data's categories, balanced over the categories (three
  in five images are people, so the plain accuracy says little): on images that were held out of its
  training, on images drawn from their captions, and on images drawn from the other captions. The
  last are easier, because the classifier was trained on the real images of these captions.
- nearest.png: drawn images above the nearest images of the data, and the median distance in pixels,
  relative to that of a held-out image of the data.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from ddpm_jax.cli.arguments import one_line_errors
from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.loading import InMemory
from ddpm_jax.errors import check
from ddpm_jax.evaluation.features import classifier, pixels
from ddpm_jax.evaluation.nearest import nearest, typical_distance
from ddpm_jax.figures import plots
from ddpm_jax.pretrained.stable_diffusion import load_stable_diffusion
from ddpm_jax.runs.initial_weights import with_pretrained_network
from ddpm_jax.runs.sources import RunSource, open_checkpoint
from ddpm_jax.runs.text_model import open_text_model
from ddpm_jax.text_to_image.draw import draw_images
from ddpm_jax.text_to_image.request import Request

SEEN = ("blue heart", "slice of pizza", "japan flag", "dog face", "rocket", "grinning face")
RECOMBINED = (
    "red heart",
    "green pizza",
    "blue dog face",
    "red rocket",
    "yellow cat",
    "purple car",
    "heart flag",
)
SCALES = (1.0, 3.0, 7.0)
SEEDS = 2
TIMES = 400
"""Images of each category in the training of the classifier, most of them several times."""
BATCH = 64


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="directory of a run, a folder, or emoji")
    parser.add_argument("--path", type=Path, required=True, help="the folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--num", type=int, default=20, help="drawn images per category")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the classifier and its split")
    options = parser.parse_args()
    name, config, model = load(options.ckpt)
    data = dataclasses.replace(config.data, path=str(options.path))
    images = dataclasses.replace(config, data=data).load_images()
    originals = images.read(np.arange(len(images)))["image"]
    print(f"{name}, {len(originals):,} images")

    def draw(prompts, scale):
        sampling = model.sampling.override(steps=options.steps, guidance_scale=scale)
        return draw_images(model, Request(prompts=prompts), sampling, batch_size=BATCH)

    options.out.mkdir(parents=True, exist_ok=True)
    draw_guidance(draw, set(images.captions), options.out / "guidance.png")
    categories = read_categories(options.path, images.captions)
    drawn = measure_categories(draw, originals, images.captions, categories, options)
    show_nearest(drawn, originals, options.out / "nearest.png")


def load(ckpt):
    """The name, the config and the averaged model of a run, or those of a folder."""
    source = open_checkpoint(ckpt)
    if isinstance(source, RunSource):
        name = f"{source.folder}, step {source.step}"
        return name, source.config, open_text_model(source, source.params("ema"))
    config = with_pretrained_network(load_recipe("emoji"), ckpt)
    return ckpt, config, load_stable_diffusion(ckpt)


def draw_guidance(draw, captions, path):
    """Draw each caption at each guidance scale, and say which captions the data have."""
    prompts = [*SEEN, *RECOMBINED]
    wrong = [*(set(SEEN) - captions), *(set(RECOMBINED) & captions)]
    print(f"captions in the wrong list: {', '.join(wrong) or 'none'}")
    repeated = [prompt for prompt in prompts for _ in range(SEEDS)]
    by_scale = np.stack([draw(repeated, scale) for scale in SCALES])  # (scales, n, h, w, 3)
    shape = by_scale.shape[2:]
    by_prompt = by_scale.reshape(len(SCALES), len(prompts), SEEDS, *shape).swapaxes(0, 1)
    rows = [
        (prompt, images.reshape(-1, *shape))
        for prompt, images in zip(prompts, by_prompt, strict=True)
    ]
    titles = [f"{scale:g}" for scale in SCALES for _ in range(SEEDS)]
    plots.labelled_rows(rows, path, titles)
    print(path)


def read_categories(folder, captions):
    """The category of each image, by its caption."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    category = {record["text"]: record.get("category") for record in map(json.loads, lines)}
    check(
        None not in category.values(),
        f"{folder}/metadata.jsonl has lines without a category: write it by twemoji.py.",
    )
    return np.array([category[caption] for caption in captions])


def measure_categories(draw, originals, captions, categories, options):
    """Print the accuracy of a classifier on real and on drawn images. Return the drawn images."""
    names, labels = np.unique(categories, return_inverse=True)
    num = options.num
    rng = np.random.RandomState(options.seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in range(len(names))]
    counts = np.array([max(len(rows) // 10, 1) for rows in shuffled])
    held_out = [rows[:count] for rows, count in zip(shuffled, counts, strict=True)]
    others = [rows[count:] for rows, count in zip(shuffled, counts, strict=True)]
    rows = rng.permutation(np.concatenate([rng.choice(rows, TIMES) for rows in others]))
    training_set = InMemory(originals[rows], labels[rows].astype(np.int32))
    layers = classifier.train(training_set, seed=options.seed)

    def hits(images, true_labels):
        """For each category, how many of its images the classifier recognises."""
        seen = classifier.classify(layers, images)
        return np.array([np.sum(seen[true_labels == i] == i) for i in range(len(names))])

    rows = np.concatenate(held_out)
    columns = [(hits(originals[rows], labels[rows]), counts)]
    drawn = []
    for captioned in ([np.resize(r, num) for r in held_out], [rng.choice(r, num) for r in others]):
        rows = np.concatenate(captioned)
        images = draw([captions[row] for row in rows], options.guidance_scale)
        columns.append((hits(images, labels[rows]), np.full(len(names), num)))
        drawn.append(images)
    print_row("", ["real, held out", "drawn, captions held out", "drawn, other captions"])
    for i, name in enumerate(names):
        print_row(name, [f"{found[i] / of[i]:.0%} of {of[i]:>3}" for found, of in columns])
    print(f"balanced accuracy, drawn at guidance {options.guidance_scale:g}:")
    for least in sorted({1, min(5, counts.max())}):
        known = counts >= least
        pairs = [balanced(found[known], of[known]) for found, of in columns]
        cells = [f"{accuracy:.1%} +- {error:.1%}" for accuracy, error in pairs]
        print_row(f"{least} or more held out", cells)
    return np.concatenate(drawn)


def print_row(title, cells):
    """Print one row of the table."""
    print(f"{title:<20}" + "".join(f"{cell:>26}" for cell in cells))


def balanced(hits, counts):
    """The mean accuracy of categories, and its standard error from the number of images."""
    # With one hit and one miss added, a category of one image has an error too.
    accuracy = (hits + 1) / (counts + 2)
    variance = accuracy * (1 - accuracy) / counts
    return np.mean(hits / counts), np.sqrt(np.sum(variance)) / len(hits)


def show_nearest(drawn, images, path):
    """Print the nearest ratio, and draw images above the nearest of the data."""
    reference, vectors = map(pixels.pixels, (images, drawn))
    found = nearest(vectors, reference)
    relative = found.distances / typical_distance(reference, len(reference))
    print(
        f"nearest ratio {np.median(relative):.2f}, at least {np.min(relative):.2f}; "
        f"{np.sum(relative < 0.1)} of {len(relative):,} are below 0.1"
    )
    rows = np.linspace(0, len(drawn) - 1, 20).astype(int)
    titles = [f"{relative[row]:.2f}" for row in rows]
    rows_of_images = [("drawn", drawn[rows]), ("nearest", images[found.indices[rows]])]
    plots.labelled_rows(rows_of_images, path, titles)
    print(path)


if __name__ == "__main__":
    with one_line_errors(debug=False):
        main()
