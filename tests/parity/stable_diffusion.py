"""Compare Stable Diffusion by parts with the installed diffusers and transformers.

    python tests/parity/stable_diffusion.py [SECTION ...]    # needs the extra `parity`

Sections (all by default), each in its own file stable_diffusion_SECTION.py:

tokenizer  ids of 3,000 adversarial texts, in both forms of the files
nets       the outputs, weights and memory of the three networks
programs   size and compile time of the programs of Stable Diffusion 1
attention  the attention maps of words and pixels
pipelines  the images of whole pipelines, 50 steps, from PyTorch's own seeds
emoji      the images of a model of our own, exported and opened by diffusers
"""

import importlib
import sys

SECTIONS = ("tokenizer", "nets", "programs", "attention", "pipelines", "emoji")


def main() -> None:
    failed = []
    for section in sys.argv[1:] or SECTIONS:
        module = importlib.import_module(f"stable_diffusion_{section}")
        print(f"== {section}")
        if not module.compare():
            failed.append(section)
    if failed:
        sys.exit(f"Out of bounds: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
