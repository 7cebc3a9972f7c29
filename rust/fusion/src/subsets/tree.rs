//! Subsets as sums of precisions, in fours: what nearly every element takes.

use super::counted::Counted;
use super::rows::Expert;
use sensorium_core::{Float, Simd, math};

/// A sum of precisions, and the same sum of precisions times means; or the gradients of the two.
pub(super) type Pair<V> = [V; 2];

/// Quads between which the product of their significands cannot leave the numbers.
const RENEW: usize = 64;

#[inline(always)]
fn plus<T: Float, S: Simd<T>>(s: S, a: Pair<S::V>, b: Pair<S::V>) -> Pair<S::V> {
    [s.add(a[0], b[0]), s.add(a[1], b[1])]
}

/// The sums of four subsets; one that does not count has precision 1 and mean 0, of which the divergence is 0.
#[inline(always)]
fn quad<T: Float, S: Simd<T>>(
    s: S,
    without: Pair<S::V>,
    first: Pair<S::V>,
    second: Pair<S::V>,
    counted: u8,
) -> [Pair<S::V>; 4] {
    let one = plus(s, without, first);
    let mut sums = [without, one, plus(s, without, second), plus(s, one, second)];
    if counted != 15 {
        for i in 0..4 {
            if counted >> i & 1 == 0 {
                sums[i] = [s.splat(T::ONE), s.splat(T::ZERO)];
            }
        }
    }
    sums
}

/// One over each precision, and the product of all.
#[inline(always)]
fn inverses<T: Float, S: Simd<T>>(s: S, sums: &[Pair<S::V>; 4]) -> ([S::V; 4], S::V) {
    let (low, high) = (s.mul(sums[0][0], sums[1][0]), s.mul(sums[2][0], sums[3][0]));
    let product = s.mul(low, high);
    let inverse = s.div(s.splat(T::ONE), product);
    let (of_low, of_high) = (s.mul(inverse, high), s.mul(inverse, low));
    let inverses = [
        s.mul(of_low, sums[1][0]),
        s.mul(of_low, sums[0][0]),
        s.mul(of_high, sums[3][0]),
        s.mul(of_high, sums[2][0]),
    ];
    (inverses, product)
}

/// The sums of the experts from the third on that `upper` names.
#[inline(always)]
fn node<T: Float, S: Simd<T>>(
    s: S,
    base: Pair<S::V>,
    experts: &[Expert<S::V>],
    nodes: &[Pair<S::V>],
    upper: usize,
) -> Pair<S::V> {
    if upper == 0 {
        return base;
    }
    plus(s, nodes[upper & (upper - 1)], experts[2 + upper.trailing_zeros() as usize].sums)
}

/// Twice a sum of divergences, the logarithms of precisions in it not yet taken: of `2^exponent significand`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Divergence<V> {
    rest: V,
    significand: V,
    exponent: V,
}

impl<V: Copy> Divergence<V> {
    /// Of nothing.
    #[inline(always)]
    pub(super) fn none<T: Float, S: Simd<T, V = V>>(s: S) -> Self {
        let zero = s.splat(T::ZERO);
        Self { rest: zero, significand: s.splat(T::ONE), exponent: zero }
    }

    #[inline(always)]
    pub(super) fn add<T: Float, S: Simd<T, V = V>>(&mut self, s: S, other: Self) {
        self.rest = s.add(self.rest, other.rest);
        let (significand, exponent) = s.frexp(s.mul(self.significand, other.significand));
        self.significand = significand;
        self.exponent = s.add(self.exponent, s.add(other.exponent, exponent));
    }

    /// `other` in the lanes where `holds` is 0.
    #[inline(always)]
    pub(super) fn or<T: Float, S: Simd<T, V = V>>(self, s: S, holds: V, other: V) -> Self {
        let one = s.splat(T::ONE);
        let holds = s.eq(holds, one);
        Self {
            rest: s.select(holds, self.rest, other),
            significand: s.select(holds, self.significand, one),
            exponent: s.select(holds, self.exponent, s.splat(T::ZERO)),
        }
    }

    #[inline(always)]
    pub(super) fn value<T: Float, S: Simd<T, V = V>>(self, s: S) -> V {
        let log = s.mul_add(self.exponent, s.splat(T::LN2_LO), math::log(s, self.significand));
        s.add(s.mul_add(self.exponent, s.splat(T::LN2_HI), log), self.rest)
    }
}

