"""One budget that every strategy obeys, and a ledger of what was spent where."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError

__all__ = ["Budget", "Cost", "Entry"]

_UNKNOWN = ("tokens", "money")  # known once a call has returned, unless ``most`` bounds them
ROLES = ("generator", "verifier", "critic")


@dataclass(frozen=True)
class Cost:
    """What something cost.

    Parameters
    ----------
    calls : int
        Attempts to call a generator, a verifier or a critic; one that failed counts.
    tokens : int
        As callables report them.
    seconds : float
        Within callables; calls side by side add up.
    money : float
        As callables report it.
    simulations : int
        Rounds of a tree search, or what callables report.

    Examples
    --------
    >>> Cost(calls=1, tokens=20) + Cost(calls=2)
    Cost(calls=3, tokens=20, seconds=0.0, money=0.0, simulations=0)
    """

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0
    simulations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            float(_exact(self.money) + _exact(other.money)),
            self.simulations + other.simulations,
        )

    def as_dict(self) -> dict[str, float]:
        """Return what is not zero, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: who spent what at which node in which call; ``replayed`` if a trace had it."""

    role: str
    node: str
    key: str
    cost: Cost
    replayed: bool = False


class Budget:
    """Limits on what a search may spend; what is not given has none.

    Parameters
    ----------
    calls : int, optional
        Attempts to call one of ``counted``. Never exceeded, however many calls are under way at once.
    tokens, simulations : int, optional
        As callables report them, see :class:`Reply`.
    seconds : float, optional
        On the clock, from the first call on. No call begins after it, and one that is under way is given up.
        A search that goes on from a trace goes on from the time that it had used.
    money : float, optional
        As callables report it. Added up in decimal, so that ten times 0.1 is 1.
    most : mapping of str to Cost, optional
        By role (``"generator"``, ``"verifier"``, ``"critic"``), the most that a call can cost. A call begins
        only where that much is left, so that tokens and money are never exceeded either. For a role without
        it a call begins while anything is left, and the calls under way then may exceed the limit.
        ``Cost()`` says that a role costs nothing beyond the call.
    counted : collection of str
        The roles whose calls ``calls`` counts. All are in the ledger.

    Raises
    ------
    DTypeError, ArgumentError
        Where a limit is not a number from 0 on.

    Notes
    -----
    One budget may serve several searches, one after the other or in several threads.

    Examples
    --------
    >>> budget = Budget(tokens=100, most={"generator": Cost(tokens=60)})
    >>> reservation = budget.reserve("generator")
    >>> budget.reserve("generator") is None  # 60 of 100 are spoken for
    True
    >>> budget.settle(reservation, Cost(calls=1, tokens=20), node="0")
    >>> budget.left["tokens"], budget.spent
    (80, False)
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        money: float | None = None,
        simulations: int | None = None,
        most: Mapping[str, Cost] | None = None,
        counted: Collection[str] = ROLES,
    ) -> None:
        self.limits: dict[str, float] = {}
        for name, whole in (("calls", calls), ("tokens", tokens), ("simulations", simulations)):
            if whole is not None:
                self.limits[name] = check_integer(name, whole)
        for name, number in (("seconds", seconds), ("money", money)):
            if number is not None:
                self.limits[name] = check_finite_number(name, number)
                if self.limits[name] < 0:
                    raise ArgumentError(f"{name} must be at least 0, not {number:g}")
        for argument, roles in (("most", most or {}), ("counted", counted)):
            for role in roles:
                if role not in ROLES:
                    raise ArgumentError(f"{argument} names {role!r}, expected one of {', '.join(ROLES)}")
        self.most = dict(most or {})
        self.counted = frozenset(counted)
        self.ledger: list[Entry] = []
        self._used = dict.fromkeys(("calls", "tokens", "money", "simulations"), Decimal(0))
        self._reserved = dict(self._used)
        self._total = Cost()
        self._began: float | None = None
        self._earlier = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        limits = ", ".join(f"{name}={value:g}" for name, value in self.limits.items())
        return f"Budget({limits})"

    def start(self, earlier: float = 0.0) -> None:
        """Let the clock run, if it does not yet; ``earlier`` seconds were used before."""
        with self._lock:
            if self._began is None:
                self._began = time.monotonic()
                self._earlier = earlier

    @property
    def elapsed(self) -> float:
        """Seconds on the clock since the first call."""
        return 0.0 if self._began is None else time.monotonic() - self._began + self._earlier

    @property
    def seconds_left(self) -> float:
        """Seconds on the clock until the limit; infinite where there is none."""
        return self.limits["seconds"] - self.elapsed if "seconds" in self.limits else math.inf

    @property
    def used(self) -> Cost:
        """All that was spent."""
        return self._total

    @property
    def left(self) -> dict[str, float]:
        """What is left of each limit, not less than 0; what calls under way have reserved is taken off."""
        with self._lock:
            return {name: self._left(name) for name in self.limits}

    @property
    def spent(self) -> bool:
        """Whether some limit is reached."""
        return any(value <= 0 for value in self.left.values())

    @property
    def reason(self) -> str:
        """Which limits are reached, in words; empty where none is."""
        return ", ".join(f"{name} ({self.limits[name]:g})" for name, value in self.left.items() if value <= 0)

    def reserve(self, role: str, *, simulations: int = 0) -> Reservation | None:
        """Return a reservation for a call, or None where the budget has no room for it."""
        self.start()
        bound = self.most.get(role, Cost())
        claim = {
            "calls": Decimal(int(role in self.counted)),
            "tokens": Decimal(bound.tokens),
            "money": _exact(bound.money),
            "simulations": Decimal(bound.simulations + simulations),
        }
        with self._lock:
            if self.seconds_left <= 0:
                return None
            for name, amount in claim.items():
                if name not in self.limits:
                    continue
                left = _exact(self.limits[name]) - self._used[name] - self._reserved[name]
                if amount > left or (left <= 0 and name in _UNKNOWN and role not in self.most):
                    return None
            for name, amount in claim.items():
                self._reserved[name] += amount
        return Reservation(role, claim)

    def allows(self, reservation: Reservation) -> bool:
        """Whether a call that has a reservation may still begin, now that others have returned."""
        if self.seconds_left <= 0:
            return False
        if reservation.role in self.most:
            return True
        with self._lock:
            return all(
                self._used[name] < _exact(self.limits[name]) for name in _UNKNOWN if name in self.limits
            )

    def settle(
        self,
        reservation: Reservation | None,
        cost: Cost,
        *,
        node: str = "",
        key: str = "",
        role: str = "",
        replayed: bool = False,
    ) -> None:
        """Replace a reservation by what the call did cost; without one, charge a cost that is a fact."""
        role = reservation.role if reservation is not None else role
        self.start()
        with self._lock:
            if reservation is not None:
                self._drop(reservation)
            self._used["calls"] += cost.calls if role in self.counted else 0
            self._used["tokens"] += cost.tokens
            self._used["money"] += _exact(cost.money)
            self._used["simulations"] += cost.simulations
            self._total = self._total + cost
            self.ledger.append(Entry(role, node, key, cost, replayed))

    def release(self, reservation: Reservation) -> None:
        """Give back a reservation whose call was not made."""
        with self._lock:
            self._drop(reservation)

    def charge(self, cost: Cost, *, role: str = "", node: str = "") -> None:
        """Write down a cost that a loop of one's own has had.

        Examples
        --------
        >>> budget = Budget(simulations=2)
        >>> while not budget.spent:
        ...     budget.charge(Cost(simulations=1))
        >>> budget.used.simulations
        2
        """
        self.settle(None, cost, role=role, node=node)

    def by_role(self) -> dict[str, Cost]:
        """Return what each role has spent, in the order of the roles' first appearance."""
        return _sums(self.ledger, "role")

    def by_node(self) -> dict[str, Cost]:
        """Return what was spent at each node."""
        return _sums(self.ledger, "node")

    def _left(self, name: str) -> float:
        if name == "seconds":
            return max(0.0, self.seconds_left)
        left = max(Decimal(0), _exact(self.limits[name]) - self._used[name] - self._reserved[name])
        return float(left) if name == "money" else int(left)

    def _drop(self, reservation: Reservation) -> None:
        if reservation.open:
            reservation.open = False
            for name, amount in reservation.claim.items():
                self._reserved[name] -= amount


class Reservation:
    """Room in a budget for one call."""

    def __init__(self, role: str, claim: dict[str, Decimal]) -> None:
        self.role = role
        self.claim = claim
        self.open = True


def _exact(value: float) -> Decimal:
    """Return the decimal number that a float is written as."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(float(value)))


def _sums(ledger: list[Entry], attribute: str) -> dict[str, Cost]:
    out: dict[str, Cost] = {}
    for entry in ledger:
        name: Any = getattr(entry, attribute)
        out[name] = out.get(name, replace(Cost())) + entry.cost
    return out
