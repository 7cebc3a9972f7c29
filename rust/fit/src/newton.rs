//! Damped Newton steps for as many problems as there are lanes.
//!
//! The objective is `sum_i w_i rho(r_i)`, `r_i = f(x_i; theta) - y_i`, with Huber's `rho` (a half square within
//! `delta`, linear beyond; `delta` infinite is least squares). Its exact second derivatives
//! `sum_i w_i (rho'' grad f grad f^T + rho' hess f)` are the model wherever they are positive definite with the
//! damping; elsewhere it is the matrix of reweighted least squares, `sum_i w_i min(1, delta / |r_i|) grad f grad f^T`,
//! which always is. Damping follows the agreement between model and objective (Marquardt 1963; Nielsen 1999), and
//! vanishes near the end, where steps are Newton's own and double the digits.
//!
//! A problem is done where each component of the gradient is no more than [`COSINE`] of what it could be for
//! residuals of that size (the cosine of MINPACK's `gtol`), or next to nothing beside the objective: a parameter that
//! runs away to infinity, as the floor of a law does where the data have none, meets the second alone.

use crate::jet::at;
use crate::laws::Law;
use crate::real::Real;
use sensorium_core::{MAX_LANES, Simd};

/// Largest cosine between the residuals and a column of derivatives at the end.
const COSINE: f64 = 1e-10;
/// Largest component of the gradient, times its parameter, beside the objective.
const NEGLIGIBLE: f64 = 1e-12;
/// Objective a unit of weight below which a fit is exact.
const EXACT: f64 = 1e-28;
/// Pivots below this share of their diagonal count as not positive.
const PIVOT: f64 = 1e-13;
/// Damping at the begin, below which it is none, and beyond which nothing is left to try.
const FIRST: f64 = 1e-2;
const NONE: f64 = 1e-12;
const LAST: f64 = 1e20;

/// Objective and derivatives at a point, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Model<S: Simd<f64>, const P: usize, const H: usize> {
    pub(crate) value: Real<S>,
    pub(crate) gradient: [Real<S>; P],
    /// Exact second derivatives.
    pub(crate) hessian: [Real<S>; H],
    /// Of reweighted least squares.
    pub(crate) squares: [Real<S>; H],
}

/// What lanes share, and what each has: `y` and `weights` are interleaved, a row of lanes for each point.
pub(crate) struct Points<'a, L> {
    pub(crate) law: L,
    pub(crate) x: &'a [f64],
    pub(crate) features: usize,
    pub(crate) delta: f64,
    pub(crate) free: &'a [bool],
}

/// Problems in the lanes.
pub(crate) struct Lanes<S: Simd<f64>, const P: usize, const H: usize> {
    pub(crate) theta: [Real<S>; P],
    pub(crate) model: Model<S, P, H>,
    pub(crate) damping: Real<S>,
    pub(crate) growth: Real<S>,
    pub(crate) weight: Real<S>,
}

impl<L> Points<'_, L> {
    /// The model at `theta`.
    #[inline(always)]
    pub(crate) fn model<S: Simd<f64>, const P: usize, const H: usize>(
        &self,
        s: S,
        theta: &[Real<S>; P],
        y: &[f64],
        weights: &[f64],
    ) -> Model<S, P, H>
    where
        L: Law<P, H>,
    {
        let zero = Real::splat(s, 0.0);
        let delta = Real::splat(s, self.delta);
        let half = Real::splat(s, 0.5);
        let mut model = Model { value: zero, gradient: [zero; P], hessian: [zero; H], squares: [zero; H] };
        let points = y.len() / S::LANES;
        for i in 0..points {
            let jet = self.law.jet(theta, &self.x[i * self.features..(i + 1) * self.features]);
            let r = jet.value - zero.of(s.load(&y[i * S::LANES..]));
            let w = zero.of(s.load(&weights[i * S::LANES..]));
            let size = r.abs();
            let inside = s.lt(size.v, delta.v);
            // Inside: r^2 / 2, r, 1, 1. Outside: delta (|r| - delta / 2), delta sign(r), 0, delta / |r|.
            let near = zero.of(s.min(size.v, delta.v));
            let value = near * (size - half * near);
            let pull = w * zero.of(s.copysign(near.v, r.v));
            let curved = zero.of(s.select(inside, w.v, zero.v));
            let share = zero.of(s.select(inside, w.v, s.mul(w.v, s.div(delta.v, size.v))));
            model.value = w.mul_add(value, model.value);
            for j in 0..P {
                model.gradient[j] = pull.mul_add(jet.gradient[j], model.gradient[j]);
                let (exact, weighed) = (curved * jet.gradient[j], share * jet.gradient[j]);
                for k in 0..=j {
                    let place = at(j, k);
                    let bent = pull.mul_add(jet.hessian[place], model.hessian[place]);
                    model.hessian[place] = exact.mul_add(jet.gradient[k], bent);
                    model.squares[place] = weighed.mul_add(jet.gradient[k], model.squares[place]);
                }
            }
        }
        for j in 0..P {
            if !self.free[j] {
                hold::<S, P, H>(&mut model, j);
            }
        }
        model
    }
}

