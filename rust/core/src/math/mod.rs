//! Elementary functions on vectors, for inner loops: generic over float and instruction set, no branches.
//!
//! All give NaN for NaN. The largest error is given in units in the last place of the true result (ulp), over
//! every `f32` and a sample of `f64` that covers all exponents, at every instruction-set level.
//!
//! | function | ulp `f32` | ulp `f64` | at the edges |
//! |---|---|---|---|
//! | [`exp`] | 1.1 | 1.1 | denormal results are rounded like others; overflow gives infinity, underflow 0 |
//! | [`exp_nonpositive`] | 1.1 | 1.1 | for `x <= 0`: results below `2^-126.5` (`f64`: `2^-1022.5`) are 0 |
//! | [`exp2`] | 1.3 | 1.3 | of `2^x`: as [`exp`] |
//! | [`exp2_nonpositive`] | 1.3 | 1.3 | the same, of `2^x`: three operations fewer |
//! | [`log`] | 1.0 | 1.0 | denormal arguments included; `ln 0 = -inf`, NaN below 0 |
//! | [`log1p`] | 1.0 | 1.0 | keeps the digits and the sign of a tiny argument; `-inf` at -1, NaN below |
//! | [`sigmoid`] | 2.5 | 2.5 | small results keep their digits, denormal ones too |
//! | [`silu`] | 2.75 | 2.75 | from -87 (`f64`: -700) down as there, some `1e-36` (`1e-302`) below 0 |
//! | [`softplus`] | 2.25 | 2.25 | as above; no overflow |
//! | [`tanh`] | 2.75 | 2.75 | keeps the digits and the sign of a tiny argument |
//! | [`tanh_derivative`] | 3.25, 6.0 | 3.25, 6.0 | the same; derivatives below `2^-124.5` (`f64`: `2^-1020.5`) are 0 |
//!
//! The argument is cut into `n ln 2 + r` with `|r| <= ln(2) / 2` (Cody and Waite 1980), `exp(r)` is a polynomial,
//! and `2^n` is made from bits.

mod coefficients;
mod elementary;
mod log;
mod map;
mod sigmoid;

use crate::{Float, Simd};

pub use coefficients::Coefficients;
pub use elementary::Elementary;
pub use log::{log, log1p};
pub use map::{map, map_in_place, map2};
pub use sigmoid::{sigmoid, silu, silu_slope, softplus, tanh, tanh_derivative};

/// `c[0] + c[1] x + ...`, by Horner's rule.
#[inline(always)]
fn polynomial<T: Float, S: Simd<T>>(s: S, x: S::V, c: &[T]) -> S::V {
    // A loop, not a fold: its closure would be compiled for the baseline.
    let mut i = c.len() - 1;
    let mut sum = s.splat(c[i]);
    while i > 0 {
        i -= 1;
        sum = s.mul_add(sum, x, s.splat(c[i]));
    }
    sum
}

/// `(n + MAGIC, n, exp(r) - 1)` with `x = n ln 2 + r`, for finite `x` whose `n` fits the exponent.
#[inline(always)]
fn exp_parts<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V, S::V) {
    let shifted = s.mul_add(x, s.splat(T::LOG2_E), s.splat(T::MAGIC));
    let n = s.sub(shifted, s.splat(T::MAGIC));
    let r = s.neg_mul_add(n, s.splat(T::LN2_HI), x);
    let r = s.neg_mul_add(n, s.splat(T::LN2_LO), r);
    let q = polynomial(s, r, T::EXP);
    (shifted, n, s.mul_add(s.mul(r, r), q, r))
}

/// `e^x`.
#[inline(always)]
pub fn exp<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    // `max` and `min` return their second argument where either is NaN.
    let x = s.max(s.splat(T::EXP_ZERO), x);
    let x = s.min(s.splat(-T::EXP_ZERO), x);
    let (_, n, p) = exp_parts(s, x);
    s.scale(s.add(s.splat(T::ONE), p), n)
}

/// `e^x` for `x <= 0`, as after a maximum was subtracted; results below `2^-126.5` (`f64`: `2^-1022.5`) are 0.
///
/// Right up to `x = 88` (`f64`: 709), so that a maximum that is not quite one does no harm.
#[inline(always)]
pub fn exp_nonpositive<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    // The least `n` has the exponent pattern 0: that power is the number 0.
    let least = T::from_f64(-T::MAX_EXPONENT * std::f64::consts::LN_2);
    let (shifted, _, p) = exp_parts(s, s.max(s.splat(least), x));
    let power = s.shl_mantissa(shifted);
    s.mul_add(power, p, power)
}

/// `2^x`: three operations fewer than [`exp`], eleven with AVX-512.
#[inline(always)]
pub fn exp2<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let (n, r) = s.split_exponent(x);
    let q = polynomial(s, r, T::EXP2);
    s.scale(s.mul_add(r, q, s.splat(T::ONE)), n)
}

/// `2^x` for `x <= 0`; results below `2^-126.5` (`f64`: `2^-1022.5`) are 0.
///
/// A softmax whose scale takes in `log2(e)` needs no other exponential.
#[inline(always)]
pub fn exp2_nonpositive<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(T::from_f64(-T::MAX_EXPONENT)), x);
    let shifted = s.add(x, s.splat(T::MAGIC));
    let r = s.sub(x, s.sub(shifted, s.splat(T::MAGIC)));
    let power = s.shl_mantissa(shifted);
    let q = polynomial(s, r, T::EXP2);
    s.mul_add(power, s.mul(r, q), power)
}
