//! GELU in its tanh form, and `SiLU`: `x sigmoid(t)`.
//!
//! `gelu(x) = x/2 (1 + tanh(c (x + a x^3))) = x sigmoid(t)` with `t = 2 c (x + a x^3)`, `c = sqrt(2/pi)`,
//! `a = 0.044715` (Hendrycks and Gimpel, 2016). `silu(x) = x sigmoid(x)`. Both cost one `exp` and one division
//! an element; there is no power. Beyond `|x| = 32` the sigmoid of GELU is 0 or 1 in `f64` too, so `x` is
//! clamped there and the cube cannot overflow. NaN stays NaN.

use crate::vector::{load, store};
use sensorium_core::error::check_len;
use sensorium_core::math::exp_nonpositive;
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
pub fn forward<T: Float>(act: Activation, x: &[T], y: &mut [T]) -> Result<()> {
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
pub fn backward<T: Float>(act: Activation, grad: &[T], x: &[T], dx: &mut [T]) -> Result<()> {
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
            let slope = slope(s, self.act, load(s, self.x, j, T::ZERO));
            store(s, self.dx, j, s.mul(load(s, self.grad, j, T::ZERO), slope));
        }
    }
}

/// `dx = dx * act'(x)` in place, on one thread.
pub(crate) struct Through<'a, T> {
    pub(crate) act: Activation,
    pub(crate) x: &'a [T],
    pub(crate) dx: &'a mut [T],
}

impl<T: Float> Kernel<T> for Through<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.dx.len()).step_by(S::LANES) {
            let slope = slope(s, self.act, load(s, self.x, j, T::ZERO));
            let dx = s.mul(load(s, self.dx, j, T::ZERO), slope);
            store(s, self.dx, j, dx);
        }
    }
}

/// `act(x)`.
#[inline(always)]
pub(crate) fn value<T: Float, S: Simd<T>>(s: S, act: Activation, x: S::V) -> S::V {
    let t = match act {
        Activation::Gelu => gelu_argument(s, x).0,
        Activation::Silu => x,
    };
    s.mul(x, sigmoid(s, t).0)
}

/// `act'(x) = sigmoid(t) + x sigmoid(t) sigmoid(-t) t'`.
#[inline(always)]
pub(crate) fn slope<T: Float, S: Simd<T>>(s: S, act: Activation, x: S::V) -> S::V {
    let (x, t, dt) = match act {
        Activation::Gelu => {
            let (t, dt, x) = gelu_argument(s, x);
            (x, t, dt)
        }
        Activation::Silu => {
            let x = clamp(s, x, 800.0);
            (x, x, s.splat(T::ONE))
        }
    };
    let (yes, no) = sigmoid(s, t);
    s.mul_add(s.mul(x, yes), s.mul(no, dt), yes)
}

/// `t`, `dt/dx` and the clamped `x` of GELU.
#[inline(always)]
fn gelu_argument<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V, S::V) {
    let two_c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let a = 0.044_715;
    let of = |c: f64| s.splat(T::from_f64(c));
    let x = clamp(s, x, 32.0);
    let square = s.mul(x, x);
    let t = s.mul(x, s.mul_add(square, of(two_c * a), of(two_c)));
    (t, s.mul_add(square, of(3.0 * two_c * a), of(two_c)), x)
}

#[inline(always)]
fn clamp<T: Float, S: Simd<T>>(s: S, x: S::V, bound: f64) -> S::V {
    let bound = T::from_f64(bound);
    s.max(s.splat(-bound), s.min(s.splat(bound), x))
}

/// `sigmoid(t)` and `sigmoid(-t)`, each to full relative accuracy.
#[inline(always)]
fn sigmoid<T: Float, S: Simd<T>>(s: S, t: S::V) -> (S::V, S::V) {
    let minus = s.sub(s.splat(T::ZERO), t);
    let e = exp_nonpositive(s, s.min(minus, t));
    let large = s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), e));
    let small = s.mul(e, large);
    let negative = s.lt(t, s.splat(T::ZERO));
    (s.select(negative, small, large), s.select(negative, large, small))
}
