"""Model files: whole or not there, a changed bit is found, a hostile file costs nothing."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from sensorium import ArgumentError, CheckpointError, DTypeError, checkpoint

DTYPES = [
    "?",
    "u1",
    "i1",
    "<u2",
    ">u2",
    "<i2",
    "<f2",
    ">f2",
    "<i4",
    ">i4",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "<i8",
    ">u8",
]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
values = hnp.arrays(
    dtype=st.sampled_from(DTYPES).map(np.dtype),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
metadata_values = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


def small(path: Path) -> Path:
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "mask": np.array([True, False]),
        "n": np.int64(7),
    }
    checkpoint.save(path, arrays, {"config": {"width": 3, "name": "café"}})
    return path


def crafted(
    path: Path, entries: object, data: bytes = b"", metadata: str = "{}", own: dict | None = None
) -> Path:
    """Write a file with a right checksum, so that nothing but the check under test can refuse it."""
    if isinstance(entries, dict):
        own = {"sensorium": "1", "sha256": "0" * 64, "metadata": metadata} if own is None else own
        text = json.dumps({"__metadata__": own, **entries}).encode()
    else:
        text = entries
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head + data).hexdigest().encode()
    path.write_bytes(head.replace(b"0" * 64, digest, 1) + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), data_offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


# --- what goes in comes out -------------------------------------------------------------------------------


@given(arrays=st.dictionaries(names, values, max_size=4), metadata=metadata_values)
def test_round_trip(tmp_path_factory, arrays, metadata):
    path = tmp_path_factory.mktemp("round") / "m.safetensors"
    checkpoint.save(path, arrays, metadata)
    got, got_metadata = checkpoint.load(path)
    assert got_metadata == metadata
    assert list(got) == sorted(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype.newbyteorder("=")
        assert got[name].shape == array.shape
        assert got[name].flags.c_contiguous
        assert got[name].flags.writeable
        assert (
            got[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()
        )  # NaN bits included


@given(arrays=st.dictionaries(names, values, max_size=4))
def test_any_reader_of_the_format_opens_it(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("interop") / "m.safetensors"
    checkpoint.save(path, arrays, {"a": 1})
    got = safetensors.numpy.load_file(path)
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_strided_and_read_only_arrays(tmp_path):
    base = np.arange(24, dtype=np.float64).reshape(4, 6)
    base.flags.writeable = False
    checkpoint.save(tmp_path / "m", {"a": base[::2, ::-3], "b": base.T})
    got, _ = checkpoint.load(tmp_path / "m")
    np.testing.assert_array_equal(got["a"], base[::2, ::-3])
    np.testing.assert_array_equal(got["b"], base.T)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert small(tmp_path / "a").read_bytes() == small(tmp_path / "b").read_bytes()


def test_a_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "real" / "m")
    small(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert checkpoint.load(tmp_path / "real" / "m")[1]["config"] == {"width": 3, "name": "café"}


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small("m")
    assert checkpoint.load("m")[0]["n"] == 7


@given(
    st.recursive(
        hnp.arrays(np.float32, hnp.array_shapes(max_side=3)),
        lambda inner: st.dictionaries(st.text("ab.", min_size=1, max_size=3), inner, min_size=1, max_size=3),
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_flatten_and_back(tree):
    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a.tobytes() == b.tobytes()

    flat = checkpoint.flatten(tree)
    assert all(isinstance(array, np.ndarray) for array in flat.values())
    assert same(tree, checkpoint.unflatten(flat))


# --- what cannot be stored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "metadata", "error", "words"),
    [
        ({"w": np.zeros(1, complex)}, None, DTypeError, r"arrays\['w'\] has dtype complex128"),
        ({"w": np.array([object()])}, None, DTypeError, r"arrays\['w'\] has dtype object"),
        ({"w": np.array(["a"])}, None, DTypeError, r"arrays\['w'\] has dtype <U1"),
        ({"__metadata__": np.zeros(1)}, None, ArgumentError, "'__metadata__', which cannot be the name"),
        ({"": np.zeros(1)}, None, ArgumentError, "'', which cannot be the name"),
        ({"\ud800": np.zeros(1)}, None, ArgumentError, "which cannot be the name"),
        ({1: np.zeros(1)}, None, DTypeError, "arrays has the key 1, expected strings"),
        ({"w": np.zeros((1,) * 33)}, None, ArgumentError, "33 dimensions, at most 32"),
        ({}, {"a": float("nan")}, ArgumentError, r"metadata\['a'\] is nan, which JSON does not know"),
        ({}, {"a": [1, float("inf")]}, ArgumentError, r"metadata\['a'\]\[1\] is inf"),
        ({}, {"a": {2: 3}}, DTypeError, r"metadata\['a'\] has the key 2, expected strings"),
        ({}, {"a": np.float32(1)}, DTypeError, r"metadata\['a'\] is of type float32"),
        ({}, {"a": "x" * (16 << 20)}, ArgumentError, "metadata is too long"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, arrays, metadata, error, words):
    path = small(tmp_path / "m")
    before = path.read_bytes()
    with pytest.raises(error, match=words):
        checkpoint.save(path, arrays, metadata)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_holds_itself(tmp_path):
    loop: dict = {}
    loop["a"] = loop
    with pytest.raises(ArgumentError, match="metadata is nested too deeply"):
        checkpoint.save(tmp_path / "m", {}, loop)


@pytest.mark.parametrize(
    ("tree", "error", "words"),
    [
        ({"a/b": np.zeros(1)}, ArgumentError, "the key 'a/b'"),
        ({"a": {"": np.zeros(1)}}, ArgumentError, "the key '' under 'a/'"),
        ({"a": {"b": {}}}, ArgumentError, "an empty branch 'a/b'"),
        ({3: np.zeros(1)}, DTypeError, "the key 3"),
    ],
)
def test_flatten_refuses(tree, error, words):
    with pytest.raises(error, match=words):
        checkpoint.flatten(tree)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["a", "a/b"], "'a/b' below an array"),
        (["a/b", "a"], "'a' above another array"),
        (["a//b"], "an empty part"),
    ],
)
def test_unflatten_refuses(keys, words):
    with pytest.raises(ArgumentError, match=words):
        checkpoint.unflatten({key: np.zeros(1) for key in keys})


# --- a file is whole or it is not there -------------------------------------------------------------------

KILLS = """
import os, random, signal, sys, time
import numpy as np
from sensorium import checkpoint