/// Twice the sum of the divergences of the subsets that count.
#[inline(always)]
pub(super) fn divergence<T: Float, S: Simd<T>>(
    s: S,
    base: Pair<S::V>,
    experts: &[Expert<S::V>],
    counted: &Counted,
    nodes: &mut [Pair<S::V>],
) -> Divergence<S::V> {
    let zero = s.splat(T::ZERO);
    let (mut variances, mut squares, mut exponents) = (zero, zero, zero);
    let (mut significands, mut evaluated) = (s.splat(T::ONE), 0);
    let (first, second) = (experts[0].sums, experts[1].sums);
    for upper in 0..counted.quads.len() {
        nodes[upper] = node(s, base, experts, nodes, upper);
        let flags = counted.quads[upper];
        if flags != 0 {
            let sums = quad(s, nodes[upper], first, second, flags);
            let (variance, product) = inverses(s, &sums);
            let mean = [
                s.mul(sums[0][1], variance[0]),
                s.mul(sums[1][1], variance[1]),
                s.mul(sums[2][1], variance[2]),
                s.mul(sums[3][1], variance[3]),
            ];
            let of_four = s.add(s.add(variance[0], variance[1]), s.add(variance[2], variance[3]));
            variances = s.add(variances, of_four);
            let (low, high) = (s.mul(mean[0], mean[0]), s.mul(mean[2], mean[2]));
            let of_four = s.add(s.mul_add(mean[1], mean[1], low), s.mul_add(mean[3], mean[3], high));
            squares = s.add(squares, of_four);
            let (significand, exponent) = s.frexp(product);
            significands = s.mul(significands, significand);
            exponents = s.add(exponents, exponent);
            evaluated += 4;
        }
        if upper % RENEW == RENEW - 1 {
            let (significand, exponent) = s.frexp(significands);
            (significands, exponents) = (significand, s.add(exponents, exponent));
        }
    }
    let rest = s.add(squares, s.sub(variances, s.splat(T::from_usize(evaluated))));
    Divergence { rest, significand: significands, exponent: exponents }
}

/// Gradients of the sum of the divergences by what each expert adds to the sums, that of the precision with the
/// opposite sign; those of an expert are overwritten.
#[inline(always)]
pub(super) fn gradients<T: Float, S: Simd<T>>(
    s: S,
    base: Pair<S::V>,
    experts: &mut [Expert<S::V>],
    counted: &Counted,
    nodes: &mut [Pair<S::V>],
    totals: &mut [Pair<S::V>],
) {
    let none = [s.splat(T::ZERO); 2];
    for upper in 0..counted.quads.len() {
        nodes[upper] = node(s, base, experts, nodes, upper);
        totals[upper] = none;
    }
    for m in 2..experts.len() {
        experts[m].grads = none;
    }
    let (first, second) = (experts[0].sums, experts[1].sums);
    let (mut of_first, mut of_second) = (none, none);
    let (half, minus_half) = (s.splat(T::from_f64(0.5)), s.splat(T::from_f64(-0.5)));
    for upper in (0..counted.quads.len()).rev() {
        let mut total = totals[upper];
        let flags = counted.quads[upper];
        if flags != 0 {
            let sums = quad(s, nodes[upper], first, second, flags);
            let (variance, _) = inverses(s, &sums);
            let mut grads = [none; 4];
            for i in 0..4 {
                let mean = s.mul(sums[i][1], variance[i]);
                let of_mean = s.mul(mean, variance[i]);
                let of_log = s.mul(variance[i], s.mul_add(half, variance[i], minus_half));
                grads[i] = [s.mul_add(mean, of_mean, of_log), of_mean];
            }
            // The reciprocals are rounded: of a precision of 1 it may be less than 1, and precisions multiply that.
            if flags != 15 {
                for i in 0..4 {
                    if flags >> i & 1 == 0 {
                        grads[i] = none;
                    }
                }
            }
            let of_both = plus(s, grads[1], grads[3]);
            of_first = plus(s, of_first, of_both);
            of_second = plus(s, of_second, plus(s, grads[2], grads[3]));
            total = plus(s, total, plus(s, of_both, plus(s, grads[0], grads[2])));
        }
        if upper != 0 {
            let expert = &mut experts[2 + upper.trailing_zeros() as usize];
            expert.grads = plus(s, expert.grads, total);
            let parent = upper & (upper - 1);
            totals[parent] = plus(s, totals[parent], total);
        }
    }
    (experts[0].grads, experts[1].grads) = (of_first, of_second);
}
