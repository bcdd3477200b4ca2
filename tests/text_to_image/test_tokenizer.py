"""The tokenizer, compared with ids that transformers' CLIPTokenizer gives for the same files."""

import json
import sys
import warnings

import numpy as np
import pytest
from helpers.refusals import assert_refused
from helpers.text import END, START, tokenizer_files

from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize, word_tokens

# Given by transformers 5.24 for the files of helpers.text.
IDS = {
    "a red heart!": [320, 517, 516, 256],
    "Hello <|endoftext|> b": [512, 75, 75, 334, 520, 321],
    "!! a!b": [0, 256, 320, 256, 321],
    "<|ENDOFTEXT|> x": [
        *(27, 347, 68, 77, 67, 78, 69, 83, 68, 87, 339, 91, 285, 343),
    ],
}
IDS_PADDED_BY_ITS_SIGN = {
    "a red heart!": [320, 517, 516, 0],
    "!! a!b": [0, 0, 320, 0, 321],
    "<|ENDOFTEXT|> x": [520, 343],
}


@pytest.mark.parametrize("whole", [False, True])
def test_ids_are_those_of_transformers_in_both_forms_of_the_files(whole):
    for pad, pad_id, cases in (
        ("<|endoftext|>", END, IDS),
        ("!", 0, IDS_PADDED_BY_ITS_SIGN),
    ):
        tokenizer = make_tokenizer(tokenizer_files(pad, whole))
        ids = tokenize(tokenizer, list(cases))
        assert ids.shape == (len(cases), 77)
        for row, expected in zip(ids.tolist(), cases.values(), strict=True):
            padding = [pad_id] * (75 - len(expected))
            assert row == [START, *expected, END, *padding]


def test_unicode_case_and_spaces_are_normalized():
    tokenizer = make_tokenizer(tokenizer_files())
    for text, same in (("e\u0301", "é"), ("A\u2003RED\n heart ", "a red heart"), ("\u212b", "å")):
        np.testing.assert_array_equal(tokenize(tokenizer, text), tokenize(tokenizer, same))
    digits = tokenize(tokenizer, "12")
    np.testing.assert_array_equal(digits, tokenize(tokenizer, "1 2"))


