"""The ten English digit words in many voices: a set that ships with the package.

Made by ``scripts/make_speech.py``: synthetic voices of eSpeak NG, each a vocal tract of its own (a variant of
the synthesiser) with an English accent, at many pitches and speeds. The split is by variant: nobody heard in
``test`` is heard in ``train``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from ..errors import SensoriumError
from .corpus import Corpus, Split

__all__ = ["WORDS", "Utterance", "speech", "utterances"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, eq=False)
class Utterance:
    """One spoken word.

    Parameters
    ----------
    audio : ndarray, (samples,), float32
        The waveform in [-1, 1].
    sample_rate : int
        Samples a second.
    digit : int
        What is said, 0 to 9.
    voice : str
        Accent and variant of the synthesiser, such as ``"en-gb-scotland+f1"``.
    pitch, speed : int
        The synthesiser's settings: pitch from 0 to 99, speed in words a minute.
    split : {"train", "test"}
        Which of the two the voice belongs to.
    """

    audio: NDArray[np.float32]
    sample_rate: int
    digit: int
    voice: str
    pitch: int
    speed: int
    split: Split


def utterances() -> list[Utterance]:
    """Return every spoken word of the set with what is known of it.

    Returns
    -------
    list of Utterance
        In the order of the file: voices one after another, each saying "zero" to "nine".

    Raises
    ------
    SensoriumError
        Where the installed sound file and its index do not belong together.

    Examples
    --------
    >>> spoken = utterances()
    >>> len(spoken), spoken[0].voice, spoken[0].digit, spoken[0].sample_rate
    (1690, 'en-gb-x-gbclan+m1', 0, 8000)
    """
    import soundfile

    folder = files("sensorium.data") / "speech"
    index = json.loads((folder / "digits.json").read_text(encoding="utf-8"))
    sound, rate = soundfile.read(io.BytesIO((folder / "digits.ogg").read_bytes()), dtype="float32")
    lengths = np.array(index["length"])
    starts = np.concatenate([[0], np.cumsum(lengths + index["gap"])])
    if rate != index["sample_rate"] or len(sound) != starts[-1]:
        raise SensoriumError(
            f"digits.ogg has {len(sound)} samples at {rate} Hz, but digits.json describes "
            f"{starts[-1]} at {index['sample_rate']} Hz: reinstall sensorium"
        )
    sound = np.clip(sound, -1, 1)
    columns = (index[name] for name in ("digit", "voice", "pitch", "speed", "test"))
    return [
        Utterance(
            audio=sound[start : start + length].copy(),
            sample_rate=rate,
            digit=digit,
            voice=index["voices"][voice],
            pitch=pitch,
            speed=speed,
            split="test" if test else "train",
        )
        for start, length, digit, voice, pitch, speed, test in zip(
            starts[:-1], lengths, *columns, strict=True
        )
    ]


def speech() -> Corpus:
    """Return the spoken digits as a corpus of sounds alone; the group of a sound is its digit.

    Returns
    -------
    Corpus
        1,350 sounds of 45 voice variants to train on and 340 of 17 others to test on, each of 0.25 to 0.75 s
        at 8 kHz.

    Examples
    --------
    >>> speech()
    Corpus(10 groups; train: 1350 sounds at 8000 Hz; test: 340 sounds at 8000 Hz)
    """
    spoken = utterances()
    return Corpus(
        audios=[one.audio for one in spoken],
        sample_rate=spoken[0].sample_rate,
        audio_group=np.array([one.digit for one in spoken]),
        audio_split=np.array([one.split for one in spoken]),
        names=WORDS,
    )
