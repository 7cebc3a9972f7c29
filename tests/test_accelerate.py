"""Models of transformers on the kernels: the same logits, gradients, tokens and caches, and the way back."""

import contextlib
import copy
import inspect
import io
import re
import sys
from pathlib import Path

import pytest
import sensorium

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)
from sensorium.torch import accelerate  # noqa: E402 - needs torch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
transformers.logging.set_verbosity_error()

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
KINDS = {
    "mamba": ("Mamba", {"state_size": 4}),
    "mamba, biases, odd sizes": ("Mamba", {"state_size": 5, "use_bias": True, "conv_kernel": 3, "expand": 3}),
    "mamba, no bias, gelu": ("Mamba", {"state_size": 4, "use_conv_bias": False, "hidden_act": "gelu"}),
    "mamba2": ("Mamba2", {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}),
    "mamba2, groups, biases": (
        "Mamba2",
        {"state_size": 6, "num_heads": 8, "head_dim": 4, "n_groups": 2, "chunk_size": 8, "use_bias": True},
    ),
}
if hasattr(transformers, "FalconMambaConfig"):
    KINDS["falcon mamba"] = ("FalconMamba", {"state_size": 4})


def made(kind, dtype=torch.float32, head="ForCausalLM"):
    """A model with weights large enough for states to matter."""
    family, sizes = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def some(batch=2, length=13, seed=0):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(length=13, pads=(0, 5)):
    mask = torch.ones(len(pads), length, dtype=torch.long)
    for row, pad in zip(mask, pads, strict=True):
        row[:pad] = 0
    return mask


def logits(model, tokens, mask=None, **how):
    with torch.no_grad():
        return model(tokens, attention_mask=mask, use_cache=False, **how).logits


def greedy(model, tokens, mask=None, **how):
    mask = torch.ones_like(tokens) if mask is None else mask
    how = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, **how}
    return model.generate(tokens, attention_mask=mask, **how)


def loss_and_gradients(model, tokens, mask=None):
    model.train()
    model.zero_grad()
    loss = model(tokens, attention_mask=mask, labels=tokens).loss
    loss.backward()
    model.eval()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


# The same as before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, padded()], ids=["whole rows", "padded on the left"])
def test_logits_are_those_of_before(kind, mask):
    model = made(kind)
    want = logits(model, some(), mask)
    with accelerate(model) as acceleration:
        got = logits(model, some(), mask)
        assert len(acceleration.layers) == 2
    seen = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(got[seen], want[seen], rtol=0, atol=1e-4)
    assert want.std() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_before(kind):
    mask = padded()
    model = made(kind).double()
    want = loss_and_gradients(model, some(), mask)
    with accelerate(model):
        got = loss_and_gradients(model, some(), mask)
    # transformers computes exp(A dt) in float32 in a model of any dtype.
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    model = model.float()
    with accelerate(model):
        single = loss_and_gradients(model, some(), mask)
    for ours, double in zip(single, got, strict=True):
        error = (ours.double() - double.double()).abs().max()
        assert error <= 1e-3 * double.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_before(kind):
    model = made(kind)
    want = [greedy(model, some(), padded()), greedy(model, some(1, 5)), greedy(model, some(), num_beams=3)]
    with accelerate(model):
        got = [greedy(model, some(), padded()), greedy(model, some(1, 5)), greedy(model, some(), num_beams=3)]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert len({tuple(row.tolist()) for row in want[0][:, 13:]}) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_generating_is_reading_again(kind, length):
    """Tokens one at a time, from a prompt shorter than the convolution: as if all of it were read anew."""
    model = made(kind)
    with accelerate(model):
        tokens = greedy(model, some(2, length), max_new_tokens=6)
        for end in range(length, length + 6):
            next_tokens = logits(model, tokens[:, :end])[:, -1].argmax(-1)
            torch.testing.assert_close(next_tokens, tokens[:, end], rtol=0, atol=0)


