"""Whole calls of test-time-training layers, and how much rounding may move their results."""

import contextlib
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from reference import ttt as reference
from sensorium import _core, ops
from sensorium.ops import TTTState
from strategies import FORMS, in_form

NAMES = {
    1: ("q", "k", "v", "eta", "W", "b", "norm_weight", "norm_bias"),
    2: ("q", "k", "v", "eta", "W1", "b1", "W2", "b2", "norm_weight", "norm_bias"),
}
SLACK = 4  # For second-order terms, and for a random perturbation that is not the worst one.


@contextlib.contextmanager
def at_level(level):
    """Run with one instruction set."""
    before = _core.isa_level()
    assert _core.set_isa(level) == level
    try:
        yield
    finally:
        _core.set_isa(before)


@dataclass
class Case:
    """Arguments of a call, in float64; `layers` is 1 for TTT-Linear and 2 for TTT-MLP."""

    layers: int
    arrays: dict
    token_scale: np.ndarray | None
    mini_batch_size: int
    eps: float
    state: TTTState | None
    about: str = ""

    def __repr__(self):
        shapes = {name: a.shape for name, a in self.arrays.items()}
        position = None if self.state is None else self.state.position
        return f"{self.about} {shapes} b={self.mini_batch_size} position={position} eps={self.eps}"

    def _repr_pretty_(self, printer, cycle):  # Hypothesis would print all numbers.
        printer.text(repr(self))

    @property
    def weights(self):
        return [self.arrays[name] for name in NAMES[self.layers][4:-2]]

    @property
    def length(self):
        return self.arrays["q"].shape[2]

    def to(self, dtype):
        state = self.state
        if state is not None:
            state = TTTState(
                tuple(a.astype(dtype) for a in state.weights),
                tuple(a.astype(dtype) for a in state.sums),
                state.position,
            )
        scale = None if self.token_scale is None else self.token_scale.astype(dtype)
        arrays = {name: a.astype(dtype) for name, a in self.arrays.items()}
        return Case(self.layers, arrays, scale, self.mini_batch_size, self.eps, state, self.about)

    @property
    def options(self):
        how = {"mini_batch_size": self.mini_batch_size, "eps": self.eps, "token_scale": self.token_scale}
        return how | {"initial_state": self.state}

    def forward(self, **more):
        run = (ops.ttt_linear, ops.ttt_mlp)[self.layers - 1]
        return run(**self.arrays, **self.options, **more)

    def backward(self, grad_out, **more):
        run = (ops.ttt_linear_backward, ops.ttt_mlp_backward)[self.layers - 1]
        return run(grad_out, **self.arrays, **self.options, **more)

    def reference(self):
        run = (reference.ttt_linear, reference.ttt_mlp)[self.layers - 1]
        state = self.state
        if state is not None:
            state = (list(state.weights), list(state.sums), state.position)
        how = {"mini_batch_size": self.mini_batch_size, "eps": self.eps, "token_scale": self.token_scale}
        return run(**self.arrays, **how, state=state)

    def tokens(self, start, stop, state):
        arrays = {
            n: a[:, :, start:stop] if n in ("q", "k", "v", "eta") else a for n, a in self.arrays.items()
        }
        return Case(self.layers, arrays, self.token_scale, self.mini_batch_size, self.eps, state)

    def moved(self, rng, size):
        """The same call with every number moved by a relative step of `size`, up or down."""

        def move(a):
            return a * (1 + size * rng.choice([-1.0, 1.0], a.shape))

        state = self.state
        if state is not None:
            state = TTTState(tuple(map(move, state.weights)), tuple(map(move, state.sums)), state.position)
        scale = self.token_scale
        if scale is None:
            scale = 1 / np.arange(1.0, self.mini_batch_size + 1)
        arrays = {name: move(a) for name, a in self.arrays.items()}
        return Case(self.layers, arrays, move(scale), self.mini_batch_size, self.eps, state)

    @property
    def roundings(self):
        """Roundings that a number of the result has gone through in one mini-batch, at most.

        A sum of n products rounds n times at most. A token's reading goes through a sum over the inputs of each
        layer, one over the pairs and their own sum, and the norm's five sums; its gradients through the same.
        """
        width = self.arrays["q"].shape[3]
        hidden = self.weights[1].shape[-1] if self.layers == 2 else 0
        pairs = min(self.mini_batch_size, self.length + 1)
        return 4 * (3 * width + 2 * hidden + pairs + 40)


