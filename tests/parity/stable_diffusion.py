"""Compare Stable Diffusion by parts with the installed diffusers and transformers.

    python tests/parity/stable_diffusion.py [SECTION ...]    # needs the extra `parity`
    python tests/parity/stable_diffusion.py pipelines --pictures FOLDER

It takes about 35 minutes of CPU time, most of it in `nets`.

Sections (all by default), each in its own file stable_diffusion_SECTION.py:

tokenizer  ids of 3,000 adversarial texts, in both forms of the files
nets       the outputs, weights and memory of the three networks
programs   size and compile time of the programs of Stable Diffusion 1
attention  the attention maps of words and pixels
pipelines  the images of whole pipelines, 50 steps, from PyTorch's own seeds; --pictures saves them
           beside diffusers'
emoji      the images of a model of our own, exported and opened by diffusers

The last line names the figure nearest to its bound. The exit status is 1 if one is over.
"""

import importlib
import sys
from pathlib import Path

import shared

SECTIONS = ("tokenizer", "nets", "programs", "attention", "pipelines", "emoji")


def main() -> int:
    parser = shared.make_parser(__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="one PNG per pipeline: diffusers' image, ours, and 10,000 times their difference",
    )
    options = parser.parse_args()
    sections = options.sections or SECTIONS
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        parser.error(f"Unknown section {min(unknown)}: choose from {', '.join(SECTIONS)}.")
    if options.pictures is not None and "pipelines" not in sections:
        parser.error("--pictures is for the section pipelines: name it too.")
    settings = {"pipelines": {"pictures": options.pictures}}
    figures = []
    wrong = 0
    for section in sections:
        module = importlib.import_module(f"stable_diffusion_{section}")
        print(f"== {section}")
        found, failed = module.compare(**settings.get(section, {}))
        figures += found
        wrong += failed
        shared.print_progress(f"{section}: {failed + sum(figure.over for figure in found)} wrong")
    return shared.conclude(f"Stable Diffusion by parts ({', '.join(sections)})", figures, wrong)


if __name__ == "__main__":
    sys.exit(main())
