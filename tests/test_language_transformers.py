"""Beside transformers itself, where it is installed: scores both ways, and the order of what shapes a draw."""

import numpy as np
import pytest
from sensorium.models import language, mamba, mamba2
from sensorium.models._pick import Choice
from test_language_models import random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the two libraries warn of is theirs

BASE = {
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "bos_token_id": None,
    "pad_token_id": None,
}
MAMBA = [
    {},
    {"state_size": 8, "conv_kernel": 2, "use_bias": True},
    {"expand": 1, "use_conv_bias": False, "tie_word_embeddings": False, "time_step_rank": 7},
    {"num_hidden_layers": 1, "hidden_size": 33, "layer_norm_epsilon": 1e-2},
    {"num_hidden_layers": 9, "hidden_size": 16, "state_size": 1},
]
MAMBA2 = [
    {"num_heads": 12, "head_dim": 8, "n_groups": 1},
    {"num_heads": 6, "head_dim": 16, "n_groups": 3, "state_size": 17, "use_bias": True, "chunk_size": 16},
    {"num_heads": 96, "head_dim": 1, "n_groups": 8, "state_size": 5, "tie_word_embeddings": True},
    {"num_heads": 1, "head_dim": 96, "n_groups": 1, "conv_kernel": 3, "use_conv_bias": False},
    {"num_heads": 4, "head_dim": 24, "n_groups": 2, "time_step_limit": (0.005, 0.05), "num_hidden_layers": 6},
]


def made(family, options, seed):
    config, kind = {
        "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
        "mamba2": (transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
    }[family]
    torch.manual_seed(seed)
    theirs = kind(config(**BASE | options)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return theirs


def scores(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens), use_cache=False).logits.float().numpy()


@pytest.mark.parametrize(
    ("family", "options", "dtype"),
    [("mamba", o, "float32") for o in MAMBA]
    + [("mamba2", o, "float32") for o in MAMBA2]
    + [("mamba", MAMBA[1], "bfloat16"), ("mamba2", MAMBA2[1], "float16")],
)
def test_scores_both_ways(family, options, dtype, tmp_path):
    theirs = made(family, options, 0).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    ours = language.load(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(0, 101, (2, 77))
    want = scores(theirs.float(), tokens)
    assert np.abs(ours.logits(tokens) - want).max() < 1e-4 * max(1.0, np.abs(want).max())
    state = ours.new_state(2)
    streamed = np.concatenate([ours.scores(tokens[:, i : i + 1], state) for i in range(77)], axis=1)
    assert np.abs(streamed - want).max() < 1e-4 * max(1.0, np.abs(want).max())

    ours.save(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert np.abs(scores(again, tokens) - want).max() < (
        1e-5 if dtype == "float32" else 0.05 * np.abs(want).max()
    )


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_model_of_ours_is_one_of_theirs(family, tmp_path):
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "tokenizer": "bytes"}
    config = mamba.Config(**sizes) if family == "mamba" else mamba2.Config(**sizes, head_dim=16, state_size=8)
    ours = random_model(config)
    ours.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = list(b"The ")
    tokens = ours.generate("The ", max_new_tokens=20, temperature=0).tokens[0]
    want = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
    assert tokens == want.tolist()
    assert language.load(tmp_path).tokenizer is not None


def test_draws_are_shaped_as_theirs():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(200).astype(np.float32) * 3
    for penalty, temperature, k, p in [
        (1.0, 0.7, 20, 1.0),
        (1.3, 1.0, 50, 0.9),
        (0.8, 1.5, 200, 0.5),
        (2.0, 0.2, 3, 0.99),
    ]:
        seen = rng.integers(0, 200, 30)
        x = torch.from_numpy(scores)[None].clone()
        ids = torch.from_numpy(seen)[None]
        for step in (
            transformers.RepetitionPenaltyLogitsProcessor(penalty),
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(k),
            transformers.TopPLogitsWarper(p),
        ):
            x = step(ids, x)
        want = torch.softmax(x[0].double(), 0).numpy()
        held = np.zeros(200, np.bool_)
        held[seen] = True
        ours = Choice(temperature, k, p, penalty)
        shaped = scores.copy()
        shaped[held] = np.where(shaped[held] > 0, shaped[held] / penalty, shaped[held] * penalty)
        tokens, share = ours.distribution(shaped)
        got = np.zeros(200)
        got[tokens] = share
        np.testing.assert_allclose(got, want, atol=1e-6)
