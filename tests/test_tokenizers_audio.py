import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.tokenizers import AudioTokenizer, jitter_logmel
from sensorium.tokenizers._mel import griffin_lim, istft, mel_bank, mel_to_linear, stft

RATE = 8000


def _chirp(seed: int, seconds: float = 0.4) -> NDArray[np.float32]:
    """A harmonic tone that glides, with a soft start and end: speech-like enough for a codec."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    phase = (
        2 * np.pi * np.cumsum(rng.uniform(100, 250) * (1 + rng.uniform(-0.3, 0.3) * time / seconds)) / RATE
    )
    sound = sum(rng.uniform(0.2, 1) * np.sin(k * phase) / k for k in range(1, 9))
    return (0.3 * sound * np.sin(np.pi * time / seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def sounds() -> list[NDArray[np.float32]]:
    return [_chirp(seed, 0.2 + 0.4 * (seed % 7) / 7) for seed in range(60)]


@pytest.fixture(scope="module")
def tokenizer(sounds: list[NDArray[np.float32]]) -> AudioTokenizer:
    rng = np.random.default_rng(0)
    return AudioTokenizer.fit(sounds, sample_rate=RATE, seconds=0.6, codes=512, rng=rng)


@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([(256, 64), (128, 32), (40, 10)]))
def test_a_spectrum_goes_back_to_its_sound(seed: int, hops: int, sizes: tuple[int, int]) -> None:
    window, hop = sizes
    sound = np.random.default_rng(seed).normal(size=(2, hops * hop)).astype(np.float32)
    spectrum = stft(sound, window, hop)
    assert spectrum.shape == (2, hops + 1, window // 2 + 1)
    np.testing.assert_allclose(istft(spectrum, window, hop), sound, atol=1e-4)


def test_every_mel_band_hears_something_and_no_less_or_more_than_one() -> None:
    for bands, window, rate in ((40, 256, 8000), (80, 512, 16000), (128, 256, 8000)):
        bank = mel_bank(bands, window, rate)
        assert bank.min() >= 0
        np.testing.assert_allclose(bank.sum(axis=1), 1, rtol=1e-5)
        assert (np.diff(bank.argmax(axis=1)) >= 0).all()


def test_magnitudes_found_from_mel_have_that_mel() -> None:
    bank = mel_bank(40, 256, RATE)
    magnitude = np.abs(stft(_chirp(3)[None], 256, 64))
    mel = magnitude @ bank.T
    back = mel_to_linear(mel, bank)
    assert back.min() >= 0
    assert np.abs(back @ bank.T - mel).max() < 0.05 * mel.max()


def test_griffin_lim_gets_nearer_to_the_magnitudes_with_iterations() -> None:
    magnitude = np.abs(stft(_chirp(5)[None], 256, 64))

    def distance(iterations: int) -> float:
        sound = griffin_lim(magnitude, 256, 64, iterations=iterations)
        return float(np.linalg.norm(np.abs(stft(sound, 256, 64)) - magnitude) / np.linalg.norm(magnitude))

    distances = [distance(iterations) for iterations in (1, 8, 64)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.15


def test_a_tone_of_amplitude_one_reads_about_zero_and_silence_the_floor(tokenizer: AudioTokenizer) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(tokenizer.samples) / RATE)
    loud = tokenizer.logmel([tone])[0, 5:-5]
    assert np.abs(loud.max(axis=1)).max() < np.log(4)  # a triangle of sum 1 spreads the peak over a few bins
    frequency = np.argmax(mel_bank(40, 256, RATE)[loud.mean(axis=0).argmax()]) * RATE / 256
    assert abs(frequency - 1000) < 70
    np.testing.assert_array_equal(tokenizer.logmel([np.zeros(100)]), np.float32(tokenizer.floor))


def test_sounds_survive_the_round_trip(tokenizer: AudioTokenizer, sounds: list[NDArray[np.float32]]) -> None:
    tokens = tokenizer.encode(sounds)
    assert tokens.shape == (60, tokenizer.tokens)
    assert tokens.dtype == np.int32
    decoded = tokenizer.decode(tokens)
    again = tokenizer.logmel(decoded)
    reference = tokenizer.logmel(sounds)
    # of all 60, the nearest one to what came back is the one that went in
    distance = ((again[:, None] - reference[None]) ** 2).mean(axis=(2, 3))
    assert (distance.argmin(axis=1) == np.arange(60)).mean() > 0.95
    token = tokenizer.samples // tokenizer.tokens
    for sound, back in zip(sounds, decoded, strict=True):
        assert back.dtype == np.float32
        assert np.abs(back).max() <= 1
        assert abs(len(back) - len(sound)) <= token


def test_long_sounds_are_cut_and_silence_is_trimmed(tokenizer: AudioTokenizer) -> None:
    long = np.concatenate([_chirp(1, 0.6), _chirp(2, 0.6)])
    np.testing.assert_array_equal(tokenizer.encode([long]), tokenizer.encode([long[: tokenizer.samples]]))
    silence = tokenizer.encode([np.zeros(0, dtype=np.float32)])
    assert len(tokenizer.decode(silence)[0]) == 2 * tokenizer.hop
    assert len(tokenizer.decode(silence, trim=False)[0]) == tokenizer.samples
    assert np.abs(tokenizer.decode(silence)[0]).max() < 1e-3


def test_the_result_does_not_depend_on_what_else_is_in_the_batch(
    tokenizer: AudioTokenizer, sounds: list[NDArray[np.float32]]
) -> None:
    many = tokenizer.encode(sounds * 5)
    np.testing.assert_array_equal(many, np.tile(tokenizer.encode(sounds), (5, 1)))


@pytest.mark.parametrize("levels", [None, (5, 5, 5)])
def test_saved_and_loaded_is_the_same(
    sounds: list[NDArray[np.float32]], levels: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(0)
    tokenizer = AudioTokenizer.fit(
        sounds, sample_rate=RATE, seconds=0.3, bands=20, stack=2, codes=30, levels=levels, rng=rng
    )
    loaded = AudioTokenizer.from_arrays(tokenizer.to_arrays(), json.loads(json.dumps(tokenizer.config)))
    tokens = loaded.encode(sounds)
    np.testing.assert_array_equal(tokens, tokenizer.encode(sounds))
    np.testing.assert_array_equal(loaded.decode(tokens[:2])[1], tokenizer.decode(tokens[:2])[1])


def test_errors_name_the_argument(tokenizer: AudioTokenizer) -> None:
    with pytest.raises(ShapeError, match=r"sounds\[1\] has shape \(3, 2\), expected 1 dimension"):
        tokenizer.encode([np.zeros(3), np.zeros((3, 2))])
    with pytest.raises(DTypeError, match=r"sounds\[0\] has dtype int16"):
        tokenizer.encode([np.zeros(3, dtype=np.int16)])
    with pytest.raises(ArgumentError, match=r"sounds\[0\] holds NaN"):
        tokenizer.encode([np.full(3, np.inf)])
    with pytest.raises(ShapeError, match=rf"tokens has shape \(1, 2\), expected \(n, {tokenizer.tokens}\)"):
        tokenizer.decode([[0, 0]])
    with pytest.raises(ArgumentError, match="iterations must be at least 1"):
        tokenizer.decode(np.zeros((1, tokenizer.tokens), dtype=int), iterations=0)
    with pytest.raises(ArgumentError, match="sounds is empty"):
        AudioTokenizer.fit([], sample_rate=RATE, seconds=1, rng=np.random.default_rng(0))
    with pytest.raises(ArgumentError, match="make a sound of more than 60 s"):
        AudioTokenizer.from_arrays(tokenizer.to_arrays(), tokenizer.config | {"tokens": 10**9})
    with pytest.raises(DTypeError, match="hop must be an integer, not str"):
        AudioTokenizer.from_arrays(tokenizer.to_arrays(), tokenizer.config | {"hop": "64"})
    with pytest.raises(ShapeError, match=r"codebook has D=160 but stack \* bands is 200"):
        AudioTokenizer.from_arrays(tokenizer.to_arrays(), tokenizer.config | {"stack": 5})
    with pytest.raises(ArgumentError, match="config lacks 'codebook'"):
        AudioTokenizer.from_arrays({}, dict.fromkeys(("sample_rate", "tokens", "bands", "stack", "hop"), 1))


def test_jitter_without_any_change_is_the_identity(
    tokenizer: AudioTokenizer, sounds: list[NDArray[np.float32]]
) -> None:
    logmel = tokenizer.logmel(sounds[:5])
    rng = np.random.default_rng(0)
    same = jitter_logmel(logmel, rng=rng, floor=tokenizer.floor, shift=0, stretch=0, warp=0, gain=0)
    np.testing.assert_allclose(same, logmel, atol=1e-5)


def test_jitter_moves_in_time_and_fills_with_silence() -> None:
    logmel = np.full((300, 20, 3), -9.0, dtype=np.float32)
    logmel[:, 10] = 0
    rng = np.random.default_rng(0)
    moved = jitter_logmel(logmel, rng=rng, floor=-9, shift=2, stretch=0, warp=0, gain=0) + 9
    centre = (moved[:, :, 0] * np.arange(20)).sum(axis=1) / moved[:, :, 0].sum(axis=1)
    assert np.abs(centre - 10).max() <= 2.001
    assert centre.std() > 0.9  # uniform in [-2, 2] has 1.15
    assert moved[:, :7].max() < 1e-5
