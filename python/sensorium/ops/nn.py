"""Fused operations that training needs, forward and backward, over NumPy arrays.

Arrays are ``float32`` or ``float64``; results have the dtype of the inputs. Every ``*_backward`` takes the
gradient of the forward's result first and returns the gradients of its inputs.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, as_floats, as_indices, check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._tensor import half_name

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "gated_rms_norm",
    "gated_rms_norm_backward",
    "gelu",
    "gelu_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "rms_norm",
    "rms_norm_backward",
    "silu",
    "silu_backward",
]

Array = NDArray[Any]
Activation = Literal["gelu", "silu"]


def _differs(arg: str, got: object, other: str, want: object) -> NoReturn:
    raise ShapeError(f"{arg} has shape {got}, expected {want} to fit {other}")


def _check_rows(arg: str, x: Array) -> None:
    if x.ndim == 0:
        raise ShapeError(f"{arg} has shape (), expected at least one dimension")


def _check_eps(eps: float) -> float:
    if type(eps) is float and 0.0 <= eps < 1e300:
        return eps
    eps = check_finite_number("eps", eps)
    if eps < 0:
        raise ArgumentError(f"eps must not be negative, not {eps:g}")
    return eps


def _norm_inputs(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    if bias is None:
        x, weight = as_floats(x=x, weight=weight)
    else:
        x, weight, bias = as_floats(x=x, weight=weight, bias=bias)
    _check_rows("x", x)
    if weight.shape != x.shape[-1:]:
        _differs("weight", weight.shape, "x", x.shape[-1:])
    if bias is not None and bias.shape != weight.shape:
        _differs("bias", bias.shape, "weight", weight.shape)
    return x, weight, bias


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    return_stats: bool = False,
) -> Any:
    """Return the layer norm over the last axis: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    A constant row gives ``bias``, whatever its size.

    Parameters
    ----------
    x : array (..., D)
        ``float32`` or ``float64``.
    weight : array (D,)
        Factor of each column.
    bias : array (D,), optional
        Added to each column.
    eps : float
        Added to the variance.
    return_stats : bool
        Also return what :func:`layer_norm_backward` needs.

    Returns
    -------
    y : array (..., D)
    mean, rstd : array (...)
        Only with ``return_stats``: mean and one over the standard deviation of each row.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Ba, Kiros and Hinton (2016), Layer Normalization.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import layer_norm
    >>> layer_norm(np.array([[1.0, 3.0]]), np.ones(2), eps=0.0)
    array([[-1.,  1.]])
    """
    x, weight, bias = _norm_inputs(x, weight, bias)
    y, mean, rstd = _core.norm(x, weight, bias, _check_eps(eps), True)
    return (y, mean, rstd) if return_stats else y


def layer_norm_backward(
    grad: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    *,
    has_bias: bool = True,
    residual: ArrayLike | None = None,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of :func:`layer_norm`.

    Parameters
    ----------
    grad : array (..., D)
        Gradient of the result.
    x, weight : array (..., D), array (D,)
        As given to the forward.
    mean, rstd : array (...)
        From the forward with ``return_stats``.
    has_bias : bool
        Whether the forward had a bias.
    residual : array (..., D), optional
        Added to ``dx``: the gradient that reaches ``x`` around the block which the norm opens.

    Returns
    -------
    dx : array (..., D)
    dweight : array (D,)
    dbias : array (D,) or None

    Raises
    ------
    ShapeError, DTypeError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import layer_norm, layer_norm_backward
    >>> x, weight = np.array([[1.0, 3.0]]), np.ones(2)
    >>> y, mean, rstd = layer_norm(x, weight, return_stats=True)
    >>> dx, dweight, dbias = layer_norm_backward(np.ones_like(x), x, weight, mean, rstd)
    >>> dbias
    array([1., 1.])
    """
    grad, x, weight, mean, rstd = as_floats(grad=grad, x=x, weight=weight, mean=mean, rstd=rstd)
    if mean.shape != x.shape[:-1]:
        _differs("mean", mean.shape, "x", x.shape[:-1])
    return _norm_backward(grad, x, weight, mean, rstd, has_bias, residual)


