import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.tokenizers import TextTokenizer


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8).filter(lambda texts: any(texts)))
def test_what_is_encoded_is_decoded(texts: list[str]) -> None:
    tokenizer = TextTokenizer.from_corpus(texts)
    tokens = tokenizer.encode(texts)
    assert tokens.shape == (len(texts), max(map(len, texts)) + 2)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == texts
    assert (tokens[:, 0] == tokenizer.begin).all()
    assert ((tokens == tokenizer.end).sum(axis=1) == 1).all()
    assert tokens.max() < tokenizer.size


def test_decoding_stops_at_the_first_end_and_passes_over_padding() -> None:
    tokenizer = TextTokenizer("ab", 3)
    assert tokenizer.decode([[1, 3, 0, 4, 2, 3], [4, 4, 4, 4, 4, 4], [2, 3, 3, 3, 3, 3]]) == [
        "ab",
        "bbbbbb",
        "",
    ]


def test_saved_and_loaded_is_the_same() -> None:
    tokenizer = TextTokenizer.from_corpus(["naïve", "日本"], length=9)
    config = json.loads(json.dumps(tokenizer.config))
    assert TextTokenizer.from_arrays(tokenizer.to_arrays(), config) == tokenizer


def test_errors_name_the_text_and_the_character() -> None:
    tokenizer = TextTokenizer.from_corpus(["one", "two"])
    with pytest.raises(ArgumentError, match=r"texts\[1\] holds 'x', which is not one of 'enotw'"):
        tokenizer.encode(["one", "tox"])
    with pytest.raises(ArgumentError, match=r"texts\[0\] has 4 characters, at most 3 fit"):
        tokenizer.encode(["onee"])
    with pytest.raises(DTypeError, match="texts must be a sequence of strings"):
        tokenizer.encode("one")
    with pytest.raises(ArgumentError, match="tokens holds 8, expected indices from 0 to 7"):
        tokenizer.decode([[8]])
    with pytest.raises(ShapeError, match=r"tokens has shape \(2,\)"):
        tokenizer.decode([1, 2])
    with pytest.raises(ArgumentError, match="texts holds no character"):
        TextTokenizer.from_corpus(["", ""])
    with pytest.raises(ArgumentError, match="characters holds a character twice"):
        TextTokenizer("aa", 2)
    with pytest.raises(DTypeError, match="length must be an integer, not str"):
        TextTokenizer.from_arrays({}, {"characters": "ab", "length": "3"})
    with pytest.raises(ArgumentError, match="config lacks 'length'"):
        TextTokenizer.from_arrays({}, {"characters": "ab"})
