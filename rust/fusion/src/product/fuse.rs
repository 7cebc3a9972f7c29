//! Some vectors of the product, in registers.
//!
//! One vector at a time waits for itself: maximum, exponential, division, logarithm and exponential are 150 cycles one after
//! the other, and the schedulers of a Zen 4 do not see far enough to begin the next. Two at a time do not.

use crate::experts::Present;
use sensorium_core::isa::part::load;
use sensorium_core::math::exp_nonpositive;
use sensorium_core::{Float, Simd};

/// `e^x`, of arguments up to a bound alone, so that sums of results stay finite; results below the normal numbers are 0.
#[inline(always)]
pub(super) fn bounded_exp<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let most = if T::MANTISSA == 23 { 80.0 } else { 700.0 };
    // `min` returns its second argument where either is NaN. The exponential is right up to 88 (`f64`: 709).
    exp_nonpositive(s, s.min(s.splat(T::from_f64(most)), x))
}

/// `x^2`, with the same bound.
#[inline(always)]
pub(super) fn bounded_square<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let most = if T::MANTISSA == 23 { 5.540_622_4e34 } else { 1.014_232_054_735_004_5e304 };
    s.min(s.splat(T::from_f64(most)), s.mul(x, x))
}

/// `ln x` and `1 / x` with one division, for normal `x`, far from overflow: the logarithm as that of
/// [`math`](sensorium_core::math), whose quotient is `(m - 1) / (m + 1)` of the significand `m`.
#[inline(always)]
fn log_and_inverse<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(T::ONE);
    let (m, e) = s.frexp(x);
    let (f, p) = (s.sub(m, one), s.add(m, one));
    let both = s.div(one, s.mul(x, p));
    let q = s.mul(f, s.mul(both, x));
    let z = s.mul(q, q);
    let mut series = s.splat(T::LOG[T::LOG.len() - 1]);
    for i in (0..T::LOG.len() - 1).rev() {
        series = s.mul_add(series, z, s.splat(T::LOG[i]));
    }
    let half_square = s.mul(s.mul(f, f), s.splat(T::from_f64(0.5)));
    let small = s.mul_add(q, s.mul_add(z, series, half_square), s.mul(e, s.splat(T::LN2_LO)));
    let rest = s.sub(f, s.sub(half_square, small));
    (s.mul_add(e, s.splat(T::LN2_HI), rest), s.mul(both, p))
}

/// `a_m` of an expert.
#[inline(always)]
unsafe fn logit<T: Float, S: Simd<T>, const FULL: bool>(
    s: S,
    expert: &Present<T>,
    d: usize,
    n: usize,
) -> S::V {
    // SAFETY: as the caller vouches.
    let logvar = unsafe { load::<T, S, FULL>(s, expert.logvar.add(d), n) };
    s.sub(s.splat(expert.log_weight), logvar)
}

/// The product in `W` vectors, and what the share of an expert in it follows from.
pub(super) struct Fused<V: Copy, const N: usize, const W: usize> {
    pub(super) mean: [V; W],
    pub(super) logvar: [V; W],
    /// `exp(a_m - pivot)`, where the number of experts is known when this is compiled.
    powers: [[V; W]; N],
    pivot: [V; W],
    /// `exp` of the last expert's `a - pivot`.
    last: [V; W],
    /// One through the sum of the powers.
    inverse: [V; W],
}

/// How far above the pivot an `a_m` may be: its power is beside one what one is beside nothing, and the product of a mean
/// and it is far from overflow.
const fn far(mantissa: u32) -> f64 {
    if mantissa == 23 { 40.0 } else { 300.0 }
}