def flat(result):
    """All arrays of a forward's result."""
    y, state = result
    weights, sums = (state.weights, state.sums) if isinstance(state, TTTState) else state[:2]
    return [y, *weights, *sums]


def bounds(case, run, dtype, rng, step=1e-7):
    """What rounding may move each array of ``run(case)``: a bound an array.

    Rounding errors are what moving the arguments by some of them in size would do, as often as there are
    roundings; and what such a move does is measured, in float64, at a size where it is linear. Mini-batches pass
    their errors on in the fast weights, so errors may add up over them.
    """
    base, moved = run(case), run(case.moved(rng, step))
    batches = 1 + case.length // case.mini_batch_size
    unit = np.finfo(dtype).eps / 2
    # GELU far below zero, as one plus a hyperbolic tangent of minus one, is lost in the reference.
    lost = np.finfo(np.float64).eps * sum(np.abs(a).max(initial=0) for a in case.arrays.values())
    out = []
    for a, b in zip(base, moved, strict=True):
        change = np.abs(a - b).max(initial=0) / step + np.abs(a).max(initial=0)
        out.append(SLACK * unit * case.roundings * np.sqrt(batches) * change + lost)
    return out


def draw_case(rng, layers, B, H, L, D, F, b, *, position=None, scaled=False, magnitude=1.0, eps=1e-6):
    """A call with values of a size that a layer in training has."""
    q, k, v = magnitude * rng.standard_normal((3, B, H, L, D))
    arrays = {"q": q, "k": k, "v": v, "eta": rng.uniform(0, 0.3, (B, H, L)) / magnitude}
    shapes = [(D, D), (D,)] if layers == 1 else [(D, F), (F,), (F, D), (D,)]
    weights = [rng.standard_normal((H, *s)) * (max(s[0], 1) ** -0.5 if len(s) == 2 else 0.1) for s in shapes]
    arrays |= dict(zip(NAMES[layers][4:-2], weights, strict=True))
    arrays["norm_weight"] = 1 + 0.2 * rng.standard_normal((H, D))
    arrays["norm_bias"] = 0.1 * rng.standard_normal((H, D))
    state = None
    if position is not None:
        begun = [w + 0.1 * rng.standard_normal((B, *w.shape)) for w in weights]
        sums = [(0.1 if position else 0.0) * rng.standard_normal((B, *w.shape)) for w in weights]
        state = TTTState(tuple(begun), tuple(sums), position)
    scale = rng.uniform(0.1, 1, b) if scaled else None
    return Case(layers, arrays, scale, b, eps, state)


@st.composite
def cases(draw, max_length=20):
    """A call of any shape but the narrowest.

    A norm leaves of the gradients of two numbers what ``eps`` makes of them, of three little: such differences of
    nearly equal numbers are beyond `bounds`.
    """
    layers, seed = draw(st.integers(1, 2)), draw(st.integers(0, 2**32 - 1))
    B, H = draw(st.sampled_from([1, 2, 0])), draw(st.sampled_from([1, 2, 3]))
    L = draw(st.integers(0, max_length))
    D = draw(st.sampled_from([5, 8, 16, 17, 20, 33]))
    F = draw(st.sampled_from([4 * D, 1, 7, 0]))
    b = draw(st.sampled_from([16, 1, 2, 3, 5, 8, 100]))
    position = draw(st.one_of(st.none(), st.integers(0, b - 1)))
    magnitude = draw(st.sampled_from([1.0, 1e-2, 30.0]))
    eps = draw(st.sampled_from([1e-6, 1e-3]))
    rng = np.random.default_rng(seed)
    scaled = draw(st.booleans())
    case = draw_case(
        rng, layers, B, H, L, D, F, b, position=position, scaled=scaled, magnitude=magnitude, eps=eps
    )
    case.about = f"seed {seed}"
    return case


def formed(case, forms):
    """The same call with rows held in memory in other ways."""
    held = {name: in_form(case.arrays[name], form) for name, form in zip("qkv", forms, strict=True)}
    return Case(case.layers, case.arrays | held, case.token_scale, case.mini_batch_size, case.eps, case.state)


forms = st.tuples(*[st.sampled_from(FORMS)] * 3)
levels = st.sampled_from(_core.isa_available())
