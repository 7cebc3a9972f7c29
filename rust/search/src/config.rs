//! What a tree is asked to be: policy, kind of values, limits.

use crate::error::{Result, value};
use crate::nodes::NONE;

/// How a walk chooses among the children of a node.
///
/// `q` is a child's mean return, `n` its visits, `N` those of the node; all count leaves that are being evaluated.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// `q + c sqrt(ln N / n)`, unvisited first (Auer, Cesa-Bianchi and Fischer 2002).
    Ucb1 {
        /// Weight of exploration.
        c: f64,
    },
    /// `q + sqrt(ln N / n min(1/4, V))` with `V` the variance and its own bound (Auer et al. 2002).
    Ucb1Tuned,
    /// `q + c p sqrt(N) / (1 + n)` (Silver et al. 2017), `c + ln((1 + N + base) / base)` for `c` where there is a base.
    Puct {
        /// Weight of the prior.
        c: f64,
        /// Visits from which on the weight grows.
        base: Option<f64>,
        /// Return that an unvisited child is taken to have; the node's own mean where none is given.
        unvisited: Option<f64>,
    },
    /// Any child with probability `epsilon`, else that of the largest mean, unvisited first.
    EpsilonGreedy {
        /// Probability of a child at random.
        epsilon: f64,
    },
    /// The largest draw from the posterior of each child's mean: normal-inverse-gamma, a Student t.
    ThompsonGaussian {
        /// Mean of the prior.
        mean: f64,
        /// Observations that the prior mean is worth.
        strength: f64,
        /// Shape of the prior of the variance.
        shape: f64,
        /// Scale of the prior of the variance.
        scale: f64,
    },
    /// The largest draw from `Beta(alpha + sum, beta + n - sum)`; returns lie in `[0, 1]`.
    ThompsonBeta {
        /// Successes that the prior is worth.
        alpha: f64,
        /// Failures that the prior is worth.
        beta: f64,
    },
    /// Adaptive branching (Inoue et al. 2025, AB-MCTS-A): draws say whether to add a child, and else which to go to;
    /// normal-inverse-gamma as [`ThompsonGaussian`](Self::ThompsonGaussian).
    BranchGaussian {
        /// Mean of the prior.
        mean: f64,
        /// Observations that the prior mean is worth.
        strength: f64,
        /// Shape of the prior of the variance.
        shape: f64,
        /// Scale of the prior of the variance.
        scale: f64,
    },
    /// Adaptive branching with beta posteriors.
    BranchBeta {
        /// Successes that the prior is worth.
        alpha: f64,
        /// Failures that the prior is worth.
        beta: f64,
    },
}

/// A node may have `ceil(k N^alpha)` children, the walk that arrives counted (Couëtoux et al. 2011).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widening {
    /// Children after the first visit.
    pub k: f64,
    /// Power of visits.
    pub alpha: f64,
}

impl Policy {
    /// Whether the policy asks for sums of squared returns.
    #[must_use]
    pub const fn needs_squares(self) -> bool {
        matches!(self, Self::Ucb1Tuned | Self::ThompsonGaussian { .. } | Self::BranchGaussian { .. })
    }

    /// Whether returns must lie in `[0, 1]`.
    pub(crate) const fn needs_shares(self) -> bool {
        matches!(self, Self::ThompsonBeta { .. } | Self::BranchBeta { .. })
    }

    /// Whether the policy says itself when to add a child.
    #[must_use]
    pub const fn branches(self) -> bool {
        matches!(self, Self::BranchGaussian { .. } | Self::BranchBeta { .. })
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Ucb1 { c } => at_least("c", c, 0.0),
            Self::Ucb1Tuned => Ok(()),
            Self::Puct { c, base, unvisited } => {
                at_least("c", c, 0.0)?;
                base.map_or(Ok(()), |base| at_least("base", base, 1.0))?;
                unvisited.map_or(Ok(()), |value| at_least("unvisited", value, -LARGEST))
            }
            Self::EpsilonGreedy { epsilon } if (0.0..=1.0).contains(&epsilon) => Ok(()),
            Self::EpsilonGreedy { epsilon } => {
                Err(value("epsilon", format!("must be from 0 to 1, not {epsilon}")))
            }
            Self::ThompsonGaussian { mean, strength, shape, scale }
            | Self::BranchGaussian { mean, strength, shape, scale } => {
                at_least("mean", mean, -LARGEST)?;
                positive("strength", strength)?;
                positive("shape", shape)?;
                positive("scale", scale)
            }
            Self::ThompsonBeta { alpha, beta } | Self::BranchBeta { alpha, beta } => {
                positive("alpha", alpha)?;
                positive("beta", beta)
            }
        }
    }
}