def _norm_backward(
    grad: Array,
    x: Array,
    weight: Array,
    mean: Array | None,
    rstd: Array,
    has_bias: bool,
    residual: ArrayLike | None,
) -> tuple[Array, Array, Array | None]:
    _check_rows("x", x)
    if grad.shape != x.shape:
        _differs("grad", grad.shape, "x", x.shape)
    if weight.shape != x.shape[-1:]:
        _differs("weight", weight.shape, "x", x.shape[-1:])
    if rstd.shape != x.shape[:-1]:
        _differs("rstd", rstd.shape, "x", x.shape[:-1])
    if residual is not None:
        _, residual = as_floats(x=x, residual=residual)
        if residual.shape != x.shape:
            _differs("residual", residual.shape, "x", x.shape)
    return _core.norm_backward(grad, x, weight, mean, rstd, residual, has_bias)


def rms_norm(x: ArrayLike, weight: ArrayLike, *, eps: float = 1e-6, return_stats: bool = False) -> Any:
    """Return the RMS norm over the last axis: ``x / sqrt(mean(x^2) + eps) * weight``.

    Parameters
    ----------
    x : array (..., D)
        ``float32`` or ``float64``.
    weight : array (D,)
        Factor of each column.
    eps : float
        Added to the mean square.
    return_stats : bool
        Also return what :func:`rms_norm_backward` needs.

    Returns
    -------
    y : array (..., D)
    rstd : array (...)
        Only with ``return_stats``: one over the root mean square of each row.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Zhang and Sennrich (2019), Root Mean Square Layer Normalization.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import rms_norm
    >>> rms_norm(np.array([[3.0, 3.0]]), np.array([1.0, 2.0]), eps=0.0)
    array([[1., 2.]])
    """
    x, weight, _ = _norm_inputs(x, weight, None)
    y, _, rstd = _core.norm(x, weight, None, _check_eps(eps), False)
    return (y, rstd) if return_stats else y


