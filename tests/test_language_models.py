"""Language models of folders: scores as transformers computes them, and files that are not what they say."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from sensorium import ArgumentError, CheckpointError, DTypeError, ShapeError, checkpoint
from sensorium.models import language, mamba, mamba2

DATA = Path(__file__).parent / "data" / "language"
NAMES = sorted(path.name for path in DATA.iterdir())
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def expected(name):
    arrays = safetensors.numpy.load_file(DATA / name / "expected.safetensors")
    return arrays["tokens"], arrays["logits"]


def copied(name, folder):
    """A copy of a folder, to be damaged."""
    target = folder / name
    shutil.copytree(DATA / name, target)
    (target / "expected.safetensors").unlink()
    return target


def change_config(folder, **entries):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_arrays(folder, change):
    arrays = dict(checkpoint.map_arrays(folder / "model.safetensors"))
    change(arrays)
    checkpoint.export(folder / "model.safetensors", arrays)
    return folder


def random_model(config, seed=0, dtype=np.float32):
    """A model whose parameters are all different: norms that are not one, biases that are not zero."""
    rng = np.random.default_rng(seed)
    family = mamba if isinstance(config, mamba.Config) else mamba2
    model = family.Model.init(config, rng)

    def stir(tree):
        return {
            k: stir(v) if isinstance(v, dict) else (v + 0.2 * rng.standard_normal(v.shape)).astype(dtype)
            for k, v in tree.items()
        }

    return family.Model(config, stir(model.params))


SMALL = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 2}
CONFIGS = {
    "mamba": mamba.Config(**SMALL, state_size=3),
    "mamba-other": mamba.Config(
        **SMALL,
        state_size=5,
        expand=3,
        conv_kernel=2,
        time_step_rank=4,
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=False,
        norm="layer",
    ),
    "mamba2": mamba2.Config(**SMALL, state_size=4, head_dim=8),
    "mamba2-groups": mamba2.Config(
        **SMALL,
        state_size=3,
        head_dim=4,
        n_groups=3,
        conv_kernel=3,
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=False,
        time_step_limit=(0.01, 0.05),
        norm_before_gate=True,
        skip_per_channel=True,
    ),
    "mamba2-ungated": mamba2.Config(**SMALL, state_size=4, head_dim=12, gated_norm=False, norm="layer"),
}


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers(name):
    model = language.load(DATA / name)
    tokens, logits = expected(name)
    assert np.abs(model.logits(tokens) - logits).max() < 2e-5  # of scores with a deviation of 1
    wide = language.load(DATA / name, dtype=np.float64)
    assert wide.logits(tokens).dtype == np.float64
    assert np.abs(wide.logits(tokens) - logits).max() < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_matrices_stay_as_they_are_stored(name):
    model = language.load(DATA / name)
    mixer = model.params["layers"]["1"]["mixer"]
    kind = name.rpartition("-")[2]
    stored = kind if kind in ("bfloat16", "float16") else "float32"
    assert model.dtype.name == mixer["in_proj"]["weight"].dtype.name == stored
    assert mixer["A_log"].dtype == np.float32
    base = mixer["out_proj"]["weight"]
    while not isinstance(base, np.memmap):
        base = base.base
        assert base is not None
    assert not mixer["out_proj"]["weight"].flags.writeable


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_streamed_chunked_and_whole_agree(name, dtype):
    model = random_model(CONFIGS[name], dtype=dtype)
    tokens = np.random.default_rng(1).integers(0, 29, (3, 21))
    whole = model.logits(tokens)
    near = {"rtol": 0, "atol": (1e-4 if dtype is np.float32 else 1e-12) * np.abs(whole).max()}
    for cuts in ([1] * 21, [7, 1, 13], [20, 1], [2, 19]):
        state, begin, pieces = model.new_state(3), 0, []
        size = state.nbytes
        for cut in cuts:
            pieces.append(model.scores(tokens[:, begin : begin + cut], state))
            begin += cut
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, **near)
        assert state.nbytes == size
    np.testing.assert_allclose(model.step(tokens, model.new_state(3)), whole[:, -1], **near)
    np.testing.assert_allclose(language.logits(model.params, model.config, tokens), whole, **near)


def test_a_long_text_is_read_in_pieces(monkeypatch):
    model = random_model(CONFIGS["mamba"])
    tokens = np.random.default_rng(1).integers(0, 29, (2, 50))
    state = model.new_state(2)
    whole = model.step(tokens, state)
    monkeypatch.setattr(language, "PREFILL", 7)
    again = model.new_state(2)
    np.testing.assert_allclose(model.step(tokens, again), whole, rtol=0, atol=1e-4)
    for a, b in zip(state.layers, again.layers, strict=True):
        np.testing.assert_allclose(a["ssm"], b["ssm"], rtol=0, atol=1e-4)


def test_states_are_taken_joined_and_copied():
    model = random_model(CONFIGS["mamba2"])
    tokens = np.random.default_rng(1).integers(0, 29, (3, 5))
    state = model.new_state(3)
    model.step(tokens, state)
    kept = state.copy()
    picked = language.State.join([state.take([2]), state.take([0, 0])])
    want = model.step(tokens[:, :1], state)
    got = model.step(tokens[[2, 0, 0], :1], picked)
    np.testing.assert_allclose(got, want[[2, 0, 0]], atol=1e-5)
    np.testing.assert_array_equal(model.step(tokens[:, :1], kept), want)
    with pytest.raises(ArgumentError, match="states is empty"):
        language.State.join([])


def test_packed_texts_do_not_see_each_other():
    for name in ("mamba", "mamba2"):
        model = random_model(CONFIGS[name])
        tokens = np.random.default_rng(1).integers(0, 29, (1, 12))
        apart = np.concatenate([model.logits(tokens[:, :5]), model.logits(tokens[:, 5:])], axis=1)
        index = np.array([[0] * 5 + [1] * 7])
        packed = language.logits(model.params, model.config, tokens, seq_idx=index)
        np.testing.assert_allclose(packed, apart, atol=1e-4)
        packed = language.logits(model.params, model.config, tokens, cu_seqlens=[0, 5, 12])
        np.testing.assert_allclose(packed, apart, atol=1e-4)


def test_tokens_are_checked():
    model = random_model(CONFIGS["mamba"])
    state = model.new_state(2)
    assert model.logits([1, 2, 3]).shape == (3, 29)
    assert model.logits(np.zeros((2, 0), int)).shape == (2, 0, 29)
    assert model.logits(np.zeros((0, 4), int)).shape == (0, 4, 29)
    with pytest.raises(ArgumentError, match="tokens holds 29, expected indices from 0 to 28"):
        model.logits([29])
    with pytest.raises(DTypeError, match="tokens has dtype float64"):
        model.logits([0.5])
    with pytest.raises(ShapeError, match=r"tokens has shape \(1, 1, 1\)"):
        model.logits([[[1]]])
    with pytest.raises(ShapeError, match="tokens has B=1 but state has B=2"):
        model.step([[1]], state)
    with pytest.raises(ShapeError, match="expected at least one"):
        model.step([[], []], state)
    with pytest.raises(DTypeError, match="not one of mamba2"):
        mamba2.Model(CONFIGS["mamba"], {})


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", ["mamba-options", "mamba2-options"])
def test_a_saved_model_loads_as_it_was(name, dtype, tmp_path):
    model = language.load(DATA / name, dtype=dtype)
    model.save(tmp_path / "saved")
    again = language.load(tmp_path / "saved")
    assert again.config == model.config
    assert again.dtype == np.dtype(dtype)
    tokens, _ = expected(name)
    want = model.logits(tokens)
    if np.dtype(dtype).itemsize > 2:
        np.testing.assert_array_equal(again.logits(tokens), want)
    else:  # a file holds everything in the one dtype, norms and biases too
        np.testing.assert_allclose(again.logits(tokens), want, atol=0.1)
    text = safetensors.safe_open(tmp_path / "saved" / "model.safetensors", "numpy")
    assert text.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_authors_own_naming_loads(name, tmp_path):
    folder = copied(name, tmp_path)
    config = {
        "d_model": 16,
        "n_layer": 2,
        "vocab_size": 50,
        "pad_vocab_size_multiple": 53,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "ssm_cfg": {"d_state": 4},
    }
    if name == "mamba2":
        config |= {"ssm_cfg": {"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 1}}
        config |= {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}, "tie_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))

    def rename(arrays):
        table = arrays.pop("backbone.embeddings.weight")
        arrays["backbone.embedding.weight"] = arrays["lm_head.weight"] = table

    change_arrays(folder, rename)
    model = language.load(folder)
    tokens, logits = expected(name)
    assert np.abs(model.logits(tokens) - logits).max() < 2e-5
    assert model.config.eos_token_id == (0,)

    change = {"attn_layer_idx": [1]}, {"d_intermediate": 64}, {"ssm_cfg": config["ssm_cfg"] | {"lora": 3}}
    for entries, words in zip(change, ["attn_layer_idx", "d_intermediate", "'lora'"], strict=True):
        (folder / "config.json").write_text(json.dumps(config | entries))
        with pytest.raises(CheckpointError, match=f"config.json: .*{words}"):
            language.load(folder)


def test_pickles_are_refused_with_the_way_out(tmp_path):
    folder = copied("mamba", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a pickle, which can run any code.*weights_only=True"):
        language.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has neither model"):
        language.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("backbone.norm_f.weight"), "lacks backbone.norm_f.weight"),
        (lambda a: a.update(extra=np.zeros(1)), "has extra, which its config.json does not tell of"),
        (
            lambda a: a.update({"backbone.layers.1.mixer.D": np.zeros(3, np.float32)}),
            r"backbone.layers.1.mixer.D has shape \(3,\), expected \(32,\)",
        ),
        (
            lambda a: a.update({"backbone.layers.1.mixer.D": np.zeros(32, np.int32)}),
            "backbone.layers.1.mixer.D has dtype int32",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        language.load(change_arrays(copied("mamba", tmp_path), change))


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("mamba", {"model_type": "llama"}, "type 'llama', expected 'mamba' or 'mamba2'"),
        ("mamba", {"model_type": ...}, "type None"),
        ("mamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu' or 'swish'"),
        ("mamba", {"hidden_size": "16"}, "hidden_size is '16', expected int"),
        ("mamba", {"hidden_size": ...}, "lacks hidden_size"),
        ("mamba", {"hidden_size": 32}, "expected"),
        ("mamba", {"hidden_size": -1}, "hidden_size must be at least 1"),
        ("mamba", {"num_hidden_layers": 10**12}, "describes 1000000000000 layers but holds"),
        ("mamba", {"num_hidden_layers": 1}, "has backbone.layers.1"),
        ("mamba", {"use_bias": 1}, "use_bias is 1, expected bool"),
        ("mamba", {"use_bias": True}, "lacks backbone.layers.0.mixer.in_proj.bias"),
        ("mamba", {"expand": 1e-9}, "no channels"),
        ("mamba", {"time_step_rank": 0}, "time_step_rank must be at least 1"),
        ("mamba", {"time_step_rank": "one"}, "time_step_rank must be an integer"),
        ("mamba", {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon must not be negative"),
        ("mamba", {"eos_token_id": "</s>"}, "eos_token_id must be an integer"),
        ("mamba", {"sensorium": {"tokenizer": "words"}}, "tokenizer is 'words'"),
        ("mamba", {"sensorium": {"tokenizer": "bytes"}}, "needs a vocab_size of 256"),
        ("mamba2", {"head_dim": 7}, "head_dim=7 does not divide"),
        ("mamba2", {"n_groups": 3}, "n_groups=3 does not divide"),
        ("mamba2", {"n_groups": "1"}, "n_groups must be an integer"),
        ("mamba2", {"num_heads": 5}, "num_heads is 5"),
        ("mamba2", {"time_step_limit": [1, 0]}, "time_step_limit must be two rising numbers"),
        ("mamba2", {"time_step_limit": [0, "much"]}, "time_step_limit must be a number"),
        ("mamba2", {"time_step_limit": 3}, "expected two numbers"),
    ],
)
def test_configurations_that_cannot_be_used_are_named(name, entries, words, tmp_path):
    folder = copied(name, tmp_path)
    change_config(folder, **entries)
    with pytest.raises(CheckpointError, match=words):
        language.load(folder)


def test_infinity_has_several_spellings(tmp_path):
    folder = copied("mamba2", tmp_path)
    tokens, logits = expected("mamba2")
    for limit in ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}], ..., None):
        change_config(folder, time_step_limit=limit)
        assert np.abs(language.load(folder).logits(tokens) - logits).max() < 2e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update({next(iter(m)): "../other.safetensors"}), "expected a file beside it"),
        (lambda m: m.update({next(iter(m)): 7}), "expected a file beside it"),
        (
            lambda m: m.update({next(iter(m)): "gone.safetensors"}),
            "names gone.safetensors, which is not there",
        ),
        (lambda m: m.update({"more": next(iter(m.values()))}), "lacks 'more'"),
        (lambda m: m.pop(next(iter(m))), "does not place there"),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files(change, words, tmp_path):
    folder = copied("mamba-options", tmp_path)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        language.load(folder)


def test_what_is_no_folder_of_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        language.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no config"):
        language.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        language.load(tmp_path)
    folder = copied("mamba", tmp_path)
    with pytest.raises(CheckpointError, match="of type 'mamba', not 'mamba2'"):
        mamba2.Model.load(folder)
    with pytest.raises(DTypeError, match="dtype must be one of"):
        language.load(folder, dtype=np.int8)
    (folder / "tokenizer.json").write_text("{}")
    pytest.importorskip("tokenizers")
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be used"):
        language.load(folder)


def test_options_that_others_do_not_know_are_not_saved(tmp_path):
    for name in ("mamba-other", "mamba2-groups", "mamba2-ungated"):
        with pytest.raises(ArgumentError, match="cannot be written"):
            random_model(CONFIGS[name]).save(tmp_path)
    assert not list(tmp_path.iterdir())