path, kills = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)
checkpoint.save(path, {"w": np.zeros(300_000)}, {"version": 0})
seen = interrupted = 0
for kill in range(kills):
    child = os.fork()
    if child == 0:
        version = seen
        while True:
            version += 1
            size = 100_000 + 50_000 * (version % 5)
            checkpoint.save(path, {"w": np.full(size, version, np.float64)}, {"version": version})
    time.sleep(rng.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    arrays, metadata = checkpoint.load(path)
    version = metadata["version"]
    assert version >= seen, (version, seen)
    assert version == 0 or arrays["w"].shape == (100_000 + 50_000 * (version % 5),)
    assert (arrays["w"] == version).all()
    seen = version
    interrupted += os.path.exists(os.path.join(os.path.dirname(path), ".m.partial"))
checkpoint.save(path, {}, {})
print(seen, interrupted, *os.listdir(os.path.dirname(path)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLS, str(tmp_path / "m"), "40"],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved, interrupted, *files = done.stdout.split()
    assert int(saved) > 0
    assert int(interrupted) > 0, "no kill fell into a write: the test has shown nothing"
    assert files == ["m"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk(tmp_path):
    """A limit on the size of a file stands for a disk that is full: the write of some piece fails."""
    path = small(tmp_path / "m")
    before = path.read_bytes()
    code = (
        "import resource, sys; import numpy as np; from sensorium import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: checkpoint.save(sys.argv[1], {'w': np.zeros(1 << 20)})\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert str(path) in done.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["write", "lseek", "fsync"])
def test_interrupted_at_any_step(tmp_path, monkeypatch, error, call):
    path = small(tmp_path / "m")
    before = path.read_bytes()
    real = getattr(os, call)
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if call == "write" and len(calls) < 3:
            return real(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(type(error)) as caught:
            checkpoint.save(path, {"w": np.zeros(1 << 18), "v": np.ones(3)})
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)
        assert caught.value.errno == 28
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such"):
        checkpoint.save(tmp_path / "no" / "such" / "m", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        checkpoint.save(tmp_path / "folder", {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_link_in_place_of_the_neighbour_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".m.partial").symlink_to(victim)
    with pytest.raises(OSError, match="m"):
        checkpoint.save(tmp_path / "m", {})
    assert victim.read_text() == "precious"


def test_savers_take_turns(tmp_path):
    path = small(tmp_path / "m")
    errors = []

    def saves(value):
        try:
            for _ in range(10):
                checkpoint.save(path, {"w": np.full(50_000 + value, value)}, {"value": value})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=saves, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        arrays, metadata = checkpoint.load(path)
        if "value" in metadata:
            assert arrays["w"].shape == (50_000 + metadata["value"],)
            assert (arrays["w"] == metadata["value"]).all()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


def test_any_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    checkpoint.write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: .*page\.html"):
            checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    checkpoint.write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


# --- a changed bit is found -------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "m"
    checkpoint.save(path, {"w": np.arange(4, dtype=np.int16)}, {"a": 1})
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=str(path)):
                checkpoint.load(path)


def test_every_truncation_is_found(tmp_path):
    path = small(tmp_path / "m")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="bytes of data, its arrays take"):
        checkpoint.load(path)


def test_a_digest_in_capitals_is_another_digest(tmp_path):
    path = small(tmp_path / "m")
    data = path.read_bytes()
    at = data.index(b'"sha256":"') + 10
    path.write_bytes(data[:at] + data[at : at + 64].upper() + data[at + 64 :])
    with pytest.raises(CheckpointError, match="is damaged: its checksum does not match"):
        checkpoint.load(path)


# --- a hostile file costs nothing -------------------------------------------------------------------------

HUGE = 1 << 62
HOSTILE = {
    "empty file": (b"", "has 0 bytes, too few"),
    "length beyond the file": (
        (1 << 40).to_bytes(8, "little") + b"{}",
        "header of 1099511627776 bytes, but 2 are left",
    ),
    "length of all ones": (b"\xff" * 8, "is truncated or no safetensors file"),
    "another kind of file": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is truncated or no safetensors file"),
    "header is not JSON": (b"\x03\0\0\0\0\0\0\0{a}", "header that is not JSON"),
    "header is not UTF-8": (b"\x02\0\0\0\0\0\0\0\xff\xfe", "header that is not JSON"),
    "header is a list": (b"\x02\0\0\0\0\0\0\0[]", "not a JSON object"),
    "no header": (b"\0" * 8, "header that is not JSON"),
    "written by others": (b"\x02\0\0\0\0\0\0\0{}", "sensorium did not write"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_beginnings(tmp_path, name):
    data, words = HOSTILE[name]
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("entries", "data", "words"),
    [
        (
            {"w": entry(shape=[HUGE], data_offsets=[0, 8])},
            b"\0" * 8,
            "shape .* that its data_offsets do not fit",
        ),
        (
            {"w": entry(shape=[1 << 40], data_offsets=[0, 4 << 40])},
            b"\0" * 8,
            "truncated: 'w' ends at byte",
        ),
        # 2^62 x 2^62 x 4 bytes is 0 in 64 bits: the product must not wrap.
        ({"w": entry(shape=[HUGE, HUGE], data_offsets=[0, 0])}, b"", "do not fit"),
        ({"w": entry(shape=[1 << 32, 1 << 30, 4], data_offsets=[0, 0])}, b"", "do not fit"),
        ({"w": entry(shape=[0, HUGE, HUGE], data_offsets=[0, 0])}, b"", "an impossible shape"),
        ({"w": entry(shape=[1] * 33, data_offsets=[0, 4])}, b"\0" * 4, "an impossible shape"),
        ({"w": entry(shape=[9] * 100_000, data_offsets=[0, 4])}, b"\0" * 4, "an impossible shape"),
        ({"w": entry(shape=[1 << 64], data_offsets=[0, 8])}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(shape=[-2], data_offsets=[0, 8])}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(shape=[2.0])}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(shape=[True, 2])}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(shape=2)}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(shape=None)}, b"\0" * 8, "an impossible shape"),
        ({"w": entry(data_offsets=[8, 0])}, b"\0" * 8, "do not fit"),
        ({"w": entry(data_offsets=[-8, 0])}, b"\0" * 8, "impossible data_offsets"),
        ({"w": entry(data_offsets=[0, 8, 8])}, b"\0" * 8, "impossible data_offsets"),
        ({"w": entry(data_offsets="08")}, b"\0" * 8, "impossible data_offsets"),
        ({"w": entry(), "v": entry()}, b"\0" * 8, "begins at byte 0 of the data, expected 8"),
        (
            {"w": entry(), "v": entry(data_offsets=[4, 12])},
            b"\0" * 12,
            "begins at byte 4 of the data, expected 8",
        ),
        (
            {"w": entry(), "v": entry(data_offsets=[12, 20])},
            b"\0" * 20,
            "begins at byte 12 of the data, expected 8",
        ),
        ({"w": entry()}, b"\0" * 16, "has 16 bytes of data, its arrays take 8"),
        ({"w": entry()}, b"\0" * 4, "is truncated"),
        ({}, b"\0" * 8, "has 8 bytes of data, its arrays take 0"),
        ({"w": entry(dtype="F64")}, b"\0" * 8, "do not fit"),
        ({"w": entry(dtype="BF16")}, b"\0" * 8, "unknown dtype 'BF16'"),
        ({"w": entry(dtype="O")}, b"\0" * 8, "unknown dtype 'O'"),
        ({"w": entry(dtype=["F32"])}, b"\0" * 8, r"unknown dtype \['F32'\]"),
        ({"w": entry(dtype=None)}, b"\0" * 8, "unknown dtype None"),
        ({"w": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "by something else than"),
        ({"w": {**entry(), "more": 1}}, b"\0" * 8, "by something else than"),
        ({"w": 5}, b"", "by something else than"),
        ({"w": entry("BOOL", [2], [0, 2])}, b"\1\2", "booleans that are neither 0 nor 1"),
    ],
)
def test_hostile_arrays(tmp_path, entries, data, words):
    path = crafted(tmp_path / "m", entries, data)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ('{"a": NaN}', "metadata with NaN, which JSON does not know"),
        ('{"a": -Infinity}', "metadata with -Infinity"),
        ('{"a": 1, "a": 2}', "metadata with a key twice"),
        ('{"a": {"b": 1, "b": 1}}', "metadata with a key twice"),
        ("[" * 200_000, "metadata that is nested too deeply"),
        ('{"a":' * 200_000, "metadata that is nested too deeply"),
        ('{"a": ' + "1" * 100_000 + "}", "metadata that is not JSON"),
        ("[]", "metadata that is not a JSON object"),
        ("", "metadata that is not JSON"),
        ("{} {}", "metadata that is not JSON"),
    ],
)
def test_hostile_metadata(tmp_path, metadata, words):
    path = crafted(tmp_path / "m", {}, metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"sensorium": "2", "sha256": "0" * 64, "metadata": "{}"},
            "is of format '2', this version reads '1'",
        ),
        ({"sensorium": "1", "metadata": "{}"}, "lacks 'sha256'"),
        ({"sensorium": "1", "sha256": "0" * 64}, "lacks 'metadata'"),
        ({"sensorium": "1", "sha256": 5, "metadata": "{}"}, "lacks 'sha256'"),
        ({"sensorium": "1", "sha256": "", "metadata": "{}"}, "no SHA-256"),
        ({"sensorium": "1", "sha256": "ß" * 64, "metadata": "{}"}, "no SHA-256"),
        ({"format": "pt"}, "sensorium did not write"),
    ],
)
def test_hostile_own_metadata(tmp_path, own, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(crafted(tmp_path / "m", {}, own=own))


def test_a_crafted_file_that_is_right_loads(tmp_path):
    """The files above are refused for what is wrong with them: the same file with nothing wrong is read."""
    path = crafted(tmp_path / "m", {"w": entry()}, np.array([1, 2], "<f4").tobytes(), '{"a": 1}')
    arrays, metadata = checkpoint.load(path)
    assert arrays["w"].tolist() == [1, 2]
    assert metadata == {"a": 1}


def test_keys_twice_in_the_header(tmp_path):
    text = '{"__metadata__":{"sensorium":"1","sha256":"%s","metadata":"{}"},"w":%s,"w":%s}'
    text %= ("0" * 64, json.dumps(entry()), json.dumps(entry()))
    with pytest.raises(CheckpointError, match="header with a key twice"):
        checkpoint.load(crafted(tmp_path / "m", text.encode(), b"\0" * 8))


def test_a_deeply_nested_header(tmp_path):
    with pytest.raises(CheckpointError, match="header that is nested too deeply"):
        checkpoint.load(crafted(tmp_path / "m", b'{"a":' * 300_000))


def test_not_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="is not a file"):
            checkpoint.load(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "nothing")


