import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.tokenizers import ImageTokenizer, jitter_images
from sklearn.datasets import load_digits


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)
def test_with_a_code_for_every_patch_nothing_is_lost(
    n: int, rows: int, columns: int, h: int, w: int, colour: bool
) -> None:
    shape = (n, rows * h, columns * w) + ((3,) if colour else ())
    images = np.random.default_rng(n).random(shape, dtype=np.float32)
    codes = n * rows * columns
    tokenizer = ImageTokenizer.fit(images, patch=(h, w), codes=codes, rng=np.random.default_rng(0))
    tokens = tokenizer.encode(images)
    assert tokens.shape == (n, rows * columns)
    assert tokens.dtype == np.int32
    np.testing.assert_allclose(tokenizer.decode(tokens), images, atol=2e-3)


def test_patches_go_left_to_right_then_down() -> None:
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6) / 24
    tokenizer = ImageTokenizer.fit(image, patch=(2, 3), codes=4, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(tokenizer.patches(image)[0] * 24, [
        [0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23],
    ])  # fmt: skip


def test_handwritten_digits_keep_most_of_their_variance_through_rows_of_pixels() -> None:
    images = (load_digits().images / 16).astype(np.float32)
    tokenizer = ImageTokenizer.fit(images[:1400], patch=(1, 8), codes=256, rng=np.random.default_rng(0))
    held_out = images[1400:]
    error = ((tokenizer.decode(tokenizer.encode(held_out)) - held_out) ** 2).mean()
    assert tokenizer.tokens == 8
    assert error < 0.05 * held_out.var()


@pytest.mark.parametrize("levels", [None, (4, 4, 4)])
def test_saved_and_loaded_is_the_same(levels: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((30, 4, 4, 3))
    tokenizer = ImageTokenizer.fit(images, patch=(2, 2), codes=20, levels=levels, rng=rng)
    config = json.loads(json.dumps(tokenizer.config))
    loaded = ImageTokenizer.from_arrays(tokenizer.to_arrays(), config)
    tokens = loaded.encode(images)
    np.testing.assert_array_equal(tokens, tokenizer.encode(images))
    decoded = loaded.decode(tokens)
    np.testing.assert_array_equal(decoded, tokenizer.decode(tokens))
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_errors_name_the_argument() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((5, 8, 8), dtype=np.float32)
    tokenizer = ImageTokenizer.fit(images, patch=(4, 4), codes=5, rng=rng)
    with pytest.raises(ArgumentError, match=r"patch \(3, 4\) does not divide an image of 8 x 8"):
        ImageTokenizer.fit(images, patch=(3, 4), rng=rng)
    with pytest.raises(ShapeError, match=r"images has shape \(5, 8, 9\), expected \(n, 8, 8\)"):
        tokenizer.encode(np.zeros((5, 8, 9), dtype=np.float32))
    with pytest.raises(ShapeError, match=r"images has shape \(8, 8\), expected \(n, H, W\)"):
        tokenizer.encode(images[0])
    with pytest.raises(DTypeError, match="images has dtype uint8"):
        tokenizer.encode(np.zeros((1, 8, 8), dtype=np.uint8))
    with pytest.raises(ArgumentError, match="images holds NaN"):
        tokenizer.encode(np.full((1, 8, 8), np.nan))
    with pytest.raises(ShapeError, match=r"tokens has shape \(1, 3\), expected \(n, 4\)"):
        tokenizer.decode([[0, 0, 0]])
    with pytest.raises(ArgumentError, match="tokens holds 5"):
        tokenizer.decode([[0, 0, 0, 5]])
    with pytest.raises(ArgumentError, match="images is empty"):
        ImageTokenizer.fit(images[:0], patch=(4, 4), rng=rng)
    with pytest.raises(ArgumentError, match="config lacks 'height'"):
        ImageTokenizer.from_arrays(tokenizer.to_arrays(), {"codebook": {"kind": "kmeans"}})
    with pytest.raises(ShapeError, match="codebook has D=16 but a patch has 4 values"):
        ImageTokenizer.from_arrays(tokenizer.to_arrays(), tokenizer.config | {"patch": [2, 2]})


def test_jitter_without_any_change_is_the_identity() -> None:
    images = np.random.default_rng(0).random((3, 5, 7, 3), dtype=np.float32)
    same = jitter_images(images, rng=np.random.default_rng(1), shift=0, turn=0, scale=0, shear=0)
    np.testing.assert_allclose(same, images, atol=1e-6)


def test_jitter_moves_a_spot_by_no_more_than_it_says() -> None:
    images = np.zeros((200, 9, 9), dtype=np.float32)
    images[:, 4, 4] = 1
    moved = jitter_images(images, rng=np.random.default_rng(0), shift=1 / 9, turn=0, scale=0, shear=0)
    centre = (moved * np.arange(9)).sum(axis=(1, 2)) / moved.sum(axis=(1, 2))
    assert np.abs(centre - 4).max() <= 1
    assert centre.std() > 0.4  # uniform in [-1, 1] has 0.58
    np.testing.assert_allclose(moved.sum(axis=(1, 2)), 1, atol=1e-5)


def test_jitter_keeps_digits_readable_and_makes_them_different() -> None:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    moved = jitter_images(images, rng=np.random.default_rng(0))
    assert moved.dtype == np.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, moved, strict=True)]
    assert np.mean(correlation) > 0.8
    assert np.max(correlation) < 1
