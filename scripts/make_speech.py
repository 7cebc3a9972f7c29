"""Make the spoken-digit set that ships with sensorium.

The ten English digit words are spoken by eSpeak NG, an open speech synthesiser that arrives with
`pip install espeakng-loader`, in many voices, pitches and speeds; trimmed, brought to 8 kHz and one level,
and written as one Ogg Vorbis file with an index beside it:

    pip install espeakng-loader soundfile scipy numpy
    python scripts/make_speech.py                       # writes python/sensorium/data/speech/
    python scripts/make_speech.py --check               # writes nothing, compares with what is there

A voice is a variant of the synthesiser (a vocal tract: formants, pitch range, voice source) speaking one of
its English accents. The split is by variant: variants whose definitions are near copies of one another form
a family, and a whole family is either in `train` or in `test`, so nobody heard in testing was heard in
training. Whispers, echoes and robot effects are left out.

Every random draw comes from one seeded generator, and the synthesiser's own noise is reseeded for every word:
the same versions of the libraries give the same waveforms.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")

TRAIN_FAMILIES = (
    ("m1",), ("m2",), ("m4",), ("m5",), ("m7", "m8", "Nguyen"),
    ("f1",), ("f2",), ("f4",), ("Alicia", "Annie"), ("Andrea",), ("anika",), ("grandma",), ("shelby",),
    ("Andy", "AnxiousAndy", "Lee"), ("Alex", "max", "paul", "boris"), ("Diogo", "Henrique", "Hugo", "miguel"),
    ("Mario", "Michael", "gustave"), ("iven",), ("ed",), ("grandpa",), ("pedro",), ("victor",), ("Storm",),
    ("adam",), ("david",), ("edward",), ("Reed",), ("klatt", "klatt2", "klatt3", "klatt4"), ("Jacky",),
)  # fmt: skip
TEST_FAMILIES = (
    ("m3", "Mike"), ("m6",), ("f3",), ("f5",), ("linda", "belinda"), ("steph",),
    ("rob", "robert", "quincy"), ("Denis",), ("antonio",), ("sandro",), ("travis",), ("benjamin",), ("Gene",),
)  # fmt: skip
ACCENTS_PER_VARIANT = {"train": 3, "test": 2}  # of the seven, drawn anew for every variant
RATE = 8000  # Hz
SHORTEST, LONGEST = 0.25, 0.75  # seconds after trimming
LEVEL = 0.1  # root mean square of every utterance, lowered where the peak would pass PEAK
PEAK = 0.85  # leaves the lossy coder room to overshoot
GAP = 320  # samples of silence between utterances in the file, so that no coding block spans two of them
BLOCK = 4096  # frames handed to the encoder at a time
COMPRESSION = 0.8  # of libsndfile, 0 to 1, where 1 is the smallest file


class Synthesiser:
    """eSpeak NG through its C interface, one word at a time."""

    RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
    SYNCHRONOUS, UTF8, DONT_EXIT = 2, 1, 0x8000

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self.library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self.library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self.library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.library.espeak_Info.restype = ctypes.c_char_p
        where = espeakng_loader.get_data_path().encode()
        self.sample_rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, where, self.DONT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak_Initialize failed for {where!r}")
        self.version = self.library.espeak_Info(None).decode()
        self._chunks: list[NDArray[np.int16]] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback(self._collect)  # kept: the library holds only its address
        self.library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, word: str, voice: str, *, pitch: int, speed: int, seed: int) -> NDArray[np.float64]:
        """The waveform of one word at `self.sample_rate`, in [-1, 1]."""
        self._chunks.clear()
        self.library.espeak_ng_SetRandSeed(seed)
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"no voice {voice!r}")
        self.library.espeak_SetParameter(self.RATE, speed, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        self.library.espeak_SetParameter(self.RANGE, 50, 0)
        text = word.encode() + b"\0"
        if self.library.espeak_Synth(text, len(text), 0, 1, 0, self.UTF8, None, None) != 0:
            raise RuntimeError(f"espeak_Synth failed for {word!r} in {voice!r}")
        return np.concatenate(self._chunks) / 32768.0


def trim(sound: NDArray[np.float64], *, threshold: float = 0.005, margin: int = 80) -> NDArray[np.float64]:
    """Cut what is quieter than `threshold` times the loudest 10 ms off both ends; fade over the margins."""
    energy = np.sqrt(np.convolve(sound**2, np.full(margin, 1 / margin), mode="same"))
    loud = np.flatnonzero(energy > threshold * energy.max())
    start, stop = max(0, loud[0] - margin // 2), min(len(sound), loud[-1] + margin // 2)
    out = sound[start:stop].copy()
    ramp = np.linspace(0, 1, margin // 2)
    out[: len(ramp)] *= ramp
    out[-len(ramp) :] *= ramp[::-1]
    return out


def utter(
    synthesiser: Synthesiser, word: str, voice: str, *, pitch: int, speed: int, seed: int
) -> tuple[NDArray[np.float64], int]:
    """One word at 8 kHz, trimmed and levelled, and the speed it took to keep it within the bounds."""
    for _ in range(20):
        sound = synthesiser.say(word, voice, pitch=pitch, speed=speed, seed=seed)
        common = gcd(RATE, synthesiser.sample_rate)
        sound = trim(resample_poly(sound, RATE // common, synthesiser.sample_rate // common))
        seconds = len(sound) / RATE
        if seconds > LONGEST:
            speed += 8
        elif seconds < SHORTEST:
            speed -= 8
        else:
            level = min(LEVEL / np.sqrt(np.mean(sound**2)), PEAK / np.abs(sound).max())
            return sound * level, speed
    raise RuntimeError(f"{word!r} in {voice!r} stays outside {SHORTEST} to {LONGEST} s")


def render() -> tuple[list[NDArray[np.float64]], list[dict[str, Any]], str]:
    """Every utterance with its record, in a fixed order, and the synthesiser's version."""
    synthesiser = Synthesiser()
    rng = np.random.default_rng(20)
    sounds, records = [], []
    for split, families in (("train", TRAIN_FAMILIES), ("test", TEST_FAMILIES)):
        for variant in (variant for family in families for variant in family):
            for accent in rng.choice(ACCENTS, ACCENTS_PER_VARIANT[split], replace=False):
                voice = f"{accent}+{variant}"
                for digit, word in enumerate(WORDS):
                    pitch, speed = int(rng.integers(30, 71)), int(rng.integers(130, 191))
                    sound, speed = utter(
                        synthesiser, word, voice, pitch=pitch, speed=speed, seed=len(records) + 1
                    )
                    sounds.append(sound)
                    records.append(
                        {"digit": digit, "voice": voice, "pitch": pitch, "speed": speed, "split": split}
                    )
    return sounds, records, synthesiser.version


