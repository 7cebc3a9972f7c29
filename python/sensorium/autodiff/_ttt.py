"""Test-time-training layers."""

from __future__ import annotations

from typing import Any, cast

from autograd.core import defvjp_argnums

from .. import ops
from ..ops import TTTState
from ._primitive import Array, Vjp, chosen, like, primitive

__all__ = ["ttt_linear", "ttt_mlp"]


def _arranged(layers: int, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, TTTState | None]:
    """Return the arguments in the order of the operations, `token_scale`, and the initial state."""
    q, k, v, eta, norm_weight, norm_bias, scale, *rest = args
    weights, parts = rest[: 2 * layers], rest[2 * layers :]
    position = parts.pop() if parts else 0
    state = None
    if parts:
        state = TTTState(tuple(parts[: 2 * layers]), tuple(parts[2 * layers :]), position)
    return (q, k, v, eta, *weights, norm_weight, norm_bias), scale, state


@primitive
def _ttt(layers: int, options: Any, kept: dict[str, Any], *args: Any) -> Any:
    arrays, scale, state = _arranged(layers, args)
    run = (ops.ttt_linear, ops.ttt_mlp)[layers - 1]
    how = {**options, "token_scale": scale, "initial_state": state}
    last = kept.pop("last")
    result = run(*arrays, **how, return_last_state=last, return_checkpoints=True)
    kept["checkpoints"] = result[-1]
    if not last:
        return result[0]
    kept["position"] = result[1].position
    return (result[0], *result[1].weights, *result[1].sums)


def _ttt_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    layers, options, kept, *rest = args
    arrays, scale, state = _arranged(layers, tuple(rest))
    run = (ops.ttt_linear_backward, ops.ttt_mlp_backward)[layers - 1]

    def vjp(g: Any) -> tuple[Any, ...]:
        last = None
        if isinstance(ans, tuple):
            g, *parts = (like(one, array) for one, array in zip(g, ans, strict=True))
            last = TTTState(tuple(parts[: 2 * layers]), tuple(parts[2 * layers :]))
        y: Array = ans[0] if isinstance(ans, tuple) else ans
        grads = run(
            like(g, y),
            *arrays,
            **options,
            token_scale=scale,
            initial_state=state,
            grad_last_state=last,
            checkpoints=kept["checkpoints"],
        )
        q, k, v, eta, *weights = grads[: 4 + 2 * layers]
        norm_weight, norm_bias, dscale, dstate = cast(Any, grads[4 + 2 * layers :])
        begun = () if dstate is None else (*dstate.weights, *dstate.sums)
        found = (q, k, v, eta, norm_weight, norm_bias, dscale, *weights, *begun)
        return chosen(tuple(i - 3 for i in argnums), found)

    return vjp


defvjp_argnums(_ttt, _ttt_vjp)


def _run(arrays: tuple[Any, ...], weights: tuple[Any, ...], how: dict[str, Any]) -> Any:
    state, last = how.pop("initial_state"), how.pop("return_last_state")
    scale = how.pop("token_scale")
    parts = () if state is None else (*state.weights, *state.sums, state.position)
    kept: dict[str, Any] = {"last": last}
    layers = len(weights) // 2
    result = _ttt(layers, how, kept, *arrays, scale, *weights, *parts)
    if not last:
        return result
    n = len(weights)
    made = [result[i] for i in range(1 + 2 * n)]
    return made[0], TTTState(tuple(made[1 : 1 + n]), tuple(made[1 + n :]), kept["position"])


def ttt_linear(
    q: Any,
    k: Any,
    v: Any,
    eta: Any,
    W: Any,
    b: Any,
    norm_weight: Any,
    norm_bias: Any,
    *,
    token_scale: Any = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.ttt_linear`, by every array.

    Those of ``initial_state`` and of the last state, if it is returned, are on the tape too.
    """
    how: dict[str, Any] = {"mini_batch_size": mini_batch_size, "eps": eps, "token_scale": token_scale}
    how |= {"initial_state": initial_state, "return_last_state": return_last_state}
    return _run((q, k, v, eta, norm_weight, norm_bias), (W, b), how)


def ttt_mlp(
    q: Any,
    k: Any,
    v: Any,
    eta: Any,
    W1: Any,
    b1: Any,
    W2: Any,
    b2: Any,
    norm_weight: Any,
    norm_bias: Any,
    *,
    token_scale: Any = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.ttt_mlp`, by every array.

    Those of ``initial_state`` and of the last state, if it is returned, are on the tape too.
    """
    how: dict[str, Any] = {"mini_batch_size": mini_batch_size, "eps": eps, "token_scale": token_scale}
    how |= {"initial_state": initial_state, "return_last_state": return_last_state}
    return _run((q, k, v, eta, norm_weight, norm_bias), (W1, b1, W2, b2), how)
