//! GELU in its tanh form with its first two derivatives, for the hidden layer of the fast network.
//!
//! `gelu(x) = x sigmoid(t)`, `t = c (x + a x^3)`, `c = 2 sqrt(2 / pi)`, `a = 0.044715` (Hendrycks and Gimpel, 2016).
//! With `p = sigmoid(t)`, `n = sigmoid(-t)`: `gelu' = p + x p n t'` and
//! `gelu'' = p n (2 t' + x ((n - p) t'^2 + t''))`. The inner gradient needs the slope, and its own gradient the
//! curvature. `x` is bounded where the sigmoid is 0 or 1 to the last digit (at 10 in `f32`, 21 in `f64`).

use sensorium_core::math::exp_nonpositive;
use sensorium_core::{Float, Kernel, Simd};

/// What all three are made of.
struct Parts<V> {
    /// `x` bounded from below: what the sigmoid multiplies.
    below: V,
    /// `x` bounded from both sides.
    near: V,
    /// `p`.
    yes: V,
    /// `n`.
    no: V,
    /// `x^2`, bounded.
    square: V,
}

const SLOPE: f64 = 1.595_769_121_605_730_7;
const CUBE: f64 = 0.044_715;

#[inline(always)]
fn parts<T: Float, S: Simd<T>>(s: S, x: S::V) -> Parts<S::V> {
    let bound = T::from_f64(if T::MANTISSA == 23 { 10.0 } else { 21.0 });
    // `max` and `min` return their second argument where either is NaN.
    let below = s.max(s.splat(-bound), x);
    let near = s.min(s.splat(bound), below);
    let square = s.mul(near, near);
    let minus_t =
        s.mul(near, s.mul_add(square, s.splat(T::from_f64(-SLOPE * CUBE)), s.splat(T::from_f64(-SLOPE))));
    let e = exp_nonpositive(s, minus_t);
    let yes = s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), e));
    Parts { below, near, yes, no: s.mul(e, yes), square }
}

/// `dt/dx`.
#[inline(always)]
fn inner<T: Float, S: Simd<T>>(s: S, square: S::V) -> S::V {
    s.mul_add(square, s.splat(T::from_f64(3.0 * SLOPE * CUBE)), s.splat(T::from_f64(SLOPE)))
}

/// `y = gelu(x)`; with `slope`, `gelu'(x)` too, which may be written over `x`'s own copy.
pub(super) struct Gelu<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for Gelu<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.x.len()).step_by(S::LANES) {
            let p = parts(s, s.load(&self.x[j..]));
            s.store(&mut self.y[j..], s.mul(p.below, p.yes));
        }
    }
}

/// `y = gelu(x)`, and `x` becomes `gelu'(x)`.
pub(super) struct GeluSlope<'a, T> {
    pub(super) x: &'a mut [T],
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for GeluSlope<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.x.len()).step_by(S::LANES) {
            let p = parts(s, s.load(&self.x[j..]));
            let bend = s.mul(s.mul(p.near, s.mul(p.yes, p.no)), inner(s, p.square));
            s.store(&mut self.y[j..], s.mul(p.below, p.yes));
            s.store(&mut self.x[j..], s.add(p.yes, bend));
        }
    }
}

/// `y = gelu(x)`, `curve = gelu''(x)`, and `x` becomes `gelu'(x)`.
pub(super) struct GeluCurve<'a, T> {
    pub(super) x: &'a mut [T],
    pub(super) y: &'a mut [T],
    pub(super) curve: &'a mut [T],
}

impl<T: Float> Kernel<T> for GeluCurve<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.x.len()).step_by(S::LANES) {
            let p = parts(s, s.load(&self.x[j..]));
            let (dt, both) = (inner(s, p.square), s.mul(p.yes, p.no));
            let bend = s.mul(s.mul(p.near, both), dt);
            s.store(&mut self.y[j..], s.mul(p.below, p.yes));
            s.store(&mut self.x[j..], s.add(p.yes, bend));
            let second = s.mul(p.near, s.splat(T::from_f64(6.0 * SLOPE * CUBE)));
            let bracket = s.mul_add(s.mul(s.sub(p.no, p.yes), dt), dt, second);
            let sum = s.mul_add(p.near, bracket, s.add(dt, dt));
            s.store(&mut self.curve[j..], s.mul(both, sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<T: Float>(x: &[f64]) -> [Vec<f64>; 3] {
        let narrow: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
        let (mut slope, mut y, mut curve) = (narrow.clone(), narrow.clone(), narrow);
        T::dispatch(GeluCurve { x: &mut slope, y: &mut y, curve: &mut curve });
        [y, slope, curve].map(|v| v.iter().map(|x| x.to_f64()).collect())
    }

    #[test]
    fn derivatives_are_those_of_the_values() {
        let x: Vec<f64> = (-40..40).map(|i| f64::from(i) * 0.21).collect();
        let h = 1e-5;
        let moved = |h: f64| at::<f64>(&x.iter().map(|x| x + h).collect::<Vec<_>>());
        let ([up, up_slope, _], [down, down_slope, _]) = (moved(h), moved(-h));
        let [y, slope, curve] = at::<f64>(&x);
        for i in 0..x.len() {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let want = 0.5 * x[i] * (1.0 + (c * (x[i] + CUBE * x[i].powi(3))).tanh());
            assert!((y[i] - want).abs() < 1e-14, "at {}", x[i]);
            assert!((slope[i] - (up[i] - down[i]) / (2.0 * h)).abs() < 1e-9, "at {}", x[i]);
            assert!((curve[i] - (up_slope[i] - down_slope[i]) / (2.0 * h)).abs() < 1e-9, "at {}", x[i]);
        }
        let narrow = at::<f32>(&x);
        for (narrow, wide) in narrow.iter().zip([&y, &slope, &curve]) {
            assert!(narrow.iter().zip(wide).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + b.abs())));
        }
    }

    #[test]
    fn far_out_it_is_zero_or_the_identity() {
        let x = [-1e30, -50.0, 50.0, 1e30, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f64::NAN];
        for [y, slope, curve] in [at::<f32>(&x), at::<f64>(&x)] {
            assert_eq!(
                (y[2], slope[2], slope[1].abs() < 1e-30, curve[3].abs() < 1e-30),
                (50.0, 1.0, true, true)
            );
            assert!(y[0].abs() < 1e-30 && (y[3] / 1e30 - 1.0).abs() < 1e-7);
            assert!(y[15].is_nan() && slope[15].is_nan() && curve[15].is_nan());
        }
    }
}
