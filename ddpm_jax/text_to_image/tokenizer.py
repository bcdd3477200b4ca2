"""CLIP's tokenizer, from the files of a model in the diffusers layout.

The text is normalized to NFC with single spaces and in lower case, split into words, and each word
is split into tokens by byte pair encoding. Equal to transformers' CLIPTokenizer
(`python tests/parity/stable_diffusion.py tokenizer`). It does not repair broken Unicode as OpenAI's
own tokenizer does with ftfy.
"""

import functools
import json
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ddpm_jax.errors import check
from ddpm_jax.pretrained.untrusted_files import brief

VOCABULARY = "vocab.json"
MERGES = "merges.txt"
WHOLE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
DEFAULT_LENGTH = 77
MAX_IDS = 2**20
START = "<|startoftext|>"
END = "<|endoftext|>"
DEFAULT_SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""Words: the two tokens, English endings, runs of letters, single digits, runs of other signs."""


class Tokenizer(NamedTuple):
    """A tokenizer, and the ids around and after the tokens of a prompt."""

    words: Any
    """The `tokenizers.Tokenizer`, without special tokens, padding and truncation."""
    start: int
    end: int
    pad: int
    length: int
    """Number of ids, with start and end."""


class _Model(NamedTuple):
    """The contents of a tokenizer's files."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    special: dict[str, Any]
    added: list[dict[str, Any]]


def make_tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of these files, by name: tokenizer.json, or vocab.json and merges.txt.

    Only vocabulary, merges, special and added tokens and length are read; the other settings of
    tokenizer.json are CLIP's own. Raise ValueError for invalid files, and ImportError without the
    library `tokenizers`.
    """
    library = _library()
    model = _read_model(files)
    try:
        words = _build(library, model)
    except Exception as error:
        raise ValueError(f"The tokenizer's files are invalid: {brief(error)}.") from error
    for token in model.added:
        content = _content(token)
        given = words.token_to_id(content)
        check(
            token.get("id") in (None, given),
            f"The tokenizer's added token {brief(content)} has the id {brief(token.get('id'))}, "
            f"but it would get {given}: list the added tokens of all ids from the vocabulary on.",
        )
    start, end, pad = (
        words.token_to_id(_content(model.special[name]))
        for name in ("bos_token", "eos_token", "pad_token")
    )
    return Tokenizer(words, start, end, pad, _length(_json(files, CONFIG)))


def tokenize(tokenizer: Tokenizer, prompts: str | Sequence[str]) -> Int[np.ndarray, "b length"]:
    """The ids of each prompt: start, at most length - 2 tokens, end, then padding.

    Warn with the words that are cut off.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
    check(bool(prompts) and not wrong, f"A prompt must be a text, not {brief(wrong)}.")
    return np.array([_ids(tokenizer, prompt) for prompt in prompts], np.int32)


def _ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    encoding = tokenizer.words.encode(prompt, add_special_tokens=False)
    room = tokenizer.length - 2
    if len(encoding.ids) > room:
        warnings.warn(
            f"The prompt is longer than {room} tokens, so this is cut off: "
            f"{brief(_cut_words(encoding, prompt, room))!r}.",
            stacklevel=3,
        )
    ids = [tokenizer.start, *encoding.ids[:room], tokenizer.end]
    return ids + [tokenizer.pad] * (tokenizer.length - len(ids))


def word_tokens(tokenizer: Tokenizer, prompt: str) -> dict[str, list[int]]:
    """{word in lower case: positions of its tokens among the ids of `tokenize`}.

    A word that occurs again has the tokens of all its places. Tokens that are cut off are left out.
    """
    # The offsets of the library do not cover the accents that it joins with their letters.
    prompt = unicodedata.normalize("NFC", prompt)
    encoding = tokenizer.words.encode(prompt, add_special_tokens=False)
    places: dict[str, list[int]] = {}
    for i in range(min(len(encoding.ids), tokenizer.length - 2)):
        start, end = encoding.word_to_chars(encoding.word_ids[i])
        # The start is the first id.
        places.setdefault(prompt[start:end].lower(), []).append(i + 1)
    return places


def _cut_words(encoding: Any, prompt: str, room: int) -> str:
    """The rest of the prompt from the first word that is not kept whole."""
    first = room
    while first > 0 and encoding.word_ids[first - 1] == encoding.word_ids[room]:
        first -= 1
    return prompt[encoding.offsets[first][0] :]


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        message = f'Prompts need tokenizers ({error}): run pip install "ddpm_jax[text]".'
        raise ImportError(message) from error
    return tokenizers


def _build(library: ModuleType, model: _Model) -> Any:
    """Build the tokenizer as transformers' CLIPTokenizer does."""
    bpe = library.models.BPE(
        vocab=model.vocabulary,
        merges=model.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        unk_token=_content(model.special["unk_token"]),
    )
    words = _word_splitter(library, bpe)
    words.add_tokens([_added_token(library, token) for token in _added(model)])
    return words