def test_a_long_prompt_keeps_75_tokens_and_the_warning_names_the_cut_words():
    tokenizer = make_tokenizer(tokenizer_files())
    fits = " ".join(["a"] * 75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = tokenize(tokenizer, fits)
    with pytest.warns(UserWarning, match=r"75 tokens.*cut off: 'Blue hearts'"):
        cut = tokenize(tokenizer, f"{fits} Blue hearts")
    np.testing.assert_array_equal(cut, whole)
    assert cut[0, -1] == END
    # The third token of "blue" is over the limit, so the word is not kept whole.
    with pytest.warns(UserWarning, match="cut off: 'blue'"):
        tokenize(tokenizer, f"{fits[:-4]} blue")


def test_each_word_has_all_its_places_among_the_ids():
    tokenizer = make_tokenizer(tokenizer_files())
    prompt = "A  blue heart, Heart's e\u0301"
    ids = tokenize(tokenizer, prompt)[0]
    places = word_tokens(tokenizer, prompt)
    assert list(places) == ["a", "blue", "heart", ",", "'s", "é"]
    assert places["heart"] == [6, 8]
    assert len(places["blue"]) == 4
    assert sorted(i for found in places.values() for i in found) == list(range(1, 13))
    np.testing.assert_array_equal(ids[places["heart"]], [516, 516])
    for word in ("blue", "'s", "é"):
        own = [id for id in tokenize(tokenizer, word)[0] if id not in (START, END)]
        np.testing.assert_array_equal(ids[places[word]], own)


def test_tokens_that_are_cut_off_have_no_place():
    tokenizer = make_tokenizer(tokenizer_files())._replace(length=5)
    # Two tokens of "blue" are within the three that are kept.
    assert word_tokens(tokenizer, "a blue heart") == {"a": [1], "blue": [2, 3]}
    assert word_tokens(tokenizer, " ") == {}


def test_the_length_is_that_of_the_config():
    files = tokenizer_files()
    for length, expected in ((16, 16), (1e30, 77)):
        config = json.dumps({"model_max_length": length}).encode()
        tokenizer = make_tokenizer(files | {"tokenizer_config.json": config})
        assert tokenize(tokenizer, "a").shape == (1, expected)


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_keep_their_ids(form):
    """Words that textual inversion learned.

    transformers 5.24 gives these ids for the first two forms. It refuses the third, whose other
    settings are placeholders.
    """
    added = {"<cat-toy>": 521, "<dog-toy>": 522}
    files = tokenizer_files(whole=form == "tokenizer.json")
    if form == "added_tokens.json":
        files[form] = json.dumps(added).encode()
    elif form == "tokenizer_config.json":
        decoder = {str(id): {"content": content} for content, id in reversed(added.items())}
        files[form] = json.dumps({"added_tokens_decoder": decoder}).encode()
    else:
        whole = json.loads(files[form])
        whole["added_tokens"] += [{"content": content, "id": id} for content, id in added.items()]
        files[form] = json.dumps(whole).encode()
    tokenizer = make_tokenizer(files)
    assert tokenize(tokenizer, "a <dog-toy> <cat-toy>")[0, :5].tolist() == [
        *(START, 320, 522, 521, END),
    ]


def test_a_padding_token_that_is_nowhere_else_gets_the_next_id():
    tokenizer = make_tokenizer(tokenizer_files(pad="[PAD]", whole=True))
    assert tokenize(tokenizer, "a")[0, -1] == 521


def test_invalid_files_are_refused():
    files = tokenizer_files()

    def make(changes):
        kept = {name: changes.get(name, value) for name, value in files.items()} | changes
        make_tokenizer({name: value for name, value in kept.items() if value is not None})

    cases = [
        ({"vocab.json": None}, "neither tokenizer.json nor vocab.json"),
        ({"merges.txt": None}, "has vocab.json, but no merges.txt"),
        ({"vocab.json": b"{"}, "vocab.json is not valid JSON"),
        (
            {"tokenizer.json": b'{"model": {"vocab": {"a": 1}, "merges": [5]}}'},
            "merges must be pairs",
        ),
        ({"vocab.json": b"[" * 100_000}, "vocab.json is not valid JSON"),
        ({"vocab.json": b"[]"}, "vocab.json does not hold a JSON object"),
        ({"vocab.json": b'{"a": -1}'}, r"must map tokens to ids in \[0, 1048576\)"),
        ({"merges.txt": b"a b c\n"}, "merges must be pairs"),
        ({"merges.txt": b"zz zz\n"}, "files are invalid: "),
        ({"tokenizer.json": b"{}"}, "vocabulary must map tokens"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": 1}}}'}, "merges must be pairs"),
        ({"tokenizer_config.json": b'{"model_max_length": "x"}'}, "model_max_length must be"),
        (
            {"special_tokens_map.json": b'{"pad_token": {}}'},
            "special or added token without content",
        ),
        ({"added_tokens.json": b'{"<x>": 600}'}, "<x> has the id 600, but it would get 521"),
        ({"added_tokens.json": b'{"<x>": "1"}'}, "added tokens must be integers in"),
        ({"tokenizer.json": b'{"added_tokens": [1]}'}, "added tokens must be a list of objects"),
    ]
    assert_refused(make, cases)
    tokenizer = make_tokenizer(files)
    assert_refused(lambda prompts: tokenize(tokenizer, prompts), [([], "must be a text")])


def test_a_missing_library_ends_in_one_line_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'^Prompts need tokenizers .* pip install "ddpm_jax\[t'):
        make_tokenizer({})