def test_limits_of_step_sizes_hold_for_steps_as_well():
    """Which transformers forgets in generation."""
    model = made("mamba2")
    tokens = some(2, 9)
    for layer in model.backbone.layers:
        layer.mixer.time_step_limit = (0.2, 0.3)
    with accelerate(model):
        want = logits(model, tokens)
        pieces, cache = [], None
        for i in range(9):
            got, cache = read(model, tokens[:, i : i + 1], cache)
            pieces.append(got)
    torch.testing.assert_close(torch.cat(pieces, 1), want, rtol=0, atol=1e-5)
    for layer in model.backbone.layers:
        layer.mixer.time_step_limit = (0.0, float("inf"))
    assert (logits(model, tokens) - want).abs().max() > 1e-2


# Caches


def read(model, tokens, cache=None):
    """Logits and the cache after tokens, under whichever names this version has for its arguments."""
    takes = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in takes else "cache_params"
    how = {"use_cache": True}
    if cache is not None:
        how[name] = cache
        if "cache_position" in takes:
            how["cache_position"] = torch.tensor([99])  # any but the first: older versions ask that alone
    with torch.no_grad():
        out = model(tokens, **how)
    return out.logits, getattr(out, name)


def states(cache):
    if hasattr(cache, "ssm_states"):
        return [*cache.conv_states, *cache.ssm_states]
    return [
        state[0] if isinstance(state, dict | list) else state
        for layer in cache.layers
        for state in (layer.conv_states, layer.recurrent_states)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_caches_hold_what_they_held_before(kind):
    model = made(kind)
    kept = []
    for context in (contextlib.nullcontext(), accelerate(model)):
        with context:
            _, cache = read(model, some(2, 9))
            kept.append([state.clone() for state in states(cache)])
            for step in range(3):
                _, cache = read(model, some(2, 1, seed=step), cache)
            kept.append([state.clone() for state in states(cache)])
    for before, now in ((kept[0], kept[2]), (kept[1], kept[3])):
        for want, got in zip(before, now, strict=True):
            assert want.abs().max() > 0
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2, groups, biases"])
def test_a_cache_passes_from_one_path_to_the_other(kind, first):
    model = made(kind)
    tokens = some(2, 12)
    want = logits(model, tokens)
    here, there = accelerate, lambda model: contextlib.nullcontext()
    with (here if first == "ours" else there)(model):
        got, cache = read(model, tokens[:, :7])
    pieces = [got]
    with (there if first == "ours" else here)(model):
        for i in range(7, 12):
            got, cache = read(model, tokens[:, i : i + 1], cache)
            pieces.append(got)
    torch.testing.assert_close(torch.cat(pieces, 1), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(5, 2, 1, 5), (1, 1, 1, 10), (2, 11), (1, 7, 5)])
def test_a_prompt_may_come_in_pieces(kind, cuts):
    """Which transformers itself does not do for Mamba: it begins the state anew with every piece of several."""
    model = made(kind)
    tokens = some()
    with accelerate(model):
        want = logits(model, tokens)
        pieces, cache, start = [], None, 0
        for cut in cuts:
            got, cache = read(model, tokens[:, start : start + cut], cache)
            pieces.append(got)
            start += cut
    torch.testing.assert_close(torch.cat(pieces, 1), want, rtol=0, atol=1e-5)


def test_gradients_flow_through_a_step_where_they_are_asked_for():
    model = made("mamba")
    tokens = some(2, 6)
    with accelerate(model):
        _, cache = read(model, tokens[:, :5])
        takes = inspect.signature(type(model).forward).parameters
        name = "cache" if "cache" in takes else "cache_params"
        position = {"cache_position": torch.tensor([5])} if "cache_position" in takes else {}
        before = [state.clone() for state in states(cache)]
        out = model(tokens[:, 5:], use_cache=True, **{name: cache}, **position)
        out.logits.sum().backward()
    assert model.backbone.layers[0].mixer.x_proj.weight.grad.abs().max() > 0
    assert not any(torch.equal(old, new) for old, new in zip(before, states(cache), strict=True))


# Other dtypes and ways to call


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mamba", "mamba2, groups, biases"])
def test_half_precision_is_as_near_to_single_as_before(kind, dtype):
    model = made(kind, dtype)
    want = logits(copy.deepcopy(model).float(), some())
    theirs = logits(model, some())
    with accelerate(model):
        ours = logits(model, some())
        mixed = model.backbone.layers[0].mixer(torch.ones(1, 3, 16, dtype=dtype))
        tokens = greedy(model, some(), max_new_tokens=3)
        grads = loss_and_gradients(model, some())
    assert mixed.dtype == dtype
    assert all(grad.dtype == dtype for grad in grads[1:])
    assert tokens.shape == (2, 16)
    assert (ours - want).abs().max() <= 1.5 * (theirs - want).abs().max()