def rms_norm_backward(
    grad: ArrayLike, x: ArrayLike, weight: ArrayLike, rstd: ArrayLike, *, residual: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Return the gradients of :func:`rms_norm`: ``dx`` and ``dweight``.

    Parameters
    ----------
    grad : array (..., D)
        Gradient of the result.
    x, weight : array (..., D), array (D,)
        As given to the forward.
    rstd : array (...)
        From the forward with ``return_stats``.
    residual : array (..., D), optional
        Added to ``dx``.

    Returns
    -------
    dx : array (..., D)
    dweight : array (D,)

    Raises
    ------
    ShapeError, DTypeError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import rms_norm, rms_norm_backward
    >>> x, weight = np.array([[3.0, 3.0]]), np.ones(2)
    >>> y, rstd = rms_norm(x, weight, eps=0.0, return_stats=True)
    >>> rms_norm_backward(np.array([[1.0, -1.0]]), x, weight, rstd)[1]
    array([ 1., -1.])
    """
    grad, x, weight, rstd = as_floats(grad=grad, x=x, weight=weight, rstd=rstd)
    dx, dweight, _ = _norm_backward(grad, x, weight, None, rstd, False, residual)
    return dx, dweight


def _gated_inputs(x: ArrayLike, z: ArrayLike, weight: ArrayLike, groups: int) -> tuple[Array, Array, Array]:
    x, z, weight = as_floats(x=x, z=z, weight=weight)
    _check_rows("x", x)
    if z.shape != x.shape:
        _differs("z", z.shape, "x", x.shape)
    if weight.shape != x.shape[-1:]:
        _differs("weight", weight.shape, "x", x.shape[-1:])
    if x.shape[-1] % check_integer("groups", groups, 1):
        raise ArgumentError(f"groups must divide the width {x.shape[-1]}, not be {groups}")
    return x, z, weight


def gated_rms_norm(
    x: ArrayLike,
    z: ArrayLike,
    weight: ArrayLike,
    *,
    groups: int = 1,
    eps: float = 1e-5,
    return_stats: bool = False,
) -> Any:
    """Return the RMS norm of ``u = x * silu(z)`` over the last axis: ``u / sqrt(mean(u^2) + eps) * weight``.

    Parameters
    ----------
    x, z : array (..., D)
        ``float32`` or ``float64``, of one shape.
    weight : array (D,)
        Factor of each column.
    groups : int
        Each of so many equal parts of the last axis has a mean of its own; must divide D.
    eps : float
        Added to the mean square.
    return_stats : bool
        Also return what :func:`gated_rms_norm_backward` needs.

    Returns
    -------
    y : array (..., D)
    rstd : array (..., groups)
        Only with ``return_stats``: one over the root mean square of each group.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Dao and Gu (2024), Transformers are SSMs, arXiv:2405.21060.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gated_rms_norm
    >>> x, z = np.array([[3.0, -3.0, 5.0, 5.0]]), np.ones((1, 4))
    >>> gated_rms_norm(x, z, np.ones(4), groups=2, eps=0.0)
    array([[ 1., -1.,  1.,  1.]])
    """
    x, z, weight = _gated_inputs(x, z, weight, groups)
    y, rstd = _core.gated_norm(x, z, weight, groups, _check_eps(eps))
    return (y, rstd) if return_stats else y


def gated_rms_norm_backward(
    grad: ArrayLike, x: ArrayLike, z: ArrayLike, weight: ArrayLike, rstd: ArrayLike, *, groups: int = 1
) -> tuple[Array, Array, Array]:
    """Return the gradients of :func:`gated_rms_norm`: ``dx``, ``dz`` and ``dweight``.

    Parameters
    ----------
    grad : array (..., D)
        Gradient of the result.
    x, z, weight, groups
        As given to the forward.
    rstd : array (..., groups)
        From the forward with ``return_stats``.

    Returns
    -------
    dx, dz : array (..., D)
    dweight : array (D,)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gated_rms_norm, gated_rms_norm_backward
    >>> x, z, weight = np.array([[3.0, 3.0]]), np.ones((1, 2)), np.ones(2)
    >>> y, rstd = gated_rms_norm(x, z, weight, eps=0.0, return_stats=True)
    >>> gated_rms_norm_backward(np.array([[1.0, -1.0]]), x, z, weight, rstd)[2]
    array([ 1., -1.])
    """
    x, z, weight = _gated_inputs(x, z, weight, groups)
    _, grad, rstd = as_floats(x=x, grad=grad, rstd=rstd)
    if grad.shape != x.shape:
        _differs("grad", grad.shape, "x", x.shape)
    if rstd.shape != (*x.shape[:-1], groups):
        _differs("rstd", rstd.shape, "x", (*x.shape[:-1], groups))
    return _core.gated_norm_backward(grad, x, z, weight, rstd, groups)


def _activation_backward(grad: ArrayLike, x: ArrayLike, name: str) -> Array:
    grad, x = as_floats(grad=grad, x=x)
    if grad.shape != x.shape:
        _differs("grad", grad.shape, "x", x.shape)
    return _core.activate_backward(grad, x, name)


def gelu(x: ArrayLike) -> Array:
    """Return the Gaussian error linear unit in its tanh form.

    ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, computed as ``x`` times a sigmoid.

    Parameters
    ----------
    x : array
        ``float32`` or ``float64``, any shape.

    Returns
    -------
    array
        Of the shape and dtype of ``x``. NaN stays NaN; negative infinity gives 0.

    Raises
    ------
    DTypeError
        Where ``x`` is of another dtype.

    References
    ----------
    Hendrycks and Gimpel (2016), Gaussian Error Linear Units.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gelu
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1588,  0.    ,  0.8412])
    """
    (x,) = as_floats(x=x)
    return _core.activate(x, "gelu")


def gelu_backward(grad: ArrayLike, x: ArrayLike) -> Array:
    """Return the gradient of :func:`gelu`: ``grad * gelu'(x)``.

    Parameters
    ----------
    grad, x : array
        Of one shape and dtype.

    Returns
    -------
    array
        Of the same shape and dtype.

    Raises
    ------
    ShapeError, DTypeError
        Where the two do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gelu_backward
    >>> gelu_backward(np.ones(1), np.zeros(1))
    array([0.5])
    """
    return _activation_backward(grad, x, "gelu")


def silu(x: ArrayLike) -> Array:
    """Return the sigmoid linear unit, ``x sigmoid(x)``.

    Parameters
    ----------
    x : array
        ``float32`` or ``float64``, any shape.

    Returns
    -------
    array
        Of the shape and dtype of ``x``. NaN stays NaN; negative infinity gives 0.

    Raises
    ------
    DTypeError
        Where ``x`` is of another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import silu
    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    (x,) = as_floats(x=x)
    return _core.activate(x, "silu")