/// The largest value, reward or setting: sums of squares over the largest tree stay finite.
pub(crate) const LARGEST: f64 = 1e100;

fn at_least(arg: &'static str, got: f64, least: f64) -> Result<()> {
    if (least..=LARGEST).contains(&got) {
        return Ok(());
    }
    Err(value(arg, format!("must be from {least} to 1e100, not {got}")))
}

fn positive(arg: &'static str, got: f64) -> Result<()> {
    if got > 0.0 && got <= LARGEST {
        return Ok(());
    }
    Err(value(arg, format!("must be above 0 and at most 1e100, not {got}")))
}

/// Settings of a tree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// How walks choose.
    pub policy: Policy,
    /// Walks add children, so many.
    pub widening: Option<Widening>,
    /// What a step takes off a value, from 0 to 1.
    pub discount: f64,
    /// 1, or 2 who take turns and want opposite things.
    pub players: u8,
    /// Whether the policy sees means on a scale from the smallest to the largest mean so far.
    pub normalise: bool,
    /// A leaf that is being evaluated counts as a visit that returned minus this.
    pub virtual_loss: f64,
    /// The largest return that there is; given one, values are proven where all is known.
    pub win: Option<f64>,
    /// Nodes that the tree may have.
    pub max_nodes: usize,
    /// Bytes that its nodes may take.
    pub max_bytes: usize,
    /// Of random choices.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Ucb1 { c: std::f64::consts::SQRT_2 },
            widening: None,
            discount: 1.0,
            players: 1,
            normalise: false,
            virtual_loss: 1.0,
            win: None,
            max_nodes: NONE as usize - 1,
            max_bytes: isize::MAX as usize,
            seed: 0,
        }
    }
}

impl Config {
    /// # Errors
    /// Where a setting is out of range; the words name it.
    pub fn check(&self) -> Result<()> {
        self.policy.check()?;
        if let Some(Widening { k, alpha }) = self.widening {
            positive("k", k)?;
            if !(0.0..=1.0).contains(&alpha) {
                return Err(value("alpha", format!("must be from 0 to 1, not {alpha}")));
            }
            if self.policy.branches() {
                return Err(value("policy", "says itself when to add a child: it cannot be widened"));
            }
        }
        if self.open() && self.win.is_some() {
            return Err(value("win", "cannot be given where walks add children: no node has all of them"));
        }
        if !(0.0..=1.0).contains(&self.discount) {
            return Err(value("discount", format!("must be from 0 to 1, not {}", self.discount)));
        }
        if !(1..=2).contains(&self.players) {
            return Err(value("players", format!("must be 1 or 2, not {}", self.players)));
        }
        at_least("virtual_loss", self.virtual_loss, 0.0)?;
        self.win.map_or(Ok(()), |win| at_least("win", win, -LARGEST))?;
        if self.policy.needs_shares() && self.players == 2 {
            return Err(value("players", "must be 1 with returns from 0 to 1"));
        }
        if self.max_nodes == 0 || self.max_nodes >= NONE as usize {
            return Err(value(
                "max_nodes",
                format!("must be from 1 to {}, not {}", NONE - 1, self.max_nodes),
            ));
        }
        Ok(())
    }

    /// Whether walks add children.
    #[must_use]
    pub const fn open(&self) -> bool {
        self.widening.is_some() || self.policy.branches()
    }

    /// Factor from a state's value to the return of the action that led to it, beside the reward.
    pub(crate) fn gamma(&self) -> f64 {
        if self.players == 2 { -self.discount } else { self.discount }
    }
}