/// Takes a parameter out of the steps.
#[inline(always)]
fn hold<S: Simd<f64>, const P: usize, const H: usize>(model: &mut Model<S, P, H>, j: usize) {
    let zero = model.value.constant(0.0);
    model.gradient[j] = zero;
    for k in 0..P {
        let place = if k <= j { at(j, k) } else { at(k, j) };
        let value = zero.constant(if k == j { 1.0 } else { 0.0 });
        model.hessian[place] = value;
        model.squares[place] = value;
    }
}

/// Solves `(matrix + damping diag(scale)) step = -gradient`; also whether every pivot was positive.
#[inline(always)]
fn solve<S: Simd<f64>, const P: usize, const H: usize>(
    matrix: &[Real<S>; H],
    scale: &[Real<S>; P],
    damping: Real<S>,
    gradient: &[Real<S>; P],
) -> ([Real<S>; P], Real<S>) {
    let s = damping.s;
    let mut l = *matrix;
    let (zero, one) = (damping.constant(0.0), damping.constant(1.0));
    let mut positive = one;
    let mut inverse = [one; P];
    for i in 0..P {
        l[at(i, i)] = damping.mul_add(scale[i], l[at(i, i)]);
    }
    for j in 0..P {
        let least = (scale[j] + l[at(j, j)].abs()) * PIVOT;
        let mut pivot = l[at(j, j)];
        for k in 0..j {
            pivot = pivot - l[at(j, k)] * l[at(j, k)];
        }
        let good = s.lt(least.v, pivot.v);
        positive = zero.of(s.select(good, positive.v, zero.v));
        let root = zero.of(s.select(good, pivot.v, one.v)).sqrt();
        inverse[j] = root.recip();
        l[at(j, j)] = root;
        for i in j + 1..P {
            let mut sum = l[at(i, j)];
            for k in 0..j {
                sum = sum - l[at(i, k)] * l[at(j, k)];
            }
            l[at(i, j)] = sum * inverse[j];
        }
    }
    let mut step = [zero; P];
    for i in 0..P {
        let mut sum = -gradient[i];
        for k in 0..i {
            sum = sum - l[at(i, k)] * step[k];
        }
        step[i] = sum * inverse[i];
    }
    for i in 0..P {
        let i = P - 1 - i;
        let mut sum = step[i];
        for k in i + 1..P {
            sum = sum - l[at(k, i)] * step[k];
        }
        step[i] = sum * inverse[i];
    }
    (step, positive)
}

impl<S: Simd<f64>, const P: usize, const H: usize> Lanes<S, P, H> {
    /// Diagonal of the scale of steps; never zero.
    #[inline(always)]
    fn scale(&self) -> [Real<S>; P] {
        let least = self.weight * 1e-18 + f64::MIN_POSITIVE;
        let mut scale = [least; P];
        for j in 0..P {
            scale[j] = self.model.squares[at(j, j)].max(least);
        }
        scale
    }

    /// In each lane 1 where the gradient is that of a minimum, else 0.
    #[inline(always)]
    pub(crate) fn stationary(&self) -> Real<S> {
        let s = self.damping.s;
        let (zero, one) = (self.damping.constant(0.0), self.damping.constant(1.0));
        let mut still = one;
        let value = self.model.value;
        for j in 0..P {
            let size = self.model.gradient[j].abs();
            let most = (value * 2.0 * self.model.squares[at(j, j)]).sqrt() * COSINE;
            let beside = value * NEGLIGIBLE;
            let small = s.select(s.lt(most.v, size.v), zero.v, one.v);
            let moved = size * (self.theta[j].abs() + 1.0);
            let little = s.select(s.lt(beside.v, moved.v), zero.v, one.v);
            still = zero.of(s.min(still.v, s.max(small, little)));
        }
        let exact = s.select(s.lt((self.weight * EXACT).v, value.v), still.v, one.v);
        zero.of(exact)
    }