def crc32_table() -> list[int]:
    """The table of Ogg's page checksum: polynomial 0x04c11db7, most significant bit first."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def fix_serial(data: bytes, serial: int = 1) -> bytes:
    """The same Ogg stream under a fixed serial number; libogg's caller draws one from the clock."""
    table, out, at = crc32_table(), bytearray(data), 0
    while at < len(out):
        segments = out[at + 26]
        size = 27 + segments + sum(out[at + 27 : at + 27 + segments])
        out[at + 14 : at + 18] = serial.to_bytes(4, "little")
        out[at + 22 : at + 26] = bytes(4)
        checksum = 0
        for byte in out[at : at + size]:
            checksum = ((checksum << 8) & 0xFFFFFFFF) ^ table[(checksum >> 24) ^ byte]
        out[at + 22 : at + 26] = checksum.to_bytes(4, "little")
        at += size
    return bytes(out)


def encode(sounds: list[NDArray[np.float64]]) -> bytes:
    """All utterances as one Ogg Vorbis stream, silence after each."""
    gap = np.zeros(GAP)
    joined = np.concatenate([part for sound in sounds for part in (sound, gap)]).astype(np.float32)
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=COMPRESSION
    ) as file:
        for start in range(0, len(joined), BLOCK):
            file.write(joined[start : start + BLOCK])
    return fix_serial(encoded.getvalue())


def make_index(
    sounds: list[NDArray[np.float64]], records: list[dict[str, Any]], version: str
) -> dict[str, Any]:
    """What is where in the stream, a column for each thing known of an utterance."""
    voices = list(dict.fromkeys(record["voice"] for record in records))
    return {
        "synthesiser": f"eSpeak NG {version}",
        "sample_rate": RATE,
        "gap": GAP,
        "words": WORDS,
        "voices": voices,
        "length": [len(sound) for sound in sounds],
        "digit": [record["digit"] for record in records],
        "voice": [voices.index(record["voice"]) for record in records],
        "pitch": [record["pitch"] for record in records],
        "speed": [record["speed"] for record in records],
        "test": [int(record["split"] == "test") for record in records],
    }


def write(out: Path, sounds: list[NDArray[np.float64]], records: list[dict[str, Any]], version: str) -> None:
    """Write the sounds and their index into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "digits.ogg").write_bytes(encode(sounds))
    index = make_index(sounds, records, version)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in index.items()]
    (out / "digits.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def check(out: Path, sounds: list[NDArray[np.float64]], records: list[dict[str, Any]], version: str) -> None:
    """Raise where the set in `out` is not the one just made; sounds are compared after decoding."""
    index = json.loads((out / "digits.json").read_text(encoding="utf-8"))
    for key, value in make_index(sounds, records, version).items():
        if index[key] != json.loads(json.dumps(value)):
            raise SystemExit(f"{out / 'digits.json'}: {key!r} differs")
    shipped, _ = soundfile.read(out / "digits.ogg")
    fresh, _ = soundfile.read(io.BytesIO(encode(sounds)))
    difference = np.abs(shipped - fresh).max()
    if difference > 0.01:
        raise SystemExit(f"{out / 'digits.ogg'}: samples differ by up to {difference:.3g}")
    print(f"{out}: {len(sounds)} utterances, as made now (samples differ by at most {difference:.3g})")


def main() -> None:
    """Make the set, or compare the one that is there."""
    parser = argparse.ArgumentParser(description="Make the spoken-digit set.")
    here = Path(__file__).resolve().parent.parent / "python" / "sensorium" / "data" / "speech"
    parser.add_argument("--out", type=Path, default=here, help="folder of digits.ogg and digits.json")
    parser.add_argument("--check", action="store_true", help="compare with what is there and write nothing")
    arguments = parser.parse_args()
    (check if arguments.check else write)(arguments.out, *render())


if __name__ == "__main__":
    main()
