//! GELU in its tanh form, and `SiLU`: `x sigmoid(t)`.
//!
//! `gelu(x) = x/2 (1 + tanh(c (x + a x^3))) = x sigmoid(t)` with `t = 2 c (x + a x^3)`, `c = sqrt(2/pi)`,
//! `a = 0.044715` (Hendrycks and Gimpel, 2016). `silu(x) = x sigmoid(x)`. Both cost one `exp` and one division
//! an element; there is no power. `x` is bounded where the sigmoid is 0 or 1 to the last digit and `exp(-t)` does
//! not overflow (at 10 in `f32`, 21 in `f64` for GELU). NaN stays NaN.

use crate::vector::{load, store};
use sensorium_core::error::check_len;
use sensorium_core::math::{exp_nonpositive, silu, silu_slope};
use sensorium_core::threads::for_each_block;
use sensorium_core::{Float, Kernel, Result, Simd};

/// Elements of a task.
const BLOCK: usize = 8192;
/// Work of an element, in floating-point operations.
pub(crate) const WORK: usize = 30;

/// What a linear map applies to its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Gaussian error linear unit, tanh form.
    Gelu,
    /// Sigmoid linear unit.
    Silu,
}

/// `y = act(x)`.
///
/// # Errors
/// Where lengths differ.
pub(crate) fn forward<T: Float>(act: Activation, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("y", y, x.len())?;
    for_each_block(y, BLOCK, BLOCK * WORK, |i, y| {
        let x = &x[i * BLOCK..i * BLOCK + y.len()];
        T::dispatch(Forward { act, x, y });
    });
    Ok(())
}

/// `dx = grad * act'(x)`.
///
/// # Errors
/// Where lengths differ.
pub(crate) fn backward<T: Float>(act: Activation, grad: &[T], x: &[T], dx: &mut [T]) -> Result<()> {
    check_len("grad", grad, x.len())?;
    check_len("dx", dx, x.len())?;
    for_each_block(dx, BLOCK, BLOCK * WORK, |i, dx| {
        let part = i * BLOCK..i * BLOCK + dx.len();
        T::dispatch(Backward { act, grad: &grad[part.clone()], x: &x[part], dx });
    });
    Ok(())
}

/// `y = act(x)` on one thread.
pub(crate) struct Forward<'a, T> {
    pub(crate) act: Activation,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.y.len()).step_by(S::LANES) {
            store(s, self.y, j, value(s, self.act, load(s, self.x, j, T::ZERO)));
        }
    }
}

/// `dx = grad * act'(x)` on one thread.
pub(crate) struct Backward<'a, T> {
    pub(crate) act: Activation,
    pub(crate) grad: &'a [T],
    pub(crate) x: &'a [T],
    pub(crate) dx: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.dx.len()).step_by(S::LANES) {
            let (_, slope) = value_and_slope(s, self.act, load(s, self.x, j, T::ZERO));
            store(s, self.dx, j, s.mul(load(s, self.grad, j, T::ZERO), slope));
        }
    }
}

/// `act(x)`.
#[inline(always)]
pub(crate) fn value<T: Float, S: Simd<T>>(s: S, act: Activation, x: S::V) -> S::V {
    if act == Activation::Silu {
        return silu(s, x);
    }
    let Parts { below, yes, .. } = gelu_parts(s, x);
    s.mul(below, yes)
}

/// `act(x)` and `act'(x) = sigmoid(t) + x sigmoid(t) sigmoid(-t) t'`: the slope costs five operations more.
#[inline(always)]
pub(crate) fn value_and_slope<T: Float, S: Simd<T>>(s: S, act: Activation, x: S::V) -> (S::V, S::V) {
    if act == Activation::Silu {
        return silu_slope(s, x);
    }
    let Parts { below, near, yes, e, dt } = gelu_parts(s, x);
    let bend = s.mul(s.mul(s.mul(near, yes), s.mul(e, yes)), dt);
    (s.mul(below, yes), s.add(bend, yes))
}

/// What value and slope of GELU are made of.
struct Parts<V> {
    /// `x` bounded from below: what the sigmoid multiplies.
    below: V,
    /// `x` bounded from both sides.
    near: V,
    /// `sigmoid(t)`.
    yes: V,
    /// `exp(-t)`: `sigmoid(-t)` is `e sigmoid(t)`, both to full relative accuracy.
    e: V,
    /// `dt/dx`.
    dt: V,
}

#[inline(always)]
fn gelu_parts<T: Float, S: Simd<T>>(s: S, x: S::V) -> Parts<S::V> {
    let of = |c: f64| s.splat(T::from_f64(c));
    let bound = if T::MANTISSA == 23 { 10.0 } else { 21.0 };
    // `max` and `min` return their second argument where either is NaN.
    let below = s.max(of(-bound), x);
    let near = s.min(of(bound), below);
    let (c, ca) = (2.0 * (2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
    let square = s.mul(near, near);
    let minus_t = s.mul(near, s.mul_add(square, of(-c * ca), of(-c)));
    let dt = s.mul_add(square, of(3.0 * c * ca), of(c));
    let e = exp_nonpositive(s, minus_t);
    Parts { below, near, yes: s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), e)), e, dt }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_values() {
        let x: Vec<f64> = (-40..40).map(|i| f64::from(i) * 0.21).collect();
        for act in [Activation::Gelu, Activation::Silu] {
            let at = |h: f64| {
                let moved: Vec<f64> = x.iter().map(|x| x + h).collect();
                let mut y = vec![0.0; x.len()];
                forward(act, &moved, &mut y).unwrap();
                y
            };
            let (mut slope, ones) = (vec![0.0; x.len()], vec![1.0; x.len()]);
            backward(act, &ones, &x, &mut slope).unwrap();
            for ((s, a), b) in slope.iter().zip(at(1e-5)).zip(at(-1e-5)) {
                assert!((s - (a - b) / 2e-5).abs() < 1e-9, "{act:?}");
            }
        }
    }
}