    /// One step in every lane: 1 in the lanes that are stuck, whose damping is beyond all use.
    #[inline(always)]
    pub(crate) fn step<L: Law<P, H>>(
        &mut self,
        points: &Points<'_, L>,
        y: &[f64],
        weights: &[f64],
    ) -> Real<S> {
        let s = self.damping.s;
        let (zero, one) = (self.damping.constant(0.0), self.damping.constant(1.0));
        let scale = self.scale();
        let gradient = &self.model.gradient;
        let (exact, positive) = solve(&self.model.hessian, &scale, self.damping, gradient);
        // Reweighted squares may be singular: they need some damping.
        let damped = self.damping.max(zero.constant(1e-6));
        let (other, _) = solve(&self.model.squares, &scale, damped, gradient);
        let model = s.lt(zero.v, positive.v);
        let damping = zero.of(s.select(model, self.damping.v, damped.v));
        let (mut theta, mut promised) = (self.theta, zero);
        for j in 0..P {
            let step = zero.of(s.select(model, exact[j].v, other[j].v));
            theta[j] = theta[j] + step;
            let slack = damping * scale[j] * step - gradient[j];
            promised = (step * slack).mul_add(zero.constant(0.5), promised);
        }
        let found: Model<S, P, H> = points.model(s, &theta, y, weights);
        let gained = self.model.value - found.value;
        let agreement = gained * promised.recip();
        // At the end differences of the objective are rounding, and the gradient decides.
        let rounding = self.model.value * 1e-13;
        let (mut before, mut after) = (zero, zero);
        for j in 0..P {
            before = before + gradient[j] * gradient[j] * scale[j].recip();
            after = after + found.gradient[j] * found.gradient[j] * scale[j].recip();
        }
        let better = s.select(s.lt(after.v, before.v), one.v, zero.v);
        let close = s.select(s.lt(gained.abs().v, rounding.v), better, zero.v);
        let good = s.select(s.lt(s.splat(1e-4), agreement.v), one.v, close);
        let accepted = s.lt(zero.v, good);
        // 1 - (2 agreement - 1)^3 within [1/10, 2], Nielsen's rule.
        let bent = agreement * 2.0 + -1.0;
        let factor = one - bent * bent * bent;
        let factor = zero.of(s.max(s.splat(0.02), s.min(s.splat(2.0), factor.v)));
        let factor = zero.of(s.select(s.lt(zero.v, close), s.splat(0.1), factor.v));
        let eased = damping * factor;
        let eased = zero.of(s.select(s.lt(eased.v, s.splat(NONE)), zero.v, eased.v));
        let raised = damping.max(zero.constant(1e-4)) * self.growth;
        self.damping = zero.of(s.select(accepted, eased.v, raised.v));
        self.growth = zero.of(s.select(accepted, s.splat(2.0), (self.growth * 2.0).v));
        let take = |new: Real<S>, old: Real<S>| zero.of(s.select(accepted, new.v, old.v));
        for j in 0..P {
            self.theta[j] = take(theta[j], self.theta[j]);
            self.model.gradient[j] = take(found.gradient[j], self.model.gradient[j]);
        }
        for j in 0..H {
            self.model.hessian[j] = take(found.hessian[j], self.model.hessian[j]);
            self.model.squares[j] = take(found.squares[j], self.model.squares[j]);
        }
        self.model.value = take(found.value, self.model.value);
        zero.of(s.select(s.lt(s.splat(LAST), self.damping.v), one.v, zero.v))
    }
}

/// Damping and growth of a new problem.
pub(crate) const BEGIN: [f64; 2] = [FIRST, 2.0];

/// Lanes of a vector.
#[inline(always)]
pub(crate) fn lanes<S: Simd<f64>>(x: Real<S>) -> [f64; MAX_LANES] {
    let mut out = [0.0; MAX_LANES];
    x.s.store(&mut out, x.v);
    out
}

/// `x` with another number in one lane.
#[inline(always)]
pub(crate) fn with_lane<S: Simd<f64>>(x: Real<S>, lane: usize, value: f64) -> Real<S> {
    let mut all = lanes(x);
    all[lane] = value;
    x.of(x.s.load(&all))
}
