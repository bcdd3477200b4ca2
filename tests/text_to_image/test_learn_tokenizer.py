"""A tokenizer learnt from captions: its merges, its ids, and words it was not shown."""

import json

import pytest

from ddpm_jax.models.text_unet import END_ID, START_ID, TextUNet
from ddpm_jax.text_to_image.learn_tokenizer import learn_merges, learn_tokenizer
from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize

CAPTIONS = ["red heart", "Red  heart", "red hat", "flag: côte"]


def test_merges_are_the_commonest_pairs_in_turn():
    """low x 5, lower x 2, newest x 6, widest x 3: the example of Sennrich et al. 2016."""
    words = {"low_": 5, "lower_": 2, "newest_": 6, "widest_": 3}
    symbols = {(*word[:-2], word[-2] + "_"): count for word, count in words.items()}
    merges = learn_merges(symbols, 5)
    assert merges == [("e", "s"), ("es", "t_"), ("l", "o"), ("e", "w"), ("ew", "est_")]


def test_equal_counts_merge_the_smaller_pair_and_single_ones_stay_apart():
    assert learn_merges({("b", "c"): 2, ("a", "z"): 2, ("x", "y"): 1}, 9) == [
        ("a", "z"),
        ("b", "c"),
    ]


def test_a_pair_that_overlaps_itself_merges_from_the_left():
    assert learn_merges({("a", "a", "a"): 2}, 2) == [("a", "a"), ("aa", "a")]


def test_common_words_become_one_token_between_the_tokens_of_the_network():
    files = learn_tokenizer(CAPTIONS, 600, 16)
    tokenizer = make_tokenizer(files)
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (START_ID, END_ID, END_ID)
    heart, unknown, empty = tokenize(tokenizer, ["RED heart", "zôo", ""])
    assert len(heart) == tokenizer.length == 16
    assert list(heart[[0, 3, 4, 7]]) == [START_ID, END_ID, END_ID, END_ID]
    assert END_ID not in heart[1:3]
    # Its four bytes, because the second letter has two.
    assert len(set(unknown) - {START_ID, END_ID}) == 4
    net = TextUNet(image_size=4, channels=4, max_length=16, label_dropout=0.1)
    assert list(net.unconditional(1)[0]) == list(empty)


def test_equal_captions_give_equal_files_of_the_asked_size():
    files = learn_tokenizer(CAPTIONS, 520, 8)
    assert files == learn_tokenizer(list(CAPTIONS), 520, 8)
    vocabulary = json.loads(files["vocab.json"])
    assert sorted(vocabulary.values()) == list(range(520))
    assert len(files["merges.txt"].splitlines()) == 1 + 520 - 514


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match=r"at least 514 .* not 513: raise model.vocab_size"):
        learn_tokenizer(CAPTIONS, 513, 8)
