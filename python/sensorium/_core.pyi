"""The compiled half. Private: use `sensorium.ops` and its neighbours."""

from collections.abc import Sequence
from typing import Any, Final, final

from numpy.typing import NDArray

_Array = NDArray[Any]
_Five = tuple[_Array | None, _Array | None, _Array | None, _Array | None, _Array | None]
_Fused = tuple[_Array | None, _Array | None, bool, tuple[_Array, _Array] | None]
_Scanned = tuple[
    tuple[_Array, _Array, _Array, _Array, _Array],
    tuple[_Array | None, _Array | None, _Array | None, _Array | None],
    tuple[_Array | None, _Array | None],
    tuple[bool, bool],
]
_Scoring = tuple[float, float | None, list[float] | None, tuple[float, int] | None]

__version__: Final[str]
MAX_THREADS: Final[int]

@final
class AttentionLayout:
    def __new__(
        cls,
        samples: Sequence[tuple[Sequence[tuple[int, int, bool, bool]], int | None, Sequence[bool] | None]],
    ) -> AttentionLayout: ...
    @property
    def pairs(self) -> int: ...
    @property
    def work(self) -> int: ...
    def dense(self) -> _Array: ...
    def ranges(self) -> list[tuple[int, int, int, list[tuple[int, int]]]]: ...

@final
class SearchTree:
    def __new__(
        cls,
        name: str,
        parameters: Sequence[float | None],
        discount: float,
        players: int,
        normalise: bool,
        virtual_loss: float,
        win: float | None,
        max_nodes: int,
        max_bytes: int,
        seed: int,
        columns: dict[str, _Array] | None = None,
        counters: tuple[int, float, float] | None = None,
    ) -> SearchTree: ...
    def __len__(self) -> int: ...
    @property
    def counters(self) -> tuple[int, float, float]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def simulations(self) -> int: ...
    def backup(self, leaves: _Array, values: _Array, costs: _Array | None = None) -> None: ...
    def best_child(self, node: int) -> int: ...
    def best_path(self, node: int) -> _Array: ...
    def block(self, name: str, node: int) -> _Array: ...
    def columns(self) -> dict[str, _Array]: ...
    def expand(
        self,
        leaves: _Array,
        counts: int | _Array,
        actions: _Array | None = None,
        priors: _Array | None = None,
        rewards: _Array | None = None,
        terminal: _Array | None = None,
        forbidden: _Array | None = None,
    ) -> None: ...
    def fail(self, leaves: _Array) -> None: ...
    def forbid(self, nodes: _Array, forbidden: bool) -> None: ...
    def gather(self, name: str, nodes: _Array) -> _Array: ...
    def name(self, nodes: _Array, actions: _Array) -> None: ...
    def path(self, node: int) -> _Array: ...
    def pending(self) -> _Array: ...
    def release(self, leaves: _Array) -> None: ...
    def reroot(self, node: int) -> None: ...
    def select(self, batch: int) -> _Array: ...

