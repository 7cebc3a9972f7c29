//! Subsets from logarithms of precisions, for experts that differ by any factor or are beyond what sums of precisions
//! hold.
//!
//! With `l` the logarithm of the precision of a subset, and `t` that of the expert that joins it, the share of the
//! expert is `w = sigmoid(t - l)`, the mean `(1 - w) mu + w mu_m`, and the logarithm `max(l, t) + log1p(exp(-|t - l|))`.

use super::counted::Counted;
use super::rows::Expert;
use sensorium_core::{Float, Simd, math};

/// Logarithm of the precision, and mean; or the gradients of the two.
pub(super) type Node<V> = [V; 2];

/// Shares of an expert and of the subset that it joins, and what `log1p` takes.
#[inline(always)]
fn shares<T: Float, S: Simd<T>>(s: S, log: S::V, joins: S::V) -> (S::V, S::V, S::V) {
    let (zero, one) = (s.splat(T::ZERO), s.splat(T::ONE));
    let apart = s.sub(joins, log);
    let small = math::exp_nonpositive(s, s.sub(zero, s.abs(apart)));
    let large = s.div(one, s.add(one, small));
    let less = s.mul(small, large);
    let below = s.lt(apart, zero);
    (s.select(below, less, large), s.select(below, large, less), small)
}

/// Every subset from the one without its lowest expert, from a standard prior where there is one.
#[inline(always)]
pub(super) fn fill<T: Float, S: Simd<T>>(
    s: S,
    has_prior: bool,
    experts: &[Expert<S::V>],
    number: usize,
    nodes: &mut [Node<S::V>],
) {
    nodes[0] = [s.splat(T::ZERO); 2];
    for subset in 1..1_usize << number {
        let (parent, expert) = (subset & (subset - 1), &experts[subset.trailing_zeros() as usize]);
        if parent == 0 && !has_prior {
            nodes[subset] = [expert.log, expert.mean];
            continue;
        }
        let [log, mean] = nodes[parent];
        let (share, rest, small) = shares(s, log, expert.log);
        // `max` and `min` return their second argument where either is NaN; either may be.
        let larger = s.select(s.lt(log, expert.log), expert.log, log);
        let joined = s.add(larger, math::log1p(s, small));
        nodes[subset] = [joined, s.mul_add(share, expert.mean, s.mul(rest, mean))];
    }
}

/// Twice the sum of the divergences of the subsets that count.
#[inline(always)]
pub(super) fn divergence<T: Float, S: Simd<T>>(
    s: S,
    number: usize,
    counted: &Counted,
    nodes: &[Node<S::V>],
) -> S::V {
    let mut sum = s.splat(T::ZERO);
    for subset in 1..1_usize << number {
        if counted.counts(subset) {
            let [log, mean] = nodes[subset];
            let variance = bounded(s, math::exp(s, s.sub(s.splat(T::ZERO), log)));
            let rest = s.add(s.mul(mean, mean), s.sub(log, s.splat(T::ONE)));
            sum = s.add(sum, s.add(variance, rest));
        }
    }
    sum
}

/// Standard deviation of a subset.
#[inline(always)]
pub(super) fn deviation<T: Float, S: Simd<T>>(s: S, log: S::V) -> S::V {
    bounded(s, math::exp(s, s.mul(s.splat(T::from_f64(-0.5)), log)))
}

/// A variance or its root; what would overflow counts as the largest number of which some can still be added up.
#[inline(always)]
fn bounded<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    s.min(s.splat(T::from_f64((T::MAX_EXPONENT - 12.0).exp2())), x)
}

/// Gradients by the logarithms of the experts' precisions and by their means, in the order of [`Node`]; those of an
/// expert are overwritten. `scale` is the gradient of each divergence; that of the chosen subset is in its place of
/// `totals`, to which the divergence's is added.
#[inline(always)]
pub(super) fn gradients<T: Float, S: Simd<T>>(
    s: S,
    has_prior: bool,
    experts: &mut [Expert<S::V>],
    number: usize,
    counted: &Counted,
    chosen: usize,
    scale: S::V,
    nodes: &[Node<S::V>],
    totals: &mut [Node<S::V>],
) {
    let zero = s.splat(T::ZERO);
    let half_scale = s.mul(scale, s.splat(T::from_f64(0.5)));
    for subset in 0..1 << number {
        if subset != chosen {
            totals[subset] = [zero; 2];
        }
    }
    for m in 0..number {
        experts[m].grads = [zero; 2];
    }
    for subset in (1..1_usize << number).rev() {
        let [mut of_log, mut of_mean] = totals[subset];
        if counted.counts(subset) {
            let [log, mean] = nodes[subset];
            let variance = bounded(s, math::exp(s, s.sub(zero, log)));
            of_log = s.mul_add(half_scale, s.sub(s.splat(T::ONE), variance), of_log);
            of_mean = s.mul_add(scale, mean, of_mean);
        }
        let (parent, expert) = (subset & (subset - 1), &mut experts[subset.trailing_zeros() as usize]);
        if parent == 0 && !has_prior {
            expert.grads = [s.add(expert.grads[0], of_log), s.add(expert.grads[1], of_mean)];
            continue;
        }
        let [log, mean] = nodes[parent];
        let (share, rest, _) = shares(s, log, expert.log);
        let moved = s.mul(s.mul(s.mul(share, rest), s.sub(expert.mean, mean)), of_mean);
        expert.grads = [
            s.add(expert.grads[0], s.mul_add(share, of_log, moved)),
            s.mul_add(share, of_mean, expert.grads[1]),
        ];
        let [total_log, total_mean] = totals[parent];
        totals[parent] =
            [s.add(total_log, s.sub(s.mul(rest, of_log), moved)), s.mul_add(rest, of_mean, total_mean)];
    }
}
