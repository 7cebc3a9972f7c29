//! A vector of the product, in registers.

use crate::experts::Present;
use sensorium_core::math::{exp, exp_nonpositive, log};
use sensorium_core::{Float, Simd};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// The vector at `x`, or its first `n` lanes and zeros.
///
/// # Safety
/// `x` holds them.
#[inline(always)]
pub(super) unsafe fn load<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.load_ptr(x) } else { s.load_head(from_raw_parts(x, n), T::ZERO) } }
}

/// Writes the vector to `x`, or its first `n` lanes.
///
/// # Safety
/// `x` has room for them.
#[inline(always)]
pub(super) unsafe fn store<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.store_ptr(x, v) } else { s.store_head(from_raw_parts_mut(x, n), v) } }
}

/// `e^x`, of arguments up to a bound alone, so that sums of results stay finite.
#[inline(always)]
pub(super) fn bounded_exp<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let most = if T::MANTISSA == 23 { 80.0 } else { 700.0 };
    // `min` returns its second argument where either is NaN.
    exp(s, s.min(s.splat(T::from_f64(most)), x))
}

/// `x^2`, with the same bound.
#[inline(always)]
pub(super) fn bounded_square<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let most = if T::MANTISSA == 23 { 5.540_622_4e34 } else { 1.014_232_054_735_004_5e304 };
    s.min(s.splat(T::from_f64(most)), s.mul(x, x))
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

/// The product, and what the share of an expert in it follows from.
pub(super) struct Fused<V: Copy, const N: usize> {
    pub(super) mean: V,
    pub(super) logvar: V,
    /// `exp(a_m - top)`, where the number of experts is known when this is compiled.
    powers: [V; N],
    top: V,
    /// One through the sum of the powers.
    inverse: V,
}

/// Product of `N` experts, or of all in the list where `N` is 0, at `d..d + n`, or a whole vector from `d` on.
///
/// # Safety
/// The experts have these elements, and the list is of `N` experts where `N` is not 0.
#[inline(always)]
pub(super) unsafe fn fuse<T: Float, S: Simd<T>, const N: usize, const FULL: bool>(
    s: S,
    list: &[Present<T>],
    d: usize,
    n: usize,
) -> Fused<S::V, N> {
    let count = if N > 0 { N } else { list.len() };
    let mut powers = [s.splat(T::ONE); N];
    // SAFETY: as the caller vouches.
    unsafe {
        let mut top = logit::<T, S, FULL>(s, list.get_unchecked(0), d, n);
        if N == 1 {
            let mean = load::<T, S, FULL>(s, list.get_unchecked(0).mu.add(d), n);
            let logvar = s.sub(s.splat(T::ZERO), top);
            return Fused { mean, logvar, powers, top, inverse: s.splat(T::ONE) };
        }
        for m in 1..count {
            top = s.max(top, logit::<T, S, FULL>(s, list.get_unchecked(m), d, n));
        }
        let (mut sum, mut mean) = (s.splat(T::ZERO), s.splat(T::ZERO));
        for m in 0..count {
            let expert = list.get_unchecked(m);
            let power = exp_nonpositive(s, s.sub(logit::<T, S, FULL>(s, expert, d, n), top));
            if N > 0 {
                powers[m] = power;
            }
            sum = s.add(sum, power);
            mean = s.mul_add(power, load::<T, S, FULL>(s, expert.mu.add(d), n), mean);
        }
        let inverse = s.div(s.splat(T::ONE), sum);
        let logvar = s.sub(s.splat(T::ZERO), s.add(top, log(s, sum)));
        Fused { mean: s.mul(mean, inverse), logvar, powers, top, inverse }
    }
}

impl<V: Copy, const N: usize> Fused<V, N> {
    /// `s_m`, the share of expert `m` in the mean.
    ///
    /// # Safety
    /// As of [`fuse`].
    #[inline(always)]
    pub(super) unsafe fn share<T: Float, S: Simd<T, V = V>, const FULL: bool>(
        &self,
        s: S,
        list: &[Present<T>],
        m: usize,
        d: usize,
        n: usize,
    ) -> V {
        if N == 1 {
            return self.inverse;
        }
        let power = if N > 0 {
            self.powers[m]
        } else {
            // SAFETY: as the caller vouches.
            let logit = unsafe { logit::<T, S, FULL>(s, list.get_unchecked(m), d, n) };
            exp_nonpositive(s, s.sub(logit, self.top))
        };
        s.mul(power, self.inverse)
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
