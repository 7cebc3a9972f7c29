import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.tokenizers import FSQ, KMeans
from sensorium.tokenizers.codebook import codebook_from_arrays


def _points(seed: int, n: int, dim: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) * rng.uniform(0.1, 3, size=dim) + rng.normal(size=dim)


@given(st.integers(0, 999), st.integers(1, 300), st.integers(1, 9), st.integers(1, 40))
def test_a_code_is_the_nearest_centroid(seed: int, n: int, dim: int, codes: int) -> None:
    points = _points(seed, n, dim)
    codebook = KMeans.fit(points, codes, rng=np.random.default_rng(seed))
    got = codebook.encode(points)
    assert got.shape == (n,)
    assert got.dtype == np.int32
    assert codebook.size <= min(codes, n)
    square = ((points[:, None] - codebook.table.astype(float)) ** 2).sum(axis=-1)
    scale = (points**2).sum(axis=-1) + (codebook.table.astype(float) ** 2).sum(axis=-1).max()
    # the product form of the distance loses a few units of float32 rounding of |x|^2 + |c|^2 per term
    slack = (dim + 4) * np.finfo(np.float32).eps * scale
    assert (square[np.arange(n), got] <= square.min(axis=1) + slack).all()


@given(st.integers(0, 999))
def test_every_centroid_is_the_mean_of_its_points_when_it_has_converged(seed: int) -> None:
    points = _points(seed, 200, 3)
    codebook = KMeans.fit(points, 8, rng=np.random.default_rng(seed), iterations=200)
    codes = codebook.encode(points)
    for code in np.unique(codes):
        np.testing.assert_allclose(codebook.table[code], points[codes == code].mean(axis=0), atol=1e-4)