def _word_splitter(library: ModuleType, model: Any) -> Any:
    """A `tokenizers.Tokenizer` that normalizes and splits a text as CLIP does."""
    words = library.Tokenizer(model)
    normalizers = library.normalizers
    words.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(library.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    split = library.pre_tokenizers.Split(library.Regex(WORDS), behavior="removed", invert=True)
    to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.pre_tokenizer = library.pre_tokenizers.Sequence([split, to_bytes])
    return words


@functools.cache
def _empty_splitter() -> Any:
    """The word splitter of a tokenizer without tokens, built once for all texts."""
    library = _library()
    return _word_splitter(library, library.models.BPE())


def split_words(text: str) -> list[str]:
    """The words of a text, as characters that stand for bytes (`byte_alphabet`)."""
    splitter = _empty_splitter()
    normalized = splitter.normalizer.normalize_str(text)
    return [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normalized)]


def byte_alphabet() -> list[str]:
    """The characters that stand for the 256 bytes, sorted."""
    return sorted(_library().pre_tokenizers.ByteLevel.alphabet())


def _added(model: _Model) -> list[Any]:
    """The tokens that are found before the text is split, each once, in the order of their ids.

    A token without an id that is not in the vocabulary comes last, and gets the next id.
    """
    tokens = [*(model.special[name] for name in DEFAULT_SPECIAL), *model.added]
    # If a token is given twice, transformers uses the later one.
    by_content = {_content(token): token for token in tokens}

    def order(token: Any) -> int:
        id = token.get("id") if isinstance(token, dict) else None
        return model.vocabulary.get(_content(token), MAX_IDS) if id is None else id

    return sorted(by_content.values(), key=order)


def _added_token(library: ModuleType, token: Any) -> Any:
    flags = token if isinstance(token, dict) else {}
    names = ("normalized", "lstrip", "rstrip", "single_word")
    options = {name: flags.get(name) is True for name in names}
    return library.AddedToken(_content(token), special=True, **options)


def _read_model(files: Mapping[str, bytes]) -> _Model:
    config = _json(files, CONFIG) | _json(files, SPECIAL_TOKENS)
    special = DEFAULT_SPECIAL | {
        name: config[name] for name in DEFAULT_SPECIAL if config.get(name) is not None
    }
    if WHOLE in files:
        whole = _json(files, WHOLE)
        model = whole.get("model")
        model = model if isinstance(model, dict) else {}
        vocabulary = model.get("vocab")
        merges = model.get("merges")
        added = _with_ids(whole.get("added_tokens") or [])
    else:
        check(VOCABULARY in files, f"The tokenizer has neither {WHOLE} nor {VOCABULARY}.")
        check(MERGES in files, f"The tokenizer has {VOCABULARY}, but no {MERGES}.")
        vocabulary = _json(files, VOCABULARY)
        lines = files[MERGES].decode(errors="replace").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        added = _added_beside(files)
    check(
        all(map(_content, [*special.values(), *added])),
        "The tokenizer has a special or added token without content.",
    )
    return _Model(_checked_vocabulary(vocabulary), _pairs(merges), special, added)


def _added_beside(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The added tokens beside vocab.json: of the configuration, or else of added_tokens.json."""
    decoder = _json(files, CONFIG).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        tokens = [
            {"id": int(id) if id.isdecimal() else None, **token}
            for id, token in decoder.items()
            if isinstance(token, dict)
        ]
    else:
        added = _json(files, ADDED_TOKENS)
        tokens = [{"content": content, "id": id} for content, id in added.items()]
    return _with_ids(tokens)


def _with_ids(tokens: Any) -> list[dict[str, Any]]:
    """Added tokens. Raise ValueError unless they are objects with valid ids or none."""
    valid = isinstance(tokens, list) and all(isinstance(token, dict) for token in tokens)
    check(valid, "The tokenizer's added tokens must be a list of objects.")
    ids = [token["id"] for token in tokens if token.get("id") is not None]
    valid = all(type(id) is int and 0 <= id < MAX_IDS for id in ids)
    check(valid, f"The ids of the tokenizer's added tokens must be integers in [0, {MAX_IDS}).")
    return tokens


def _checked_vocabulary(vocabulary: Any) -> dict[str, int]:
    valid = isinstance(vocabulary, dict) and all(
        type(id) is int and 0 <= id < MAX_IDS for id in vocabulary.values()
    )
    check(valid, f"The tokenizer's vocabulary must map tokens to ids in [0, {MAX_IDS}).")
    return vocabulary


def _pairs(merges: object) -> list[tuple[str, str]]:
    """Merges as pairs, from lines of text or from lists."""
    lists = merges if isinstance(merges, list) else [None]
    parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in lists]
    pairs = [tuple(part) if isinstance(part, list) else () for part in parts]
    valid = all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs)
    check(valid, "The tokenizer's merges must be pairs of tokens.")
    return pairs


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _length(config: Mapping[str, Any]) -> int:
    """The tokenizer's number of ids. A huge one stands for no limit, and means CLIP's 77."""
    length = config.get("model_max_length", DEFAULT_LENGTH)
    valid = isinstance(length, (int, float)) and length >= 3
    check(valid, f"model_max_length must be a number of at least 3, not {brief(length)}.")
    return int(length) if length <= MAX_IDS else DEFAULT_LENGTH


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file; empty if the file does not exist."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {brief(error)}.") from error
    check(isinstance(value, dict), f"{name} does not hold a JSON object.")
    return value
