"""Ids of adversarial texts, beside transformers' CLIPTokenizer."""

import json
import random
import tempfile
import warnings
from pathlib import Path

import transformers

from ddpm_jax.pretrained.stable_diffusion import read_tokenizer_files
from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize

NUM_TEXTS = 3000
MERGES = ["h e", "r e</w>", "a r", "he ar", "hear t</w>", "r ed</w>", "e d</w>"]
PIECES = [
    *(
        "a red heart",
        "Hello",
        "it's",
        "don't",
        "WE'VE",
        "I'll",
        "!",
        "!!",
        "…",
        "“quotes”",
        "&amp;",
    ),
    *("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|Startoftext|>", "<|endof text|>"),
    *(
        "<",
        "|>",
        "\t",
        "\n",
        "\r\n",
        "  ",
        "\u00a0",
        "\u2003",
        "\u200b",
        "\ufeff",
        "\u0000",
        "\x1f",
    ),
    *(
        "é",
        "e\u0301",
        "Å",
        "\u212b",
        "İ",
        "ß",
        "ﬁ",
        "ＡＢＣ",
        "１２",
        "½",
        "Ⅷ",
        "२३",
        "中文",
        "日本語",
    ),
    *(
        "한국어",
        "한",
        "العربية",
        "שלום",
        "ไทย",
        "नमस्ते",
        "👨‍👩‍👧",
        "❤️",
        "🇩🇪",
        "\U0001f600",
        "1234567",
    ),
    *(
        "3.14",
        "foo_bar",
        "C++",
        "#tag",
        "@you",
        "http://a.b/?c=d",
        "(a:1.2)",
        "[b]",
        "-",
        "--",
        "''",
    ),
    *(
        "\ud7ff",
        "\ue000",
        "\ufffd",
        "\U0010ffff",
        "x" * 90,
        "Σ",
        "ς",
        "ΑΣ",
        "ǅ",
        "\u0345",
        "'S",
        "’s",
    ),
]


def _vocabulary() -> dict[str, int]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged]
    return {token: id for id, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write the files of a tokenizer as hub repositories have them."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": f"<|{name}oftext|>", **flags} for name in ("start", "end"))
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _texts() -> list[str]:
    rng = random.Random(0)
    texts = ["", " ", *PIECES]
    while len(texts) < NUM_TEXTS:
        if rng.random() < 0.3:
            points = [rng.randrange(0x110000) for _ in range(rng.randint(1, 40))]
            texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
        else:
            separator = rng.choice(["", " ", "  ", ","])
            texts.append(separator.join(rng.choices(PIECES, k=rng.randint(1, 12))))
    return texts


def compare() -> tuple[list, int]:
    """Print how many texts get equal ids. Return no figure, and the number of the others."""
    warnings.simplefilter("ignore")
    texts = _texts()
    compared = 0
    equal = 0
    for pad in ("<|endoftext|>", "!"):
        with tempfile.TemporaryDirectory() as scratch:
            hub = Path(scratch) / "hub"
            saved = Path(scratch) / "saved"
            write_tokenizer(hub, pad)
            transformers.CLIPTokenizer.from_pretrained(hub).save_pretrained(saved)
            for folder in (hub, saved):
                theirs = transformers.CLIPTokenizer.from_pretrained(folder)
                files = read_tokenizer_files(folder)
                ours = make_tokenizer(files)
                expected = theirs(texts, padding="max_length", max_length=77, truncation=True)
                ids = tokenize(ours, texts).tolist()
                same = sum(map(list.__eq__, ids, expected.input_ids))
                print(f"pad {pad:14} {', '.join(files):66} {same} of {len(texts)} equal")
                compared += len(texts)
                equal += same
    print(f"ids of texts: {equal} of {compared} equal, and all must be")
    return [], compared - equal
