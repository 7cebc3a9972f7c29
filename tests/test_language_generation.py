"""Writing on: the tokens that full recomputation gives, draws from the right distribution, nothing lost."""

import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium import ArgumentError, DTypeError
from sensorium.models import language, mamba
from sensorium.models._generation import CallbackError
from sensorium.models._pick import Choice
from sensorium.models._text import ByteTokenizer, TextStream
from test_language_models import CONFIGS, random_model

BYTES = mamba.Config(
    vocab_size=256, hidden_size=16, num_hidden_layers=1, state_size=4, tokenizer="bytes", eos_token_id=(0,)
)


@pytest.fixture(scope="module", params=["mamba-other", "mamba2"])
def model(request):
    return random_model(CONFIGS[request.param])


def recomputed(model, prompt, count, choose):
    """Each token from the scores of everything before it, computed anew."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(choose(model.logits(tokens)[-1], tokens))
    return tokens[len(prompt) :]


def test_streaming_equals_full_recomputation(model):
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    greedy = model.generate(prompt, max_new_tokens=20, temperature=0)
    assert greedy.tokens == [recomputed(model, prompt, 20, lambda s, _: int(s.argmax()))]
    assert greedy.reasons == ["length"]
    assert not greedy.interrupted

    def penalised(scores, tokens):
        scores = scores.copy()
        for token in set(tokens):
            scores[token] = scores[token] / 9 if scores[token] > 0 else scores[token] * 9
        return int(scores.argmax())

    careful = model.generate(prompt, max_new_tokens=20, temperature=0, repetition_penalty=9.0)
    assert careful.tokens == [recomputed(model, prompt, 20, penalised)]
    assert careful.tokens != greedy.tokens

    rng = np.random.default_rng([7, 0])

    def drawn(scores, _):
        p = np.exp(scores.astype(np.float64) / 0.8)
        return int(np.searchsorted(np.cumsum(p) / p.sum(), rng.random(), side="right"))

    sampled = model.generate(prompt, max_new_tokens=20, temperature=0.8, seed=7)
    assert sampled.tokens == [recomputed(model, prompt, 20, drawn)]


def test_a_row_of_a_batch_is_as_if_alone(model):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [1, 2, 3]]
    how = {"max_new_tokens": 12, "seed": 3, "top_p": 0.9}
    together = model.generate(prompts, **how)
    assert together.tokens[0] != together.tokens[3]  # rows of their own draws
    assert model.generate(prompts[0], **how).tokens[0] == together.tokens[0]
    stopping = model.generate(prompts, **how, stop_tokens=[together.tokens[1][2], together.tokens[2][5]])
    for row, whole, reason in zip(stopping.tokens, together.tokens, stopping.reasons, strict=True):
        assert whole[: len(row)] == row
        assert (len(row) < 12) <= (reason == "stop")
    assert "stop" in stopping.reasons
    on = stopping.resume(max_new_tokens=4)
    for row, whole in zip(on.tokens, together.tokens, strict=True):
        shared = min(len(row), 12)
        assert row[:shared] == whole[:shared]


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_generation_goes_on_as_if_it_had_not_ended(model, cut):
    how = {"seed": 5, "temperature": 1.3, "top_k": 9}
    whole = model.generate([[1, 2], [3, 4, 5]], max_new_tokens=12, **how)
    part = model.generate([[1, 2], [3, 4, 5]], max_new_tokens=cut, **how)
    state = part.state
    scores = model.step([row[-1:] for row in part.tokens], state)  # the caller may go on too
    assert scores.shape == (2, 29)
    assert part.resume(max_new_tokens=12 - cut) is part
    assert part.tokens == whole.tokens
    assert part.resume(max_new_tokens=0).tokens == whole.tokens


def test_nothing_is_lost_where_a_callback_fails(model):
    seen = []

    def fail(row, token, text):
        seen.append((row, token, text))
        if len(seen) == 7:
            raise ZeroDivisionError("by hand")

    how = {"seed": 5}
    whole = model.generate([[1, 2], [3]], max_new_tokens=10, **how)
    with pytest.raises(CallbackError, match="on_token raised ZeroDivisionError: by hand") as caught:
        model.generate([[1, 2], [3]], max_new_tokens=10, on_token=fail, **how)
    kept = caught.value.generation
    assert kept.tokens == [row[:4] for row in whole.tokens]
    assert [(row, token) for row, token, _ in seen] == [
        (i, whole.tokens[i][t]) for t in range(4) for i in range(2)
    ][:7]
    assert {text for *_, text in seen} == {""}
    assert kept.resume(max_new_tokens=6).tokens == whole.tokens


def test_a_callback_may_end_it(model):
    whole = model.generate([1], max_new_tokens=10)
    ended = model.generate([1], max_new_tokens=10, on_token=lambda row, token, text: False)
    assert ended.interrupted
    assert ended.tokens == [whole.tokens[0][:1]]
    ended.resume(max_new_tokens=9)
    assert not ended.interrupted
    assert ended.tokens == whole.tokens


@pytest.mark.skipif(os.name == "nt", reason="signals to itself")
def test_ctrl_c_keeps_what_was_written(model):
    whole = model.generate([1, 2, 3], max_new_tokens=10)
    calls = []

    def press(row, token, text):
        calls.append(token)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    ended = model.generate([1, 2, 3], max_new_tokens=10, on_token=press)
    assert ended.interrupted
    assert ended.tokens == [whole.tokens[0][:4]]
    assert ended.resume(max_new_tokens=6).tokens == whole.tokens


@pytest.mark.skipif(os.name == "nt", reason="signals to itself")
def test_ctrl_c_while_a_prompt_is_read(model, monkeypatch):
    monkeypatch.setattr("sensorium.models._generation.PIECE", 4)
    prompt = list(range(20))
    whole = model.generate(prompt, max_new_tokens=5)
    step = type(model).step

    def pressed(self, tokens, state):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, tokens, state)

    monkeypatch.setattr(type(model), "step", pressed)
    ended = model.generate(prompt, max_new_tokens=5)
    assert ended.interrupted
    assert ended.tokens == [[]]
    monkeypatch.setattr(type(model), "step", step)
    assert ended.resume(max_new_tokens=5).tokens == whole.tokens


def test_stop_sequences(model):
    whole = model.generate([1, 2, 3], max_new_tokens=30, temperature=1.5).tokens[0]
    sequence = whole[6:9]
    first = next(i for i in range(len(whole)) if whole[i : i + 3] == sequence)
    ended = model.generate([1, 2, 3], max_new_tokens=30, temperature=1.5, stop=[[28, 28, 28], sequence])
    assert ended.tokens == [whole[: first + 3]]
    assert ended.reasons == ["stop"]


def test_arguments_that_cannot_be_used_are_named(model):
    cases = [
        (([],), {}, "prompt\\[0\\] holds no token"),
        (([[1], []],), {}, "prompt\\[1\\] holds no token"),
        (([1, 29],), {}, "prompt\\[0\\] holds 29"),
        (("abc",), {}, "prompt is text, but the model has no tokeniser"),
        (([1],), {"temperature": -1}, "temperature must not be negative"),
        (([1],), {"top_k": 0}, "top_k must be at least 1"),
        (([1],), {"top_p": 0}, "top_p must be above 0"),
        (([1],), {"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        (([1],), {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        (([1],), {"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        (([1],), {"seed": -1}, "seed must be at least 0"),
        (([1],), {"stop": ["a"]}, "stop\\[0\\] is text"),
        (([1],), {"stop": [[]]}, "stop\\[0\\] is empty"),
        (([1],), {"stop_tokens": [-1]}, "stop_tokens must be at least 0"),
    ]
    for args, options, words in cases:
        with pytest.raises(ArgumentError, match=words):
            model.generate(*args, **options)
    with pytest.raises(DTypeError, match="mixes texts and tokens"):
        model.generate(["a", [1]])
    with pytest.raises(DTypeError, match="max_new_tokens must be an integer"):
        model.generate([1], max_new_tokens=1.5)
    with pytest.raises(ArgumentError, match="has no tokeniser"):
        _ = model.generate([1], max_new_tokens=1).texts


def test_scores_that_are_not_finite_are_an_error():
    model = random_model(CONFIGS["mamba"])
    model.params["norm_f"]["weight"][:] = np.nan
    for temperature in (0, 1):
        with pytest.raises(ArgumentError, match="not finite"):
            model.generate([1], temperature=temperature)


# --- text ---------------------------------------------------------------------------------------------


def test_text_goes_in_and_comes_out():
    model = random_model(BYTES)
    pieces = []
    made = model.generate("é!", max_new_tokens=40, stop_tokens=[], on_token=lambda *a: pieces.append(a[2]))
    assert made.tokens == model.generate(list("é!".encode()), max_new_tokens=40, stop_tokens=[]).tokens
    assert "".join(pieces) == made.texts[0] == bytes(made.tokens[0]).decode("utf-8", "replace")
    two = model.generate(["a", "bc"], max_new_tokens=3)
    assert [len(row) for row in two.tokens] == [3, 3]
    with pytest.raises(ArgumentError, match="holds no token"):
        model.generate("")


def test_a_text_ends_a_row_wherever_tokens_are_cut():
    model = random_model(BYTES)
    # A model that writes what it read: the head's scores of the next byte are set by hand.
    script = list("naïve café, naïve café".encode())
    replayed = iter(range(len(script)))

    class Replay(type(model)):
        def step(self, tokens, state):
            super().step(tokens, state)
            scores = np.zeros((1, 256), np.float32)
            scores[0, script[next(replayed)]] = 9
            return scores

    model = Replay(model.config, model.params)
    made = model.generate("x", temperature=0, stop="fé", max_new_tokens=len(script))
    assert made.texts == ["naïve café"]
    assert made.reasons == ["stop"]
    made.resume(max_new_tokens=100, on_token=None)
    assert made.texts == ["naïve café, naïve café"]


@given(st.text(max_size=30), st.integers(0, 2**32))
def test_pieces_of_text_are_the_text(text, seed):
    tokens = list(text.encode("utf-8", "surrogatepass"))
    stream = TextStream(ByteTokenizer())
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.flush() == ByteTokenizer().decode(tokens)


def test_bytes_that_are_no_text_come_out_too():
    stream = TextStream(ByteTokenizer())
    tokens = [0xFF] * 40 + [65]
    text = "".join(map(stream.push, tokens)) + stream.flush()
    assert text == ByteTokenizer().decode(tokens)


def test_a_folder_with_a_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 3, "on": 4, "mat": 5}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    random_model(CONFIGS["mamba"]).save(tmp_path)
    inner.save(str(tmp_path / "tokenizer.json"))
    model = language.load(tmp_path)
    made = model.generate("the cat sat", max_new_tokens=8, seed=1)
    assert made.tokens == model.generate([1, 2, 3], max_new_tokens=8, seed=1).tokens
    assert made.texts == [inner.decode(made.tokens[0])]


# --- draws --------------------------------------------------------------------------------------------


@given(st.data())
def test_what_top_k_and_top_p_leave(data):
    size = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores = rng.integers(-4, 5, size) * data.draw(st.sampled_from([0.5, 3.0, 40.0]))  # with ties
    k = data.draw(st.none() | st.integers(1, 70))
    p = data.draw(st.none() | st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]))
    temperature = data.draw(st.sampled_from([0.3, 1.0, 5.0]))
    tokens, share = Choice(temperature, k, p).distribution(scores.astype(np.float32))

    order = sorted(range(size), key=lambda i: (-scores[i], i))[:k]
    weight = np.exp((scores[order] - scores.max()) / temperature)
    weight /= weight.sum()
    if p is not None:
        before = np.cumsum(weight) - weight
        kept = before < p - 1e-12
        order, weight = np.array(order)[kept], weight[kept]
    want = dict(zip(map(int, order), weight / weight.sum(), strict=True))
    got = dict(zip(map(int, tokens), share, strict=True))
    borderline = p is not None and np.any(np.abs(before + want_step(weight, before) - p) < 1e-9)
    if not borderline:
        assert {t: pytest.approx(q, abs=1e-12) for t, q in want.items() if q > 0} == {
            t: q for t, q in got.items() if q > 0
        }
    assert sum(got.values()) == pytest.approx(1)


def want_step(weight, before):
    return np.resize(weight, before.shape)


def test_the_largest_are_found_without_sorting_all(monkeypatch):
    monkeypatch.setattr("sensorium.models._pick._FEW", 4)
    scores = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    for choice in (Choice(1.0, None, 0.3), Choice(1.0, 40, 0.99), Choice(1.0, 3, 0.5), Choice(2.0, 30)):
        few = choice.distribution(scores)
        with monkeypatch.context() as patch:
            patch.setattr("sensorium.models._pick._FEW", 10**6)
            every = choice.distribution(scores)
        np.testing.assert_array_equal(few[0], every[0])
        np.testing.assert_allclose(few[1], every[1], rtol=1e-12)


def test_draws_have_the_probabilities_that_they_should():
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng, seen = np.random.default_rng(0), np.zeros(4, np.bool_)
    count = np.bincount([Choice(1.0, None, 0.9).pick(scores, seen, rng) for _ in range(20_000)], minlength=4)
    want = np.array([0.5, 0.3, 0.15, 0]) / 0.95
    sigma = np.sqrt(20_000 * want * (1 - want))
    assert np.all(np.abs(count - 20_000 * want) <= 4.5 * sigma)


def test_extreme_scores_are_drawn_from_too():
    rng, seen = np.random.default_rng(0), np.zeros(3, np.bool_)
    assert Choice(1e-300).pick(np.array([0, 1, 2], np.float32), seen, rng) == 2
    assert Choice().pick(np.array([-np.inf, 0, -np.inf], np.float32), seen, rng) == 1
    assert Choice(1e9, 1).pick(np.array([0, 1, 2], np.float32), seen, rng) == 2
    for bad in ([np.nan, 0, 1], [-np.inf] * 3, [np.inf, 0, 0]):
        with pytest.raises(ArgumentError, match="not finite"):
            Choice().pick(np.array(bad, np.float32), seen, rng)
