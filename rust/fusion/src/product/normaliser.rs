//! Logarithm of what the product of the experts' densities integrates to: how well the experts of a row agree.
//!
//! `ln Z = sum_d ln int prod_m N(x; mu_m, var_m)^w_m dx`. Expert by expert: a density to the power `w` is one of precision
//! `w / var` times `exp(((1 - w) (ln 2 pi + logvar) - ln w) / 2)`, and two densities multiply to one times
//! `N(mu - mu'; 0, var + var')`. The sum of variances is taken by logarithms, so that neither the smallest nor the largest
//! leaves the numbers.
//!
//! Backward, with `c_m = mean - mu_m`: `dmu_m = w_m tau_m c_m`, `dlogvar_m = w_m (tau_m var + tau_m c_m^2 - 1) / 2` and
//! `dw_m = -(ln 2 pi + logvar_m + tau_m var + tau_m c_m^2) / 2`. The distance to the mean of an expert that outweighs the
//! others is lost by rounding, and times its precision it is what counts: so it is the sum over the others of their share
//! times their distance, `M` exponentials an expert. This is a separate pass over a row, slower than the product.

use super::fuse::{bounded_exp, fuse};
use crate::experts::Present;
use sensorium_core::isa::part::{load, store};
use sensorium_core::math::{exp, softplus};
use sensorium_core::{Float, MAX_LANES, Simd};

const LN_TAU: f64 = 1.837_877_066_409_345_6;

/// `-logvar`, at `d..d + n`.
#[inline(always)]
unsafe fn log_precision<T: Float, S: Simd<T>>(s: S, logvar: *const T, d: usize, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { s.sub(s.splat(T::ZERO), load::<T, S, false>(s, logvar.add(d), n)) }
}

/// `ln Z` of a row.
///
/// # Safety
/// The experts have `width` elements, and the list is not empty.
#[inline(always)]
pub(super) unsafe fn value<T: Float, S: Simd<T>>(s: S, list: &[Present<T>], width: usize) -> T {
    let of = T::from_f64;
    let (half, zero) = (s.splat(of(0.5)), s.splat(T::ZERO));
    let (mut total, mut d) = (0.0, 0);
    while d < width {
        let n = S::LANES.min(width - d);
        let (mut sum, mut mean, mut logvar) = (zero, zero, zero);
        for (m, expert) in list.iter().enumerate() {
            // SAFETY: as the caller vouches.
            let (mu, own) = unsafe {
                (load::<T, S, false>(s, expert.mu.add(d), n), load::<T, S, false>(s, expert.logvar.add(d), n))
            };
            let weighted = s.sub(own, s.splat(expert.log_weight));
            // Exactly zero for a weight of one.
            let power = s.splat((T::ONE - expert.weight) * of(0.5));
            let factor =
                s.mul_add(power, s.add(own, s.splat(of(LN_TAU))), s.splat(expert.log_weight * of(-0.5)));
            sum = s.add(sum, factor);
            if m == 0 {
                (mean, logvar) = (mu, weighted);
                continue;
            }
            let below = s.sub(zero, s.abs(s.sub(logvar, weighted)));
            let more = softplus(s, below);
            let both = s.add(s.max(logvar, weighted), more);
            let away = s.sub(mu, mean);
            // A quarter of the exponent at a time: no power of it overflows where the distance is zero.
            let quarter = bounded_exp(s, s.mul(both, s.splat(of(-0.25))));
            let scaled = s.mul(s.mul(away, quarter), quarter);
            let density = s.mul_add(scaled, scaled, s.add(both, s.splat(of(LN_TAU))));
            sum = s.neg_mul_add(half, density, sum);
            logvar = s.sub(s.min(logvar, weighted), more);
            mean = s.mul_add(exp(s, s.sub(logvar, weighted)), away, mean);
        }
        let mut lanes = [T::ZERO; MAX_LANES];
        s.store(&mut lanes, sum);
        for x in &lanes[..n] {
            total += x.to_f64();
        }
        d += n;
    }
    of(total)
}

/// Where gradients of an expert are added to.
pub(super) struct Sums<T> {
    pub(super) mu: *mut T,
    pub(super) logvar: *mut T,
}

/// Adds the gradient of `ln Z` times `g` by one expert of a row, and returns that by its weight.
///
/// # Safety
/// The experts and the sums have `width` elements, and the list is not empty.
#[inline(always)]
pub(super) unsafe fn gradient<T: Float, S: Simd<T>>(
    s: S,
    list: &[Present<T>],
    (mu, logvar, weight): (*const T, *const T, T),
    g: T,
    sums: &Sums<T>,
    width: usize,
) -> T {
    let of = T::from_f64;
    let half = s.splat(of(0.5));
    let (mut total, mut d) = (0.0, 0);
    while d < width {
        let n = S::LANES.min(width - d);
        // SAFETY: as the caller vouches.
        unsafe {
            let [fused] = fuse::<T, S, 0, 1, false>(s, list, d, n).logvar;
            let (own, a) = (load::<T, S, false>(s, mu.add(d), n), log_precision(s, logvar, d, n));
            let half_a = s.mul(a, half);
            // The distance to the mean, times the root of the precision.
            let mut away = s.splat(T::ZERO);
            for other in list {
                let share =
                    s.add(log_precision(s, other.logvar, d, n), s.add(s.splat(other.log_weight), fused));
                let apart = s.sub(load::<T, S, false>(s, other.mu.add(d), n), own);
                away = s.mul_add(bounded_exp(s, s.add(half_a, share)), apart, away);
            }
            let (square, ratio) = (s.mul(away, away), bounded_exp(s, s.add(a, fused)));
            let both = s.add(ratio, square);
            let by_mu = s.mul(s.mul(away, bounded_exp(s, half_a)), s.splat(g * weight));
            let by_logvar = s.mul(s.sub(both, s.splat(T::ONE)), s.splat(g * weight * of(0.5)));
            for (sum, more) in [(sums.mu, by_mu), (sums.logvar, by_logvar)] {
                let sum = sum.add(d);
                store::<T, S, false>(s, sum, n, s.add(load::<T, S, false>(s, sum, n), more));
            }
            let mut lanes = [T::ZERO; MAX_LANES];
            s.store(&mut lanes, s.add(s.sub(both, a), s.splat(of(LN_TAU))));
            for x in &lanes[..n] {
                total += x.to_f64();
            }
        }
        d += n;
    }
    of(total * -0.5) * g
}