def test_more_codes_lose_less_and_far_less_than_random_centroids() -> None:
    points = _points(1, 4000, 4)
    rng = np.random.default_rng(0)

    def loss(codebook: KMeans) -> float:
        return float(((codebook.decode(codebook.encode(points)) - points) ** 2).sum(axis=-1).mean())

    losses = [loss(KMeans.fit(points, codes, rng=rng)) for codes in (1, 4, 16, 64, 256)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(points.var(axis=0).sum(), rel=1e-3)  # one code is the mean
    drawn = KMeans(points[rng.choice(len(points), 64, replace=False)].astype(np.float32))
    assert losses[3] < 0.8 * loss(drawn)


def test_fewer_different_vectors_than_codes_make_a_smaller_lossless_codebook() -> None:
    points = np.repeat(np.array([[0.0, 1.0], [100.0, 5.0], [100.0, 6.0]]), 7, axis=0)
    codebook = KMeans.fit(points, 50, rng=np.random.default_rng(0))
    assert codebook.size == 3
    np.testing.assert_allclose(codebook.decode(codebook.encode(points)), points, atol=1e-5)


def test_the_same_generator_gives_the_same_codebook_and_a_sample_is_enough() -> None:
    points = _points(2, 9000, 5)
    first, second = (KMeans.fit(points, 32, rng=np.random.default_rng(3), sample=3000) for _ in range(2))
    np.testing.assert_array_equal(first.table, second.table)
    whole = KMeans.fit(points, 32, rng=np.random.default_rng(3), sample=9000)
    loss = [((c.decode(c.encode(points)) - points) ** 2).mean() for c in (first, whole)]
    assert loss[0] < 1.1 * loss[1]


def test_vectors_far_from_zero_are_told_apart_in_fitting() -> None:
    points = np.array([[1000.0], [1000.5], [1001.0], [1001.5]])
    codebook = KMeans.fit(points, 4, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.sort(codebook.table[:, 0]), points[:, 0], atol=1e-3)


@given(st.lists(st.integers(2, 7), min_size=1, max_size=4), st.integers(0, 999))
def test_fsq_codes_count_through_the_grid(levels: list[int], seed: int) -> None:
    points = _points(seed, 300, len(levels) + 1)
    codebook = FSQ.fit(points, levels)
    codes = codebook.encode(points)
    assert codebook.size == np.prod(levels) == len(codebook.table)
    assert codes.min() >= 0
    assert codes.max() < codebook.size
    for axis, level in enumerate(levels):  # each coordinate uses all its levels: points lie on both sides
        assert len(np.unique(np.unravel_index(codes, levels)[axis])) == level
    np.testing.assert_array_equal(codebook.decode(codes), codebook.table[codes])


def test_fsq_with_more_levels_loses_less() -> None:
    points = _points(4, 3000, 3)
    losses = []
    for level in (2, 3, 5, 9, 17):
        codebook = FSQ.fit(points, (level,) * 3)
        losses.append(float(((codebook.decode(codebook.encode(points)) - points) ** 2).mean()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * points.var(axis=0).mean()


@pytest.mark.parametrize("kind", ["kmeans", "fsq"])
def test_saved_and_loaded_is_the_same(kind: str) -> None:
    points = _points(5, 500, 4)
    rng = np.random.default_rng(0)
    codebook = KMeans.fit(points, 16, rng=rng) if kind == "kmeans" else FSQ.fit(points, (4, 4))
    loaded = codebook_from_arrays(codebook.to_arrays(), json.loads(json.dumps(codebook.config)))
    np.testing.assert_array_equal(loaded.encode(points), codebook.encode(points))
    np.testing.assert_array_equal(loaded.table, codebook.table)


def test_codes_keep_the_leading_dimensions_and_any_memory_layout() -> None:
    points = _points(6, 120, 4)
    codebook = KMeans.fit(points, 10, rng=np.random.default_rng(0))
    codes = codebook.encode(points)
    assert codebook.encode(points.reshape(2, 3, 20, 4)).shape == (2, 3, 20)
    np.testing.assert_array_equal(codebook.encode(np.asfortranarray(points)), codes)
    np.testing.assert_array_equal(codebook.encode(points.astype(">f8")), codes)
    assert codebook.decode(codes.reshape(2, 60)).shape == (2, 60, 4)
    assert codebook.encode(np.empty((0, 4))).shape == (0,)


def test_errors_name_the_argument() -> None:
    rng = np.random.default_rng(0)
    codebook = KMeans.fit(np.eye(3), 3, rng=rng)
    with pytest.raises(ShapeError, match="vectors has D=4 but the codebook has D=3"):
        codebook.encode(np.zeros((2, 4)))
    with pytest.raises(ArgumentError, match="codes holds 3, expected indices from 0 to 2"):
        codebook.decode([3])
    with pytest.raises(DTypeError, match="vectors has dtype int64"):
        KMeans.fit(np.zeros((2, 2), dtype=np.int64), 2, rng=rng)
    with pytest.raises(ArgumentError, match="vectors holds NaN"):
        KMeans.fit(np.array([[np.nan]]), 2, rng=rng)
    with pytest.raises(ArgumentError, match="vectors is empty"):
        KMeans.fit(np.zeros((0, 2)), 2, rng=rng)
    with pytest.raises(ArgumentError, match="codes must be at least 1, not 0"):
        KMeans.fit(np.eye(3), 0, rng=rng)
    with pytest.raises(ArgumentError, match=r"levels must be at least 2 each, not \(4, 1\)"):
        FSQ.fit(np.eye(3), (4, 1))
    with pytest.raises(ArgumentError, match="levels has 4 entries, at most D=3 fit"):
        FSQ.fit(np.eye(3), (2, 2, 2, 2))
    with pytest.raises(ArgumentError, match="the codebook lacks 'table'"):
        codebook_from_arrays({}, {"kind": "kmeans"})
    with pytest.raises(ArgumentError, match="kind must be 'kmeans' or 'fsq', not 'vq'"):
        codebook_from_arrays({}, {"kind": "vq"})
    with pytest.raises(ArgumentError, match="make more than 1048576 codes"):
        codebook_from_arrays(
            {"mean": np.zeros(9, "f4"), "down": np.zeros((9, 9), "f4"), "up": np.zeros((10, 9), "f4")},
            {"kind": "fsq", "levels": [1000] * 9},
        )
    with pytest.raises(ShapeError, match=r"down has shape \(3, 2\), expected \(3, 1\)"):
        FSQ((4,), np.zeros(3, "f4"), np.zeros((3, 2), "f4"), np.zeros((2, 3), "f4"))