MEMORY = """
import resource, sys
import numpy as np
from sensorium import CheckpointError, checkpoint

with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (32 << 20), now + (32 << 20)))
for path in sys.argv[1:]:
    try:
        checkpoint.load(path)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_no_large_allocation(tmp_path):
    """With 32 MiB of address space to spare each of these is refused in words, not by MemoryError."""
    length, header, shape, sparse, zeros = (tmp_path / f"m{i}" for i in range(5))
    length.write_bytes((1 << 33).to_bytes(8, "little") + b"{}")
    header.write_bytes((1 << 33).to_bytes(8, "little"))
    os.truncate(header, 1 << 34)  # the header is as long as it says, and all holes
    crafted(shape, {"w": entry("F64", [1 << 40], [0, 8 << 40])}, b"\0" * 8)
    crafted(sparse, {"w": entry("F64", [1 << 30], [0, 8 << 30])})
    os.truncate(sparse, sparse.stat().st_size + (8 << 30))  # the data is as long as it says, and all holes
    crafted(zeros, {f"w{i}": entry("F32", [0, 1 << 40], [0, 0]) for i in range(1000)}, b"1")
    files = [str(path) for path in (length, header, shape, sparse, zeros)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *files],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    assert [line.split(":")[0] for line in refusals] == files
    for line, words in zip(
        refusals,
        [
            "no safetensors file",
            "at most 16777216 are read",
            "is truncated",
            "more than memory holds",
            "1 bytes of data",
        ],
        strict=True,
    ):
        assert words in line


# --- what a model expects ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "m: lacks 'b', 'w'$"),
        ({"w": np.zeros((2, 3), np.float32)}, "m: lacks 'b'$"),
        (
            {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3), "c": np.zeros(1)},
            "m: has 'c', which the model",
        ),
        (
            {"w": np.zeros((3, 2), np.float32), "b": np.zeros(3)},
            r"m: w has shape \(3, 2\), expected \(2, 3\)",
        ),
        ({"w": np.zeros((2, 3)), "b": np.zeros(3)}, "m: w has dtype float64, expected float32"),
    ],
)
def test_check_arrays(arrays, words):
    expected = {"w": ((2, 3), np.float32), "b": ((3,), np.float64)}
    with pytest.raises(CheckpointError, match=words):
        checkpoint.check_arrays("m", arrays, expected)


def test_check_arrays_accepts():
    checkpoint.check_arrays("m", {"w": np.zeros((2, 3), np.int32)}, {"w": ((2, 3), "i4")})
