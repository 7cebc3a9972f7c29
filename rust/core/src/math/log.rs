//! Logarithms: `ln x = e ln 2 + ln m` with `m` near one; `ln m` by the series of the inverse hyperbolic tangent
//! in `s = (m - 1) / (m + 1)`, arranged so that the leading term `m - 1` is exact (Tang 1990).

use super::polynomial;
use crate::{Float, Simd};

/// `ln u + correction` for normal `u > 0`.
#[inline(always)]
fn log_normal<T: Float, S: Simd<T>>(simd: S, u: S::V, correction: S::V) -> S::V {
    let (m, e) = simd.frexp(u);
    let f = simd.sub(m, simd.splat(T::ONE));
    let s = simd.div(f, simd.add(f, simd.splat(T::from_f64(2.0))));
    let z = simd.mul(s, s);
    let series = simd.mul(z, polynomial(simd, z, T::LOG));
    // ln m = f - (f^2 / 2 - s (f^2 / 2 + series)); small terms first, f and e ln 2 last.
    let half_square = simd.mul(simd.mul(f, f), simd.splat(T::from_f64(0.5)));
    let small = simd.mul_add(e, simd.splat(T::LN2_LO), correction);
    let small = simd.mul_add(s, simd.add(half_square, series), small);
    let rest = simd.sub(f, simd.sub(half_square, small));
    simd.mul_add(e, simd.splat(T::LN2_HI), rest)
}

/// `ln(1 + z)` for `0 <= z <= 1`: one series serves all of it, with no exponent to take apart.
#[inline(always)]
pub(super) fn log1p_unit<T: Float, S: Simd<T>>(simd: S, z: S::V) -> S::V {
    let s = simd.div(z, simd.add(z, simd.splat(T::from_f64(2.0))));
    let square = simd.mul(s, s);
    let series = simd.mul(square, polynomial(simd, square, T::LOG_UNIT));
    let half_square = simd.mul(simd.mul(z, z), simd.splat(T::from_f64(0.5)));
    let small = simd.mul(s, simd.add(half_square, series));
    simd.sub(z, simd.sub(half_square, small))
}

/// `y`, the logarithm of `x`, put right where `x` is no positive number: `ln 0 = -inf`, `ln inf = inf`, NaN below 0.
#[inline(always)]
fn at_edges<T: Float, S: Simd<T>>(s: S, x: S::V, y: S::V) -> S::V {
    let zero = s.splat(T::ZERO);
    let infinity = s.splat(-T::NEG_INFINITY);
    let y = s.select(s.lt(x, infinity), y, x);
    let y = s.select(s.lt(x, zero), s.splat(T::from_f64(f64::NAN)), y);
    s.select(s.eq(x, zero), s.splat(T::NEG_INFINITY), y)
}

/// `ln x`, denormal `x` included.
#[inline(always)]
pub fn log<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    // Denormal numbers have no leading one to read the exponent from: times 2^64 they are normal.
    let denormal = s.lt(x, s.splat(T::MIN_POSITIVE));
    let u = s.select(denormal, s.mul(x, s.splat(T::from_f64(64_f64.exp2()))), x);
    let ln_shift = T::from_f64(-64.0 * std::f64::consts::LN_2);
    let y = log_normal(s, u, s.splat(T::ZERO));
    at_edges(s, x, s.select(denormal, s.add(y, s.splat(ln_shift)), y))
}

/// `ln(1 + x)`, without loss near zero.
#[inline(always)]
pub fn log1p<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let one = s.splat(T::ONE);
    let u = s.add(one, x);
    // What rounding 1 + x to u lost, exactly (Knuth 1969); ln(u + lost) = ln u + lost / u.
    let kept = s.sub(u, one);
    let lost = s.add(s.sub(one, s.sub(u, kept)), s.sub(x, kept));
    let y = at_edges(s, u, log_normal(s, u, s.div(lost, u)));
    // Below half an epsilon the function is its argument, sign of zero included.
    s.select(s.lt(s.abs(x), s.splat(T::EPSILON * T::from_f64(0.25))), x, y)
}