def test_double_precision_stays_double():
    model = made("mamba2", torch.float64)
    want = logits(model, some())
    with accelerate(model):
        got = model.backbone(some(), use_cache=False).last_hidden_state
        assert got.dtype == torch.float64
        torch.testing.assert_close(logits(model, some()), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_training_under_autocast(kind):
    model = made(kind)
    want = loss_and_gradients(model, some())
    with accelerate(model), torch.autocast("cpu", torch.bfloat16):
        got = loss_and_gradients(model, some())
    for low, full in zip(got, want, strict=True):
        assert low.dtype == torch.float32
        assert (low - full).abs().max() <= 0.1 * full.abs().max()


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_gradient_checkpointing_gives_the_same(kind):
    model = made(kind)
    with accelerate(model):
        want = loss_and_gradients(model, some())
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        got = loss_and_gradients(model, some())
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_packed_sequences_stay_apart():
    model = made("mamba2", head="Model")
    tokens = some(1, 12)
    seq_idx = torch.tensor([[0] * 5 + [1] * 3 + [2] * 4], dtype=torch.int32)
    with accelerate(model), torch.no_grad():
        packed = model(tokens, seq_idx=seq_idx, use_cache=False).last_hidden_state
        apart = [model(t, use_cache=False).last_hidden_state for t in tokens.split([5, 3, 4], 1)]
        torch.testing.assert_close(packed, torch.cat(apart, 1), rtol=0, atol=1e-5)
        with pytest.raises(sensorium.ArgumentError, match="seq_idx cannot come with a cache: pass use_cache"):
            model(tokens, seq_idx=seq_idx, use_cache=True)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_an_accelerated_model_compiles(kind):
    model = made(kind)
    mixer = model.backbone.layers[0].mixer
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    with accelerate(model):
        parameters, results = list(mixer.parameters()), []
        for call in (mixer, torch.compile(mixer, fullgraph=True, backend="aot_eager")):
            out = call(x)
            results.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# The way back


def forwards(model):
    return [module.__dict__.get("forward") for module in model.modules()]


def test_undo_gives_back_what_there_was():
    model = made("mamba")
    want = logits(model, some())
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    acceleration = accelerate(model)
    assert acceleration.layers == ("backbone.layers.0.mixer", "backbone.layers.1.mixer")
    assert repr(acceleration) == "<Acceleration of 2 layers>"
    assert model.lm_head.forward.__func__ is not type(model.lm_head).forward
    assert not torch.equal(logits(model, some()), want)
    acceleration.undo()
    acceleration.undo()
    assert repr(acceleration) == "<Acceleration of 2 layers, undone>"
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
    assert forwards(model) == [None] * len(forwards(model))
    torch.testing.assert_close(logits(model, some()), want, rtol=0, atol=0)


def test_the_end_of_a_block_undoes_even_after_an_error():
    model = made("mamba2")
    with pytest.raises(KeyError), accelerate(model):
        raise KeyError
    assert forwards(model) == [None] * len(forwards(model))


def test_what_is_accelerated_already_is_left_alone():
    model = made("mamba")
    outer = accelerate(model)
    ours = forwards(model)
    with accelerate(model) as inner:
        assert inner.layers == ()
        assert forwards(model) == ours
    assert forwards(model) == ours
    with accelerate(model.backbone.layers[0]) as part:
        assert part.layers == ()
    outer.undo()
    assert forwards(model) == [None] * len(forwards(model))


def test_a_forward_that_was_patched_before_comes_back():
    model = made("mamba")
    mixer = model.backbone.layers[1].mixer
    theirs = mixer.forward

    def patched(*args, **kwargs):
        return theirs(*args, **kwargs)

    mixer.forward = patched
    with accelerate(model):
        assert mixer.forward is not patched
    assert mixer.forward is patched
    assert "forward" not in model.backbone.layers[0].mixer.__dict__


def test_undo_says_where_another_patch_is_in_the_way():
    model = made("mamba")
    mixer = model.backbone.layers[1].mixer
    acceleration = accelerate(model)
    ours = mixer.forward
    mixer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(sensorium.ArgumentError, match=r"^backbone.layers.1.mixer.forward was replaced after"):
        acceleration.undo()
    mixer.forward = ours
    acceleration.undo()
    assert forwards(model) == [None] * len(forwards(model))


def test_a_copy_is_accelerated_itself_and_a_saved_model_is_not():
    model = made("mamba2")
    want = logits(model, some())
    with accelerate(model):
        ours = logits(model, some())
        twin = copy.deepcopy(model)
        saved = io.BytesIO()
        torch.save(model, saved)
    twin_mixer = twin.backbone.layers[0].mixer
    assert twin_mixer.forward.__self__ is twin_mixer
    torch.testing.assert_close(logits(twin, some()), ours, rtol=0, atol=0)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    torch.testing.assert_close(logits(loaded, some()), want, rtol=0, atol=0)


def test_layers_of_a_larger_module_are_found():
    both = torch.nn.ModuleDict({"one": made("mamba"), "two": made("mamba2", head="Model")})
    with accelerate(both) as acceleration:
        assert acceleration.layers == (
            "one.backbone.layers.0.mixer",
            "one.backbone.layers.1.mixer",
            "two.layers.0.mixer",
            "two.layers.1.mixer",
        )


# Refusals


def test_what_is_no_model_is_refused():
    with pytest.raises(sensorium.DTypeError, match=r"model must be a torch.nn.Module, not str"):
        accelerate("state-spaces/mamba-130m-hf")
    with pytest.raises(sensorium.ArgumentError, match=r"^model has no Mamba layer that accelerate knows$"):
        accelerate(torch.nn.Linear(2, 2))


def test_layers_that_are_not_known_are_named():
    class JumbaMambaMixer(torch.nn.Linear):
        pass

    words = rf"no Mamba layer that accelerate knows, only JumbaMambaMixer of transformers {transformers.__version__}"
    with pytest.raises(sensorium.ArgumentError, match=re.escape(words)):
        accelerate(torch.nn.Sequential(JumbaMambaMixer(2, 2)))


def test_a_mixer_with_a_forward_of_its_own_is_not_touched():
    model = made("mamba")
    kind = type(model.backbone.layers[0].mixer)
    other = type("MyMambaMixer", (kind,), {"forward": lambda self, hidden_states, **how: hidden_states})
    model.backbone.layers[0].mixer.__class__ = other
    with accelerate(model) as acceleration:
        assert acceleration.layers == ("backbone.layers.1.mixer",)


def test_a_model_elsewhere_is_refused_as_a_whole():
    model = made("mamba")
    model.backbone.layers[1].to("meta")
    words = r"backbone\.layers\.1\.mixer\.\w+ is on meta, expected the CPU: move the model with model\.cpu"
    with pytest.raises(sensorium.ArgumentError, match=words):
        accelerate(model)
    assert forwards(model) == [None] * len(forwards(model))


def test_a_mixer_that_lacks_something_is_named():
    model = made("mamba2")
    del model.backbone.layers[0].mixer.norm
    words = (
        f"backbone.layers.0.mixer is a Mamba2Mixer of transformers {transformers.__version__} without norm, "
        "which accelerate does not know: it has been run with 4.57 to 5.24"
    )
    with pytest.raises(sensorium.ArgumentError, match=re.escape(words)):
        accelerate(model)


def test_versions_that_compute_something_else_are_refused(monkeypatch):
    model = made("mamba")
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.45.2")
    with pytest.raises(sensorium.ArgumentError, match=r"is a MambaMixer of transformers 4\.45\.2, which"):
        accelerate(model)


def test_an_unknown_cache_is_named():
    model = made("mamba")
    mixer = model.backbone.layers[0].mixer
    with accelerate(model):
        with pytest.raises(sensorium.ArgumentError, match="cache is a dict, whose states of Mamba layers"):
            mixer(torch.zeros(1, 2, 16), {})
        with pytest.raises(
            sensorium.ArgumentError, match="a mixer takes hidden_states and then arguments by"
        ):
            mixer(torch.zeros(1, 2, 16), None, None, None, None, None, None)


def test_the_page_runs():
    page = Path(__file__).parents[1] / "docs" / "accelerate.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 1
