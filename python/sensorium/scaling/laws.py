"""The laws, as estimators.

Each says what its columns are, where fits begin, and what its parameters are called. The formulas
themselves, with exact derivatives, are in the kernel (``rust/fit/src/laws.rs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._validate import check_positive
from ..errors import ArgumentError
from ._law import Floats, Law

__all__ = [
    "BrokenPowerLaw",
    "ChinchillaLaw",
    "ComputeOptimal",
    "DataConstrainedLaw",
    "InverseRootLaw",
    "JointComputeLaw",
    "KaplanLaw",
    "OverTrainingLaw",
    "PowerLaw",
    "SaturatingExponential",
    "Sigmoid",
]

#: Floating-point operations of training, a parameter and token (Kaplan et al. 2020).
FLOPS = 6.0

_EXPONENTS = (0.1, 0.3, 0.6, 1.2)


def _floors(target: Floats) -> list[float]:
    """Where the logarithm of a floor begins: around and below what was reached."""
    least = float(target.min())
    return [least - 2.0, least - 0.5, least - 0.05]


class ComputeOptimal(NamedTuple):
    """How to split compute between parameters and tokens; intervals are None without a bootstrap."""

    params: float
    tokens: float
    loss: float
    params_interval: tuple[float, float] | None
    tokens_interval: tuple[float, float] | None


class ChinchillaLaw(Law):
    """``L(N, D) = E + A N^-alpha + B D^-beta``: loss by parameters and tokens (Hoffmann et al. 2022).

    Fitted to the logarithm of the loss through log-sum-exp, from the grid of 4,500 starts of the paper. The
    objective is the sum of losses, not their mean: see Besiroglu et al. (2024), who correct the published
    fit.

    Parameters
    ----------
    loss : "huber", "lad" or "gaussian"
        Huber's loss of residuals of ``log L`` with threshold ``delta``, their absolute values, or their
        squares (the likelihood under normal errors, whose deviation is then ``scale_``).
    delta : float
        Huber's threshold, in units of ``log L``.
    max_iter : int
        Most steps from each start.

    Attributes
    ----------
    E_, A_, B_, alpha_, beta_ : float
        The fit.

    References
    ----------
    Hoffmann et al. 2022, arXiv:2203.15556; Besiroglu et al. 2024, arXiv:2404.10102.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.scaling import ChinchillaLaw
    >>> rng = np.random.default_rng(0)
    >>> X = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e12]), size=(80, 2)))
    >>> loss = 1.7 + 400 * X[:, 0] ** -0.34 + 410 * X[:, 1] ** -0.28
    >>> law = ChinchillaLaw().fit(X, loss * np.exp(0.001 * rng.standard_normal(80)))
    >>> law.converged_, round(law.alpha_, 1), round(law.E_, 1)
    (True, 0.3, 1.7)
    """

    _family = "chinchilla"
    _columns = ("params", "tokens")
    _names = (("E", True), ("A", True), ("B", True), ("alpha", False), ("beta", False))

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        a = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
        exponents = (0.0, 0.5, 1.0, 1.5, 2.0)
        return [(-1.0, -0.5, 0.0, 0.5, 1.0), a, a, exponents, exponents]

    def compute_optimal(self, budget: float, *, level: float = 0.95) -> ComputeOptimal:
        """Return the split of ``budget = 6 N D`` floating-point operations with the least loss.

        ``N = G (C / 6)^(beta / (alpha + beta))`` with ``G = (alpha A / (beta B))^(1 / (alpha + beta))``.
        Intervals are percentiles over the last :meth:`bootstrap`.

        Raises
        ------
        ArgumentError
            Where the budget is not positive, or an exponent or a factor of the fit is not.
        """
        check_is_fitted(self, "objective_")
        check_positive("budget", budget)
        fitted = np.array([list(self.parameters_.values())])
        if (fitted[:, 1:] <= 0).any():
            raise ArgumentError("compute_optimal needs a fit whose A, B, alpha and beta are above 0")
        params, tokens = _split(fitted, budget)
        intervals: list[tuple[float, float] | None] = [None, None]
        if self.bootstrap_ is not None:
            rows = self.bootstrap_[np.isfinite(self.bootstrap_).all(axis=1)]
            rows = rows[(rows[:, 1:] > 0).all(axis=1)]
            for i, of in enumerate(_split(rows, budget)):
                low, high = np.quantile(of, [0.5 - level / 2, 0.5 + level / 2])
                intervals[i] = (float(low), float(high))
        loss = float(self.predict(np.array([[params[0], tokens[0]]]))[0])
        return ComputeOptimal(float(params[0]), float(tokens[0]), loss, intervals[0], intervals[1])


def _split(rows: Floats, budget: float) -> tuple[Floats, Floats]:
    """Parameters and tokens for each row of fitted parameters."""
    _, a, b, alpha, beta = rows.T
    log_g = np.log(alpha * a / (beta * b)) / (alpha + beta)
    log_c = np.log(budget / FLOPS)
    params = np.exp(log_g + beta / (alpha + beta) * log_c)
    return params, budget / FLOPS / params


class KaplanLaw(Law):
    """``L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D`` (Kaplan et al. 2020)."""

    _family = "kaplan"
    _columns = ("params", "tokens")
    _names = (("N_c", True), ("D_c", True), ("alpha_N", False), ("alpha_D", False))

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        scales = [features[:, j].mean() + np.array([-4.0, 2.0, 10.0, 20.0]) for j in range(2)]
        return [scales[0].tolist(), scales[1].tolist(), _EXPONENTS[:3], _EXPONENTS[:3]]


class DataConstrainedLaw(Law):
    """Chinchilla's law where tokens repeat.

    ``U`` unique tokens that are seen ``1 + R`` times are worth ``U (1 + r (1 - e^(-R / r)))``.

    Columns are parameters, tokens seen, and unique tokens, at most as many as were seen. Repeated tokens
    decay with ``repeats_``; the decay of excess parameters of the paper is left out.

    References
    ----------
    Muennighoff et al. 2023, arXiv:2305.16264.
    """

    _family = "data_constrained"
    _columns = ("params", "tokens", "unique_tokens")
    _names = (
        ("E", True),
        ("A", True),
        ("B", True),
        ("alpha", False),
        ("beta", False),
        ("repeats", True),
    )

    def _enter(self, values: Floats) -> Floats:
        params, tokens, unique = values.T
        if (unique > tokens * (1 + 1e-9)).any():
            row = int(np.argmax(unique > tokens * (1 + 1e-9)))
            raise ArgumentError(f"X's column unique_tokens must not be above tokens; row {row} is")
        return np.stack([np.log(params), np.log(unique), np.maximum(tokens / unique - 1, 0)], axis=1)

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        a = (3.0, 8.0, 15.0)
        return [_floors(target), a, a, _EXPONENTS[:3], _EXPONENTS[:3], (0.0, 2.0, 4.0)]


class OverTrainingLaw(Law):
    """``L(C, M) = E + (A M^eta + B M^-eta) C^-eta`` of compute and tokens a parameter.

    Gadre et al. 2024, arXiv:2403.08540.
    """

    _family = "over_training"
    _columns = ("compute", "tokens_per_parameter")
    _names = (("E", True), ("A", True), ("B", True), ("eta", False))

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        return [_floors(target), (0.0, 5.0, 10.0), (0.0, 5.0, 10.0), (0.05, 0.15, 0.4)]


class PowerLaw(Law):
    """``y = E + A x^-alpha``, or ``y = A x^-alpha`` without a floor.

    Parameters
    ----------
    floor : bool
        Whether there is ``E``.
    loss, delta, max_iter
        As for :class:`ChinchillaLaw`.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.scaling import PowerLaw
    >>> x = np.geomspace(1, 1e4, 20)
    >>> law = PowerLaw().fit(x, 0.5 + 3 * x**-0.5)
    >>> round(law.E_, 4), round(law.A_, 4), round(law.alpha_, 4)
    (0.5, 3.0, 0.5)
    """

    _columns = ("x",)

    def __init__(
        self, *, floor: bool = True, loss: str = "huber", delta: float = 1e-3, max_iter: int = 400
    ) -> None:
        super().__init__(loss=loss, delta=delta, max_iter=max_iter)
        self.floor = floor

    @property
    def _family(self) -> str:  # type: ignore[override]
        return "power_floor" if self.floor else "power"

    @property
    def _names(self) -> tuple[tuple[str, bool], ...]:  # type: ignore[override]
        power = (("A", True), ("alpha", False))
        return (("E", True), *power) if self.floor else power

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        x = features[:, 0]
        middle, height = float(np.median(x)), float(np.median(target))
        begin: list[Sequence[float]] = [[height + e * middle for e in (0.0, *_EXPONENTS)], (0.0, *_EXPONENTS)]
        return [_floors(target), *begin] if self.floor else begin


class BrokenPowerLaw(Law):
    """``y = E + b x^-c0 (1 + (x / d)^(1 / f))^(-c1 f)``: one smooth break.

    Caballero et al. 2023, arXiv:2210.14891.
    """

    _family = "broken_power"
    _columns = ("x",)
    _names = (("E", True), ("b", True), ("c0", False), ("c1", False), ("d", False), ("f", True))

    def _outside(self, theta: Floats) -> Floats:
        out = super()._outside(theta)
        out[..., 4] = np.exp(out[..., 4])
        return out

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        x = features[:, 0]
        breaks = np.quantile(x, [0.25, 0.5, 0.75]).tolist()
        height = float(target.max())
        return [_floors(target), (height, height + 2), (0.0, 0.3), (0.1, 0.6), breaks, (-2.0, 0.0)]


class JointComputeLaw(Law):
    """``y = E + A C_train^-alpha C_test^-beta``: what training and inference compute buy together."""

    _family = "joint_compute"
    _columns = ("train_compute", "test_compute")
    _names = (("E", True), ("A", True), ("alpha", False), ("beta", False))

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        height = float(np.median(target))
        middle = float(np.median(features.sum(axis=1)))
        return [
            _floors(target),
            [height + e * middle for e in (0.0, 0.1, 0.3, 0.6)],
            (0.05, 0.2, 0.5),
            (0.05, 0.2, 0.5),
        ]


class SaturatingExponential(Law):
    """``y = top (1 - e^(-alpha T))``: accuracy by length of a chain, say.

    Parameters
    ----------
    top : float or None
        Where it saturates; None fits it.
    loss, delta, max_iter
        As for :class:`ChinchillaLaw`, with residuals of ``y`` itself.
    """

    _family = "saturating_exponential"
    _columns = ("T",)
    _names = (("top", False), ("alpha", True))
    _log_y = False
    _log_x = False

    def __init__(
        self, *, top: float | None = 1.0, loss: str = "gaussian", delta: float = 1e-3, max_iter: int = 400
    ) -> None:
        super().__init__(loss=loss, delta=delta, max_iter=max_iter)
        self.top = top

    def _free(self) -> list[bool]:
        return [self.top is None, True]

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        if (features < 0).any():
            raise ArgumentError("X's column T must not be negative")
        most = float(np.abs(features).max()) or 1.0
        rates = np.log(np.array([0.03, 0.3, 1.0, 3.0, 30.0]) / most).tolist()
        if self.top is not None:
            check_positive("top", self.top)
            return [[float(self.top)], rates]
        return [[float(target.max()), 2 * float(target.max())], rates]


class InverseRootLaw(Law):
    """``Q(K) = Q_inf - C K^-gamma``: quality by rounds of reflection (Li et al. 2025, arXiv:2503.12271)."""

    _family = "inverse_root"
    _columns = ("K",)
    _names = (("Q_inf", False), ("C", True), ("gamma", False))
    _log_y = False

    def __init__(self, *, loss: str = "gaussian", delta: float = 1e-3, max_iter: int = 400) -> None:
        super().__init__(loss=loss, delta=delta, max_iter=max_iter)

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        most, spread = float(target.max()), float(np.ptp(target)) or 1.0
        return [
            [most, most + spread, most + 5 * spread],
            np.log(np.array([0.3, 1.0, 5.0]) * spread).tolist(),
            (0.1, 0.5, 1.0, 2.0),
        ]


class Sigmoid(Law):
    """``y = low + (high - low) / (1 + e^(-slope (x - middle)))``: a downstream score, by loss say."""

    _family = "sigmoid"
    _columns = ("x",)
    _names = (("low", False), ("high", False), ("slope", False), ("middle", False))
    _log_y = False
    _log_x = False

    def __init__(self, *, loss: str = "gaussian", delta: float = 1e-3, max_iter: int = 400) -> None:
        super().__init__(loss=loss, delta=delta, max_iter=max_iter)

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        x = features[:, 0]
        width = float(np.ptp(x)) or 1.0
        slopes = [sign * k / width for sign in (-1, 1) for k in (2.0, 8.0, 30.0)]
        return [
            [float(target.min())],
            [float(target.max())],
            slopes,
            np.quantile(x, [0.2, 0.5, 0.8]).tolist(),
        ]