/// Product of `N` experts, or of all in the list where `N` is 0: `W` whole vectors from `d` on, or, of one vector and not
/// `FULL`, `d..d + n`.
///
/// # Safety
/// The experts have these elements, and the list is of `N` experts where `N` is not 0.
#[inline(always)]
pub(super) unsafe fn fuse<T: Float, S: Simd<T>, const N: usize, const W: usize, const FULL: bool>(
    s: S,
    list: &[Present<T>],
    d: usize,
    n: usize,
) -> Fused<S::V, N, W> {
    let count = if N > 0 { N } else { list.len() };
    let (zero, one) = (s.splat(T::ZERO), s.splat(T::ONE));
    let mut powers = [[one; W]; N];
    let (mut mean, mut logvar, mut last, mut inverse) = ([zero; W], [zero; W], [one; W], [one; W]);
    let (mut pivot, mut sum) = ([zero; W], [one; W]);
    // SAFETY: as the caller vouches.
    unsafe {
        let expert = list.get_unchecked(count - 1);
        for v in 0..W {
            let d = d + v * S::LANES;
            pivot[v] = logit::<T, S, FULL>(s, expert, d, n);
            mean[v] = load::<T, S, FULL>(s, expert.mu.add(d), n);
            logvar[v] = s.sub(zero, pivot[v]);
        }
        if count == 1 {
            return Fused { mean, logvar, powers, pivot, last, inverse };
        }
        for v in 0..W {
            let d = d + v * S::LANES;
            let mut top = logit::<T, S, FULL>(s, list.get_unchecked(0), d, n);
            for m in 1..count - 1 {
                top = s.max(top, logit::<T, S, FULL>(s, list.get_unchecked(m), d, n));
            }
            let least = s.sub(top, s.splat(T::from_f64(far(T::MANTISSA))));
            last[v] = s.select(s.lt(pivot[v], least), zero, one);
            pivot[v] = s.max(least, pivot[v]);
            sum[v] = last[v];
            mean[v] = s.mul(last[v], mean[v]);
        }
        for m in 0..count - 1 {
            let expert = list.get_unchecked(m);
            for v in 0..W {
                let d = d + v * S::LANES;
                let power = exp_nonpositive(s, s.sub(logit::<T, S, FULL>(s, expert, d, n), pivot[v]));
                if N > 0 {
                    powers[m][v] = power;
                }
                sum[v] = s.add(sum[v], power);
                mean[v] = s.mul_add(power, load::<T, S, FULL>(s, expert.mu.add(d), n), mean[v]);
            }
        }
        for v in 0..W {
            let log;
            (log, inverse[v]) = log_and_inverse(s, sum[v]);
            logvar[v] = s.sub(zero, s.add(pivot[v], log));
            mean[v] = s.mul(mean[v], inverse[v]);
        }
        Fused { mean, logvar, powers, pivot, last, inverse }
    }
}

impl<V: Copy, const N: usize, const W: usize> Fused<V, N, W> {
    /// `s_m`, the share of expert `m` in the mean of vector `v`, which is at `d`.
    ///
    /// # Safety
    /// As of [`fuse`].
    #[inline(always)]
    pub(super) unsafe fn share<T: Float, S: Simd<T, V = V>, const FULL: bool>(
        &self,
        s: S,
        list: &[Present<T>],
        (m, v): (usize, usize),
        d: usize,
        n: usize,
    ) -> V {
        let count = if N > 0 { N } else { list.len() };
        let power = if m + 1 == count {
            self.last[v]
        } else if N > 0 {
            self.powers[m][v]
        } else {
            // SAFETY: as the caller vouches.
            let logit = unsafe { logit::<T, S, FULL>(s, list.get_unchecked(m), d, n) };
            exp_nonpositive(s, s.sub(logit, self.pivot[v]))
        };
        s.mul(power, self.inverse[v])
    }
}

/// Runs `$body` with `$N` the number of experts where that is compiled for, otherwise 0.
macro_rules! by_count {
    ($count:expr, $N:ident => $body:expr) => {
        match $count {
            1 => by_count!(@ $N 1 $body),
            2 => by_count!(@ $N 2 $body),
            3 => by_count!(@ $N 3 $body),
            4 => by_count!(@ $N 4 $body),
            6 => by_count!(@ $N 6 $body),
            _ => by_count!(@ $N 0 $body),
        }
    };
    (@ $N:ident $value:literal $body:expr) => {{
        const $N: usize = $value;
        $body
    }};
}
pub(super) use by_count;

/// What the divergence of an element is made of.
pub(super) struct Divergence<V> {
    /// `exp(logvar - v)`.
    pub(super) ratio: V,
    /// `(mean - m) exp(-v)`.
    pub(super) pull: V,
    /// `(mean - m)^2 exp(-v)`.
    pub(super) square: V,
    /// `logvar - v`.
    pub(super) log_ratio: V,
}

/// Of the product from `N(m, exp(v))`, which is `N(0, 1)` unless `GIVEN`. `variance` is `exp(logvar)`.
///
/// # Safety
/// The target has these elements.
#[inline(always)]
pub(super) unsafe fn divergence<T: Float, S: Simd<T>, const FULL: bool>(
    s: S,
    (mean, logvar, variance): (S::V, S::V, S::V),
    target: Option<(*const T, *const T)>,
    d: usize,
    n: usize,
) -> Divergence<S::V> {
    let Some((m, v)) = target else {
        let square = s.mul(mean, mean);
        return Divergence { ratio: variance, pull: mean, square, log_ratio: logvar };
    };
    // SAFETY: as the caller vouches.
    let (m, v) = unsafe { (load::<T, S, FULL>(s, m.add(d), n), load::<T, S, FULL>(s, v.add(d), n)) };
    let (away, log_ratio) = (s.sub(mean, m), s.sub(logvar, v));
    let precision = bounded_exp(s, s.sub(s.splat(T::ZERO), v));
    let pull = s.mul(away, precision);
    Divergence { ratio: bounded_exp(s, log_ratio), pull, square: s.mul(away, pull), log_ratio }
}
