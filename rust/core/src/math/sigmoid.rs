//! The sigmoid and its relatives, all from `exp(-|x|)` or `exp(-2|x|)`, which cannot overflow.

use super::log::log1p_unit;
use super::{exp, exp_nonpositive, exp_parts};
use crate::{Float, Simd};

/// `1 / (1 + e^-x)`; for `x < 0` as `e^x / (1 + e^x)`, so that small results keep their digits.
#[inline(always)]
pub fn sigmoid<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let (zero, one) = (s.splat(T::ZERO), s.splat(T::ONE));
    let z = exp(s, s.sub(zero, s.abs(x)));
    s.div(s.select(s.lt(x, zero), z, one), s.add(one, z))
}

/// `x sigmoid(x)`, the sigmoid linear unit.
#[inline(always)]
pub fn silu<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let (below, _, yes, _) = silu_parts(s, x);
    s.mul(below, yes)
}

/// `silu(x)` and its slope `sigmoid(x) + x sigmoid(x) sigmoid(-x)`, which costs four operations more.
#[inline(always)]
pub fn silu_slope<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    let (below, near, yes, e) = silu_parts(s, x);
    (s.mul(below, yes), s.mul_add(s.mul(near, yes), s.mul(e, yes), yes))
}

/// `x` bounded from below, `x` bounded from both sides, `sigmoid(x)` and `e^-x`: beyond the bounds the sigmoid is 0 or 1
/// to the last digit, and within them nothing overflows.
#[inline(always)]
fn silu_parts<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V, S::V, S::V) {
    let bound = if T::MANTISSA == 23 { 87.0 } else { 700.0 };
    // `max` and `min` return their second argument where either is NaN.
    let below = s.max(s.splat(T::from_f64(-bound)), x);
    let near = s.min(s.splat(T::from_f64(bound)), below);
    let e = exp_nonpositive(s, s.sub(s.splat(T::ZERO), near));
    (below, near, s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), e)), e)
}

/// `(1 - e^-2|x|) / (1 + e^-2|x|)` with the sign of `x`; the numerator without loss near zero.
#[inline(always)]
pub fn tanh<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let y = s.mul(s.abs(x), s.splat(T::from_f64(-2.0)));
    let (shifted, _, p) = exp_parts(s, s.max(s.splat(T::EXP_NIL), y));
    let power = s.shl_mantissa(shifted);
    // e^y - 1 = 2^n p + (2^n - 1), both exact but for p.
    let expm1 = s.mul_add(power, p, s.sub(power, s.splat(T::ONE)));
    s.copysign(s.div(expm1, s.add(s.splat(T::from_f64(2.0)), expm1)), x)
}

/// `(tanh(x), 1 - tanh(x)^2)`: the derivative as `4 z / (1 + z)^2` with `z = e^-2|x|`, so that it keeps its digits
/// where the hyperbolic tangent is nearly one.
#[inline(always)]
pub fn tanh_derivative<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    let least = T::from_f64(-T::MAX_EXPONENT * std::f64::consts::LN_2);
    let y = s.mul(s.abs(x), s.splat(T::from_f64(-2.0)));
    let (shifted, _, p) = exp_parts(s, s.max(s.splat(least), y));
    let power = s.shl_mantissa(shifted);
    let (z, expm1) = (s.mul_add(power, p, power), s.mul_add(power, p, s.sub(power, s.splat(T::ONE))));
    // One division for both, which costs the hyperbolic tangent half a unit in the last place.
    let inverse = s.div(s.splat(T::ONE), s.add(s.splat(T::from_f64(2.0)), expm1));
    let twice = s.add(inverse, inverse);
    (s.copysign(s.mul(expm1, inverse), x), s.mul(s.mul(z, twice), twice))
}

/// `ln(1 + e^x)` as `max(x, 0) + ln(1 + e^-|x|)`.
#[inline(always)]
pub fn softplus<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let zero = s.splat(T::ZERO);
    let z = exp(s, s.sub(zero, s.abs(x)));
    s.add(s.max(zero, x), log1p_unit(s, z))
}