def silu_backward(grad: ArrayLike, x: ArrayLike) -> Array:
    """Return the gradient of :func:`silu`: ``grad * silu'(x)``.

    Parameters
    ----------
    grad, x : array
        Of one shape and dtype.

    Returns
    -------
    array
        Of the same shape and dtype.

    Raises
    ------
    ShapeError, DTypeError
        Where the two do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import silu_backward
    >>> silu_backward(np.ones(1), np.zeros(1))
    array([0.5])
    """
    return _activation_backward(grad, x, "silu")


def _linear_inputs(x: ArrayLike, weight: ArrayLike) -> tuple[Array, Array]:
    x, weight = as_floats(x=x, weight=weight)
    _check_linear(x, weight)
    return x, weight


def _check_linear(x: Array, weight: Array) -> None:
    _check_rows("x", x)
    if weight.ndim != 2:
        raise ShapeError(f"weight has shape {weight.shape}, expected 2 dimensions (D_in, D_out)")
    if weight.shape[0] != x.shape[-1]:
        raise ShapeError(f"weight has D_in={weight.shape[0]} but x has D_in={x.shape[-1]}")


def _stored_weight(x: Array, weight: ArrayLike) -> tuple[Array, Array, bool, str | None]:
    """Return a weight as given and as the kernel reads it, whether that is the transpose, and its half.

    Nothing is copied where the weight or its transpose is contiguous.
    """
    array = weight if type(weight) is np.ndarray else as_array("weight", weight)
    half = half_name(array.dtype)
    if half is None and (array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8)):
        expected = "float32, float64, float16 or bfloat16"
        raise DTypeError(f"weight has dtype {array.dtype}, expected {expected}")
    native = array.dtype.newbyteorder("=")
    if x.dtype != (np.float32 if half else native):
        raise DTypeError(f"weight has dtype {native} but x has {x.dtype}")
    _check_linear(x, array)
    flags = array.flags
    transposed = flags.f_contiguous and not flags.c_contiguous
    held = array.T if transposed else array
    if not (held.flags.c_contiguous and flags.aligned and array.dtype.isnative):
        held = np.require(held, dtype=native, requirements=["C", "A"])
    return array, held.view(np.uint16) if half else held, transposed, half


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    return_slope: bool = False,
) -> Any:
    """Return ``residual + activation(x @ weight + bias)`` in one pass over the result.

    A weight may be the transpose of a contiguous array, ``stored.T`` of the (D_out, D_in) that checkpoints
    hold, and may be of half precision, which is widened where it is used. Neither is copied, so that both may
    be mapped from a file. With few rows of ``x`` such a weight is read once, at the rate of memory.

    Parameters
    ----------
    x : array (..., D_in)
        ``float32`` or ``float64``.
    weight : array (D_in, D_out)
        Columns are outputs. Of the dtype of ``x``; with ``float32`` also ``float16``, or ``bfloat16`` of
        ``ml_dtypes``, for which there is no backward.
    bias : array (D_out,), optional
        Added to every row of the product.
    activation : {"gelu", "silu"}, optional
        Applied after the bias.
    residual : array (..., D_out), optional
        Added last.
    return_slope : bool
        Also return the derivative of the activation, which :func:`linear_backward` needs.

    Returns
    -------
    out : array (..., D_out)
    slope : array (..., D_out) or None
        Only with ``return_slope``: ``activation'(x @ weight + bias)``, None without an activation.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import linear
    >>> linear(np.array([[1.0, 2.0]]), np.eye(2), np.array([0.5, 0.0]))
    array([[1.5, 2. ]])
    """
    (x,) = as_floats(x=x)
    weight, held, transposed, half = _stored_weight(x, weight)
    if bias is not None:
        _, bias = as_floats(x=x, bias=bias)
        if bias.shape != weight.shape[1:]:
            _differs("bias", bias.shape, "weight", weight.shape[1:])
    if residual is not None:
        _, residual = as_floats(x=x, residual=residual)
        if residual.shape != (*x.shape[:-1], weight.shape[1]):
            _differs("residual", residual.shape, "x @ weight", (*x.shape[:-1], weight.shape[1]))
    out, slope = _core.linear(x, held, bias, activation, residual, return_slope, transposed, half)
    return (out, slope) if return_slope else out