def activate(x: _Array, name: str) -> _Array: ...
def activate_backward(grad: _Array, x: _Array, name: str) -> _Array: ...
def adamw_step(
    params: Sequence[_Array],
    grads: Sequence[_Array],
    ms: Sequence[_Array],
    vs: Sequence[_Array],
    decay: Sequence[bool],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None: ...
def attention_backward(
    layouts: Sequence[AttentionLayout],
    offsets: tuple[int, int],
    grad_out: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    scoring: _Scoring,
    grads: Sequence[_Array],
    turn: tuple[_Array, bool] | None = None,
    half: str | None = None,
) -> None: ...
def attention_decode(
    layouts: Sequence[AttentionLayout],
    rows: tuple[Sequence[int], Sequence[int], Sequence[int]],
    q: _Array,
    k: _Array,
    v: _Array,
    scoring: _Scoring,
    out: _Array,
    lse: _Array,
    half: str | None,
) -> None: ...
def attention_dropout_mask(
    dropout: tuple[float, int], shape: Sequence[int], offsets: tuple[int, int], kept: _Array
) -> None: ...
def attention_forward(
    layouts: Sequence[AttentionLayout],
    offsets: tuple[int, int],
    q: _Array,
    k: _Array,
    v: _Array,
    scoring: _Scoring,
    out: _Array,
    lse: _Array,
    turn: tuple[_Array, bool] | None = None,
    half: str | None = None,
) -> None: ...
def causal_conv1d(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    initial: _Array | None,
    seq_idx: _Array | None,
    cu_seqlens: _Array | None,
    silu: bool,
    channels_last: bool,
    keep_last: bool,
) -> tuple[_Array, _Array | None]: ...
def causal_conv1d_backward(
    grad: _Array,
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    initial: _Array | None,
    grad_last: _Array | None,
    seq_idx: _Array | None,
    cu_seqlens: _Array | None,
    silu: bool,
    channels_last: bool,
) -> tuple[_Array, _Array, _Array | None, _Array | None]: ...
def causal_conv1d_update(
    x: _Array, state: _Array, weight: _Array, bias: _Array | None, silu: bool
) -> _Array: ...
def cross_entropy(logits: _Array, targets: _Array, weights: _Array | None) -> tuple[float, _Array]: ...
def cross_entropy_backward(
    grad: float, logits: _Array, targets: _Array, weights: _Array | None, lse: _Array
) -> _Array: ...
def elementary(x: _Array, name: str) -> _Array: ...
def embedding(table: _Array, indices: _Array) -> _Array: ...
def embedding_backward(grad: _Array, indices: _Array, v: int) -> _Array: ...
def fit(
    law: str,
    x: _Array,
    y: _Array,
    weights: _Array,
    starts: _Array,
    y_row: _Array | None,
    weight_row: _Array | None,
    delta: float,
    free: Sequence[bool],
    steps: int,
) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...
def fit_predict(law: str, theta: _Array, x: _Array, slopes: bool) -> tuple[_Array, _Array | None]: ...
def fuse(
    mu: Sequence[_Array],
    logvar: Sequence[_Array],
    how: _Fused,
    noise: _Array | None,
    seed: int | None,
    results: _Five,
) -> None: ...
def fuse_backward(
    mu: Sequence[_Array],
    logvar: Sequence[_Array],
    how: _Fused,
    noise: _Array | None,
    seed: int | None,
    grads: _Five,
    wanted: tuple[_Array, _Array, _Array | None, _Array | None],
) -> None: ...
def gated_norm(x: _Array, z: _Array, weight: _Array, groups: int, eps: float) -> tuple[_Array, _Array]: ...
def gated_norm_backward(
    grad: _Array, x: _Array, z: _Array, weight: _Array, rstd: _Array, groups: int
) -> tuple[_Array, _Array, _Array]: ...
def global_norm(arrays: Sequence[_Array]) -> float: ...
def isa_available() -> list[str]: ...
def isa_level() -> str: ...
def linear(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: str | None,
    residual: _Array | None,
    keep_slope: bool,
    transposed: bool = False,
    half: str | None = None,
) -> tuple[_Array, _Array | None]: ...
def linear_backward(
    grad: _Array, x: _Array, weight: _Array, has_bias: bool, below: _Array | None
) -> tuple[_Array, _Array, _Array | None]: ...
def linear_scan(
    a: _Array,
    x: _Array,
    initial: _Array | None,
    seq_idx: _Array | None,
    cu_seqlens: _Array | None,
    reverse: bool,
    channels_last: bool,
    keep_last: bool,
) -> tuple[_Array, _Array | None]: ...
def linear_scan_backward(
    grad: _Array,
    a: _Array,
    h: _Array,
    initial: _Array | None,
    grad_last: _Array | None,
    seq_idx: _Array | None,
    cu_seqlens: _Array | None,
    reverse: bool,
    channels_last: bool,
) -> tuple[_Array, _Array, _Array | None]: ...
def matmul(a: _Array, b: _Array, transposed_a: bool, transposed_b: bool) -> _Array: ...
def mixture_of_products(
    mu: Sequence[_Array],
    logvar: Sequence[_Array],
    how: _Fused,
    draw: tuple[_Array | None, _Array],
    noise: _Array | None,
    seed: int | None,
    results: tuple[_Array, _Array],
) -> None: ...
def mixture_of_products_backward(
    mu: Sequence[_Array],
    logvar: Sequence[_Array],
    how: _Fused,
    draw: tuple[_Array | None, _Array],
    noise: _Array | None,
    seed: int | None,
    grads: tuple[_Array, _Array],
    wanted: tuple[_Array, _Array, _Array | None, _Array | None],
) -> None: ...
def norm(
    x: _Array, weight: _Array, bias: _Array | None, eps: float, centred: bool
) -> tuple[_Array, _Array | None, _Array]: ...
def norm_backward(
    grad: _Array,
    x: _Array,
    weight: _Array,
    mean: _Array | None,
    rstd: _Array,
    residual: _Array | None,
    has_bias: bool,
) -> tuple[_Array, _Array, _Array | None]: ...
def normal_numbers(seed: int, stream: int, position: int, out: _Array) -> None: ...
def num_threads() -> int: ...
def rotary(
    x: _Array, table: _Array, interleaved: bool, inverse: bool, out: _Array, half: str | None
) -> None: ...
def running_mean(means: Sequence[_Array], values: Sequence[_Array], decay: float) -> None: ...
def scale_arrays(arrays: Sequence[_Array], factor: float) -> None: ...
def selective_scan(
    given: _Scanned, y: _Array, want: tuple[bool, bool]
) -> tuple[_Array | None, _Array | None]: ...
def selective_scan_backward(
    grad: _Array, given: _Scanned, grad_last: _Array | None, checkpoints: _Array | None
) -> tuple[list[_Array], list[_Array | None]]: ...
def selective_state_update(
    state: _Array, tensors: Sequence[_Array], optionals: Sequence[_Array | None], softplus: bool
) -> _Array: ...
def set_isa(name: str) -> str: ...
def set_local_num_threads(n: int) -> int: ...
def set_num_threads(n: int) -> None: ...
def ssd_backward(
    grad_out: _Array,
    grad_last: _Array | None,
    five: tuple[_Array, _Array, _Array, _Array, _Array],
    options: tuple[_Array | None, _Array | None, _Array | None, _Array | None],
    steps: tuple[bool, float, float],
    packing: tuple[_Array | None, _Array | None, int],
    kept: _Array | None,
) -> tuple[
    _Array, _Array, _Array, _Array, _Array, _Array | None, _Array | None, _Array | None, _Array | None
]: ...
def ssd_forward(
    five: tuple[_Array, _Array, _Array, _Array, _Array],
    options: tuple[_Array | None, _Array | None, _Array | None, _Array | None],
    steps: tuple[bool, float, float],
    packing: tuple[_Array | None, _Array | None, int],
    out: _Array,
    last: _Array | None,
    keep: bool,
) -> _Array | None: ...
def ssd_step(
    state: _Array,
    five: tuple[_Array, _Array, _Array, _Array, _Array],
    skip: _Array | None,
    gate: _Array | None,
    bias: _Array | None,
    steps: tuple[bool, float, float],
) -> _Array: ...
def ttt_backward(
    call: object,
    grad_out: _Array,
    grad_last: tuple[Sequence[_Array], Sequence[_Array]] | None,
    checkpoints: _Array | None,
    grads: Sequence[_Array],
) -> tuple[list[_Array], _Array | None, tuple[list[_Array], list[_Array]]]: ...
def ttt_forward(
    call: object,
    y: _Array,
    state: tuple[Sequence[_Array], Sequence[_Array]] | None,
    keep: bool,
) -> tuple[int, _Array | None]: ...
