//! Scores of siblings, from their columns. All are plain loops over slices, which the compiler vectorises for the level
//! in force; no sum is reordered, so that every level gives the same bits.

use crate::config::Policy;
use crate::random::Draws;

/// What is known of siblings, a column each.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) visits: &'a [u32],
    pub(crate) waiting: &'a [u32],
    pub(crate) sums: &'a [f64],
    /// Empty unless the policy needs it.
    pub(crate) squares: &'a [f64],
    /// Empty where siblings are alike.
    pub(crate) priors: &'a [f32],
}

/// What policies see instead of returns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// What a leaf under way is taken to have lost.
    pub(crate) loss: f64,
    /// Smallest mean so far.
    pub(crate) low: f64,
    /// Largest mean less the smallest; 0 leaves means as they are.
    pub(crate) span: f64,
}

impl Scale {
    /// `x` as policies see it.
    #[inline(always)]
    pub(crate) fn of(self, x: f64) -> f64 {
        if self.span > 0.0 { (x - self.low) / self.span } else { x }
    }
}

/// Writes visits, leaves under way included, and mean returns; these are NaN where there were no visits.
#[inline(always)]
fn means(block: Block, scale: Scale, n: &mut [f64], q: &mut [f64]) {
    let len = n.len();
    let (visits, waiting, sums, q) =
        (&block.visits[..len], &block.waiting[..len], &block.sums[..len], &mut q[..len]);
    if scale.span > 0.0 {
        for i in 0..len {
            let told = f64::from(visits[i] as i32);
            let under_way = f64::from(waiting[i] as i32);
            let mean = if told > 0.0 { (sums[i] / told - scale.low) / scale.span } else { 0.0 };
            n[i] = told + under_way;
            q[i] = (mean * told - scale.loss * under_way) / n[i];
        }
    } else {
        for i in 0..len {
            let under_way = f64::from(waiting[i] as i32);
            n[i] = f64::from(visits[i] as i32) + under_way;
            q[i] = (sums[i] - scale.loss * under_way) / n[i];
        }
    }
}

/// Writes the score of each sibling into `scores`. `total` is the visits of the node above, `own` its mean return;
/// `n` is scratch.
#[inline(always)]
pub(crate) fn score(
    policy: Policy,
    block: Block,
    scale: Scale,
    total: f64,
    own: f64,
    draws: &mut Draws,
    n: &mut [f64],
    scores: &mut [f64],
) {
    let len = n.len();
    let scores = &mut scores[..len];
    match policy {
        Policy::Ucb1 { c } => {
            means(block, scale, n, scores);
            let log = total.ln();
            for i in 0..len {
                let bound = scores[i] + c * (log / n[i]).sqrt();
                scores[i] = if n[i] > 0.0 { bound } else { f64::INFINITY };
            }
        }
        Policy::Ucb1Tuned => {
            means(block, scale, n, scores);
            tuned(block, scale, total.ln(), n, scores);
        }
        Policy::Puct { c, base, unvisited } => {
            means(block, scale, n, scores);
            let c = base.map_or(c, |base| c + ((1.0 + total + base) / base).ln());
            let first = unvisited.unwrap_or(own);
            let weight = c * total.sqrt();
            if block.priors.is_empty() {
                let bonus = weight * f64::from(crate::nodes::even(len));
                for i in 0..len {
                    let q = if n[i] > 0.0 { scores[i] } else { first };
                    scores[i] = q + bonus / (1.0 + n[i]);
                }
            } else {
                let priors = &block.priors[..len];
                for i in 0..len {
                    let q = if n[i] > 0.0 { scores[i] } else { first };
                    scores[i] = q + weight * f64::from(priors[i]) / (1.0 + n[i]);
                }
            }
        }
        Policy::EpsilonGreedy { epsilon } => {
            if epsilon > 0.0 && draws.uniform() <= epsilon {
                for score in scores.iter_mut() {
                    *score = draws.uniform();
                }
                return;
            }
            means(block, scale, n, scores);
            for i in 0..len {
                scores[i] = if n[i] > 0.0 { scores[i] } else { f64::INFINITY };
            }
        }
        Policy::ThompsonGaussian { mean, strength, shape, scale: spread }
        | Policy::BranchGaussian { mean, strength, shape, scale: spread } => {
            let prior = [mean, strength, shape, spread];
            for (i, score) in scores.iter_mut().enumerate() {
                *score = gaussian(block, scale, i, prior, draws);
            }
        }
        Policy::ThompsonBeta { alpha, beta } | Policy::BranchBeta { alpha, beta } => {
            for (i, score) in scores.iter_mut().enumerate() {
                let (told, under_way) = (f64::from(block.visits[i]), f64::from(block.waiting[i]));
                // Rounding may leave a sum a little outside what is possible.
                let successes = block.sums[i].max(0.0);
                let failures = (told - successes).max(0.0) + under_way;
                *score = draws.beta(alpha + successes, beta + failures);
            }
        }
    }
}

/// `V = variance + sqrt(2 ln N / n)`, at most 1/4, on the scale that the policy sees.
#[inline(always)]
fn tuned(block: Block, scale: Scale, log: f64, n: &[f64], scores: &mut [f64]) {
    let unit = if scale.span > 0.0 { scale.span } else { 1.0 };
    for i in 0..n.len() {
        if n[i] <= 0.0 {
            scores[i] = f64::INFINITY;
            continue;
        }
        let told = f64::from(block.visits[i]);
        let bound = if told > 0.0 {
            let mean = block.sums[i] / told;
            let variance = (block.squares[i] / told - mean * mean).max(0.0) / (unit * unit);
            (variance + (2.0 * log / n[i]).sqrt()).min(0.25)
        } else {
            0.25
        };
        scores[i] += (log / n[i] * bound).sqrt();
    }
}

/// A draw of the mean of child `i`, `t` with `2 shape'` degrees of freedom: the variance from its inverse gamma, then
/// the mean given it. Leaves under way count as returns of minus the virtual loss.
fn gaussian(block: Block, scale: Scale, i: usize, prior: [f64; 4], draws: &mut Draws) -> f64 {
    let [mean, strength, shape, spread] = prior;
    let (told, under_way) = (f64::from(block.visits[i]), f64::from(block.waiting[i]));
    let n = told + under_way;
    let mut sum = block.sums[i] - scale.loss * under_way;
    let mut square = block.squares[i] + scale.loss * scale.loss * under_way;
    if scale.span > 0.0 {
        // Of (x - low) / span, from sums of x.
        let sums = block.sums[i];
        let of = (sums - scale.low * told) / scale.span;
        square = (block.squares[i] - 2.0 * scale.low * sums + scale.low * scale.low * told)
            / (scale.span * scale.span)
            + scale.loss * scale.loss * under_way;
        sum = of - scale.loss * under_way;
    }
    let average = if n > 0.0 { sum / n } else { 0.0 };
    let scatter = (square - n * average * average).max(0.0);
    let apart = average - mean;
    let after = shape + 0.5 * n;
    let rate = spread + 0.5 * (scatter + strength * n / (strength + n) * apart * apart);
    let variance = rate / draws.gamma(after);
    (strength * mean + sum) / (strength + n) + (variance / (strength + n)).sqrt() * draws.normal()
}

/// The first of the largest scores; none where all are minus infinity.
#[inline(always)]
pub(crate) fn largest(scores: &[f64]) -> Option<usize> {
    let mut best = None;
    let mut most = f64::NEG_INFINITY;
    for (i, &score) in scores.iter().enumerate() {
        if score > most {
            most = score;
            best = Some(i);
        }
    }
    best
}
