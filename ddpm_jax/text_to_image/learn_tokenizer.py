"""Learn the files of a CLIP tokenizer from captions: byte pair encoding (Sennrich et al. 2016)."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from ddpm_jax.errors import check
from ddpm_jax.models.text_unet import END_ID, MIN_VOCABULARY, START_ID
from ddpm_jax.text_to_image.tokenizer import (
    CONFIG,
    DEFAULT_SPECIAL,
    END,
    MERGES,
    START,
    VOCABULARY,
    byte_alphabet,
    split_words,
)

END_OF_WORD = "</w>"
Word = tuple[str, ...]


def learn_tokenizer(captions: Iterable[str], vocab_size: int, length: int) -> dict[str, bytes]:
    """The files of a tokenizer of at most `vocab_size` tokens, by name; equal for equal captions.

    The vocabulary is the two tokens around a text, each byte within and at the end of a word, and
    the merged pairs. `length` is the number of ids of a text. Raise ValueError for a vocabulary
    of fewer than `MIN_VOCABULARY` tokens.
    """
    alphabet = byte_alphabet()
    bytes_and_ends = [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]
    room = vocab_size - MIN_VOCABULARY
    check(
        room >= 0,
        f"A vocabulary needs at least {MIN_VOCABULARY} tokens, two special ones and "
        f"{len(bytes_and_ends)} for bytes, not {vocab_size}: raise model.vocab_size.",
    )
    counts = Counter(word for caption in captions for word in split_words(caption))
    words = {(*word[:-1], word[-1] + END_OF_WORD): count for word, count in counts.items()}
    merges = learn_merges(words, room)
    merged = ["".join(pair) for pair in merges]
    specials = sorted([(START_ID, START), (END_ID, END)])
    tokens = [*(token for _, token in specials), *bytes_and_ends, *merged]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **DEFAULT_SPECIAL}
    return {
        VOCABULARY: json.dumps({token: i for i, token in enumerate(tokens)}).encode(),
        MERGES: ("\n".join(lines) + "\n").encode(),
        CONFIG: json.dumps(config, indent=2).encode(),
    }


def learn_merges(words: dict[Word, int], most: int) -> list[tuple[str, str]]:
    """Merge the most frequent pair, ties by order, at most `most` times; return the pairs.

    Stop at pairs that occur once. `words` maps the symbols of each word to its count.
    """
    symbols = [list(word) for word in words]
    weights = list(words.values())
    counts: Counter[tuple[str, str]] = Counter()
    holders = defaultdict(set)
    for i, word in enumerate(symbols):
        for pair in itertools.pairwise(word):
            counts[pair] += weights[i]
            holders[pair].add(i)
    merges: list[tuple[str, str]] = []
    while len(merges) < most and counts:
        pair, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        merges.append(pair)
        for i in holders[pair]:
            _count(symbols[i], -weights[i], counts)
            symbols[i] = _merge(symbols[i], pair)
            _count(symbols[i], weights[i], counts)
            for new in itertools.pairwise(symbols[i]):
                holders[new].add(i)
        counts.pop(pair, None)
    return merges


def _count(word: list[str], weight: int, counts: Counter) -> None:
    for pair in itertools.pairwise(word):
        counts[pair] += weight


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word with each occurrence of the pair joined, from the left."""
    merged: list[str] = []
    i = 0
    while i < len(word):
        joined = tuple(word[i : i + 2]) == pair
        merged.append("".join(pair) if joined else word[i])
        i += 2 if joined else 1
    return merged