def linear_backward(
    grad: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    has_bias: bool = True,
    slope: ArrayLike | None = None,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of :func:`linear`: ``dx``, ``dweight`` and ``dbias`` (None without a bias).

    The gradient of the residual is ``grad`` itself.

    Parameters
    ----------
    grad : array (..., D_out)
        Gradient of the result.
    x, weight : array (..., D_in), array (D_in, D_out)
        As given to the forward.
    has_bias : bool
        Whether the forward had a bias.
    slope : array (..., D_out), optional
        From the forward with ``return_slope``, where it had an activation.

    Returns
    -------
    dx : array (..., D_in)
    dweight : array (D_in, D_out)
    dbias : array (D_out,) or None

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import linear_backward
    >>> dx, dweight, dbias = linear_backward(np.ones((3, 1)), np.ones((3, 2)), np.ones((2, 1)))
    >>> dweight.tolist(), dbias.tolist()
    ([[3.0], [3.0]], [3.0])
    """
    x, weight = _linear_inputs(x, weight)
    _, grad = as_floats(x=x, grad=grad)
    want = (*x.shape[:-1], weight.shape[1])
    if grad.shape != want:
        _differs("grad", grad.shape, "x @ weight", want)
    if slope is not None:
        _, slope = as_floats(x=x, slope=slope)
        if slope.shape != want:
            _differs("slope", slope.shape, "x @ weight", want)
        grad = grad * slope
    return _core.linear_backward(grad, x, weight, has_bias, None)


def _loss_inputs(
    logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    (logits,) = as_floats(logits=logits)
    _check_rows("logits", logits)
    targets = as_indices("targets", targets)
    if targets.shape != logits.shape[:-1]:
        _differs("targets", targets.shape, "logits", logits.shape[:-1])
    if weights is None:
        return logits, targets, None
    weights = np.asarray(weights)
    if weights.dtype.kind not in "fbiu":
        raise DTypeError(f"weights has dtype {weights.dtype}, expected numbers")
    if weights.shape != targets.shape:
        _differs("weights", weights.shape, "logits", targets.shape)
    return logits, targets, np.require(weights, dtype=logits.dtype, requirements=["C", "A"])


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, return_lse: bool = False
) -> Any:
    """Return the weighted mean of ``-log softmax(logits)[target]`` over positions.

    Positions of weight 0 are not read: their logits and targets may hold anything. Where all weights are 0
    the loss is 0. The sum is made in double precision.

    Parameters
    ----------
    logits : array (..., K)
        ``float32`` or ``float64``.
    targets : array (...) of integers
        Classes, from 0 to K - 1.
    weights : array (...), optional
        Finite, not negative; booleans and integers are taken as numbers. 1 where not given.
    return_lse : bool
        Also return what :func:`cross_entropy_backward` can use.

    Returns
    -------
    loss : NumPy scalar
        Of the dtype of ``logits``.
    lse : array (...)
        Only with ``return_lse``: log-sum-exp of each position, 0 where its weight is 0.

    Raises
    ------
    ShapeError, DTypeError
        Where arguments do not fit each other.
    ArgumentError
        Where a weight is negative or not finite, or the target of a position with weight is no class.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import cross_entropy
    >>> loss = cross_entropy(np.zeros((2, 4)), np.array([1, -1]), np.array([1.0, 0.0]))
    >>> round(float(loss), 4)
    1.3863
    """
    logits, targets, weights = _loss_inputs(logits, targets, weights)
    loss, lse = _core.cross_entropy(logits, targets, weights)
    loss = logits.dtype.type(loss)
    return (loss, lse) if return_lse else loss


def cross_entropy_backward(
    grad: float,
    logits: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    lse: ArrayLike | None = None,
) -> Array:
    """Return the gradient of :func:`cross_entropy` with respect to ``logits``.

    Parameters
    ----------
    grad : float
        Gradient of the loss.
    logits, targets, weights : array
        As given to the forward.
    lse : array (...), optional
        From the forward with ``return_lse``; computed where not given.

    Returns
    -------
    dlogits : array (..., K)
        Zeros at positions of weight 0.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        As :func:`cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import cross_entropy_backward
    >>> cross_entropy_backward(1.0, np.zeros((1, 2)), np.array([0]))
    array([[-0.5,  0.5]])
    """
    logits, targets, weights = _loss_inputs(logits, targets, weights)
    if lse is None:
        lse = _core.cross_entropy(logits, targets, weights)[1]
    else:
        _, lse = as_floats(logits=logits, lse=lse)
        if lse.shape != targets.shape:
            _differs("lse", lse.shape, "logits", targets.shape)
    return _core.cross_entropy_backward(float(grad), logits, targets, weights, lse)


def embedding(table: ArrayLike, indices: ArrayLike) -> Array:
    """Return the rows ``table[indices]``.

    Parameters
    ----------
    table : array (V, D)
        ``float32`` or ``float64``.
    indices : array (...) of integers
        From 0 to V - 1; negative indices are errors.

    Returns
    -------
    array (..., D)

    Raises
    ------
    ShapeError, DTypeError
        Where ``table`` has not two dimensions, or a dtype does not fit.
    ArgumentError
        Where an index is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import embedding
    >>> embedding(np.array([[1.0], [2.0]]), np.array([1, 1, 0])).ravel()
    array([2., 2., 1.])
    """
    (table,) = as_floats(table=table)
    if table.ndim != 2:
        raise ShapeError(f"table has shape {table.shape}, expected 2 dimensions (V, D)")
    return _core.embedding(table, as_indices("indices", indices))


def embedding_backward(grad: ArrayLike, indices: ArrayLike, num_embeddings: int) -> Array:
    """Return the gradient of :func:`embedding` with respect to its table.

    Gradients of equal indices are added in the order of their positions, with any number of threads.

    Parameters
    ----------
    grad : array (..., D)
        Gradient of the result.
    indices : array (...) of integers
        As given to the forward.
    num_embeddings : int
        Rows of the table, V.

    Returns
    -------
    dtable : array (V, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import embedding_backward
    >>> embedding_backward(np.array([[1.0], [2.0], [4.0]]), np.array([1, 1, 0]), 3).ravel()
    array([4., 3., 0.])
    """
    (grad,) = as_floats(grad=grad)
    indices = as_indices("indices", indices)
    if grad.shape[:-1] != indices.shape or grad.ndim == 0:
        _differs("grad", grad.shape, "indices", (*indices.shape, "D"))
    return _core.embedding_backward(grad, indices, num_embeddings)
