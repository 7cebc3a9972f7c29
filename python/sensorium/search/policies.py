"""How a walk chooses among the children of a node: settings, without state.

`q` is a child's mean return, `n` its visits, `N` the visits of the node. Leaves that are being evaluated
count as visits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar, Protocol

__all__ = [
    "PUCT",
    "UCB1",
    "UCT",
    "ABMCTSBeta",
    "ABMCTSGaussian",
    "EpsilonGreedy",
    "Policy",
    "ThompsonBeta",
    "ThompsonGaussian",
    "UCB1Tuned",
    "Widening",
]


class Policy(Protocol):
    """What a tree asks of its policy: a name that the core knows, and its numbers."""

    @property
    def name(self) -> str:
        """Name of the rule."""

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""


@dataclass(frozen=True)
class UCB1:
    """The largest `q + c sqrt(ln N / n)`; unvisited children first, in order.

    Parameters
    ----------
    c : float
        Weight of exploration. `sqrt(2)` is the constant of the bound on regret for returns in `[0, 1]`.

    References
    ----------
    Auer, Cesa-Bianchi and Fischer (2002), Finite-time Analysis of the Multiarmed Bandit Problem.

    Examples
    --------
    >>> from sensorium.search import UCB1
    >>> UCB1(c=1.0)
    UCB1(c=1.0)
    """

    c: float = sqrt(2)
    name: ClassVar[str] = "ucb1"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.c]


@dataclass(frozen=True)
class UCT:
    """UCB1 in every node of a tree, `q + 2 cp sqrt(ln N / n)`.

    Parameters
    ----------
    cp : float
        Weight of exploration; `1 / sqrt(2)` is the constant of the proof for returns in `[0, 1]`.

    References
    ----------
    Kocsis and Szepesvári (2006), Bandit Based Monte-Carlo Planning.
    """

    cp: float = 1 / sqrt(2)
    name: ClassVar[str] = "ucb1"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [2 * self.cp]


@dataclass(frozen=True)
class UCB1Tuned:
    """The largest `q + sqrt(ln N / n min(1/4, V))`, `V` the variance of returns plus `sqrt(2 ln N / n)`.

    For returns in `[0, 1]`: their variance is at most 1/4. It keeps the squares of returns, 8 bytes a node.

    References
    ----------
    Auer, Cesa-Bianchi and Fischer (2002), section 4.
    """

    name: ClassVar[str] = "ucb1_tuned"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return []


@dataclass(frozen=True)
class PUCT:
    """The largest `q + c p sqrt(N) / (1 + n)`, with `p` the prior of the action.

    Parameters
    ----------
    c : float
        Weight of the prior.
    base : float, optional
        Where given, `c + ln((1 + N + base) / base)` takes the place of `c`. AlphaZero has 19652.
    unvisited : float, optional
        The return that an unvisited child is taken to have; None is the node's own mean value. It is on the
        scale from 0 to 1 where the tree normalises.

    References
    ----------
    Rosin (2011), Multi-armed Bandits with Episode Context. Silver et al. (2017), Mastering the Game of Go
    without Human Knowledge; (2018), A General Reinforcement Learning Algorithm, for `base`.
    """

    c: float = 1.25
    base: float | None = None
    unvisited: float | None = 0.0
    name: ClassVar[str] = "puct"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.c, self.base, self.unvisited]


@dataclass(frozen=True)
class EpsilonGreedy:
    """Any child with probability `epsilon`, else the largest `q`; unvisited children first.

    Parameters
    ----------
    epsilon : float
        From 0 to 1.
    """

    epsilon: float = 0.1
    name: ClassVar[str] = "epsilon_greedy"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.epsilon]


@dataclass(frozen=True)
class ThompsonGaussian:
    """The largest draw from the posterior of each child's mean return, returns taken to be normal.

    The prior is normal-inverse-gamma: the variance is `scale / Gamma(shape)`, the mean then normal around
    `mean` with that variance over `strength`. It keeps the squares of returns, 8 bytes a node.

    Parameters
    ----------
    mean, strength : float
        Mean of the prior, and the number of returns that it is worth.
    shape, scale : float
        Of the prior of the variance.

    References
    ----------
    Thompson (1933), On the Likelihood that One Unknown Probability Exceeds Another. Murphy (2007), Conjugate
    Bayesian Analysis of the Gaussian Distribution.
    """

    mean: float = 0.0
    strength: float = 1.0
    shape: float = 1.0
    scale: float = 1.0
    name: ClassVar[str] = "thompson_gaussian"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.mean, self.strength, self.shape, self.scale]


@dataclass(frozen=True)
class ThompsonBeta:
    """The largest draw from `Beta(alpha + sum, beta + n - sum)`; returns lie in `[0, 1]`, for one player.

    Parameters
    ----------
    alpha, beta : float
        Successes and failures that the prior is worth.

    References
    ----------
    Thompson (1933). Agrawal and Goyal (2012), Analysis of Thompson Sampling for the Multi-armed Bandit
    Problem.
    """

    alpha: float = 1.0
    beta: float = 1.0
    name: ClassVar[str] = "thompson_beta"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.alpha, self.beta]


@dataclass(frozen=True)
class ABMCTSGaussian:
    """Adaptive branching: draws decide whether to add a child, or else which child to go to (AB-MCTS-A).

    For states with endlessly many actions, such as the answers of a language model. The tree adds children
    itself: :meth:`Tree.select` hands out nodes that are new, and the caller makes each of them from the node
    above it. At a node two draws are compared: from the posterior of what its new children were worth when
    they came, and from that of all that came below them later. The larger says whether to add another child,
    or to go on, to the child of the largest draw from its own posterior. Posteriors are normal-inverse-gamma.
    Leaves under way count as nothing.

    Parameters
    ----------
    mean, strength : float
        Mean of the prior, and the number of values that it is worth.
    shape, scale : float
        Of the prior of the variance.

    References
    ----------
    Inoue et al. (2025), Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree
    Search, arXiv:2503.04412.

    Examples
    --------
    >>> from sensorium.search import ABMCTSGaussian, Tree
    >>> tree = Tree(policy=ABMCTSGaussian(), seed=0)
    >>> texts = {0: "a"}
    >>> while tree.simulations < 50:
    ...     for leaf in tree.select():
    ...         texts[leaf] = texts[tree.parents(leaf)[0]] + "b"    # the generator
    ...         tree.backup(leaf, min(len(texts[leaf]), 10) / 10)    # the verifier
    >>> len(texts), tree.simulations
    (51, 50)
    """

    mean: float = 0.0
    strength: float = 1.0
    shape: float = 0.5
    scale: float = 0.05
    name: ClassVar[str] = "branch_gaussian"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.mean, self.strength, self.shape, self.scale]


@dataclass(frozen=True)
class ABMCTSBeta:
    """Adaptive branching as :class:`ABMCTSGaussian`, with beta posteriors, for values in `[0, 1]`.

    Parameters
    ----------
    alpha, beta : float
        Successes and failures that the prior is worth; one half each is the prior of Jeffreys.

    References
    ----------
    Inoue et al. (2025), arXiv:2503.04412.
    """

    alpha: float = 0.5
    beta: float = 0.5
    name: ClassVar[str] = "branch_beta"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.alpha, self.beta]


@dataclass(frozen=True)
class Widening:
    """Progressive widening: a node has `ceil(k N^alpha)` children, and another policy chooses among them.

    `N` counts the walk that arrives. For more actions than can be listed: the tree adds children itself,
    :meth:`Tree.select` hands out nodes that are new, and the caller makes each of them from the node above
    it.
    Children are alike in their priors.

    Parameters
    ----------
    policy : Policy
        How walks choose among children that are there.
    k, alpha : float
        Children after the first visit, and how their number grows, from 0 to 1.

    References
    ----------
    Coulom (2007), Computing Elo Ratings of Move Patterns in the Game of Go. Couëtoux et al. (2011),
    Continuous Upper Confidence Trees.

    Examples
    --------
    >>> from sensorium.search import Tree, Widening
    >>> tree = Tree(policy=Widening(k=1.0, alpha=0.5))
    >>> for _ in range(16):
    ...     leaf = tree.select()
    ...     tree.backup(leaf, 0.5)
    >>> len(tree.children())
    4
    """

    policy: Policy = field(default_factory=UCB1)
    k: float = 1.0
    alpha: float = 0.5

    @property
    def name(self) -> str:
        """Name of the rule: that of the policy within, and a word before it."""
        return f"widening+{self.policy.name}"

    def parameters(self) -> list[float | None]:
        """Numbers of the rule, in the order of the core."""
        return [self.k, self.alpha, *self.policy.parameters()]
