//! `AdamW` over many arrays in one pass, the global norm of gradients, and running means of parameters.
//!
//! `AdamW` (Loshchilov and Hutter, 2019): `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `p = p (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps)`, `c_i = 1 - b_i^t`.
//!
//! Arrays are cut into chunks of fixed size, which threads take from one list.

use crate::vector::{load, store};
use sensorium_core::error::check_len;
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Float, Kernel, Result, Simd};

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// Settings of one step.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Step size.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps so far, this one included: at least 1.
    pub step: u64,
    /// What gradients are multiplied by first: the factor of clipping.
    pub grad_scale: f64,
}

/// One array with its gradient and its moments.
#[derive(Debug)]
pub struct Leaf<'a, T> {
    /// Parameters.
    pub param: &'a mut [T],
    /// Gradient.
    pub grad: &'a [T],
    /// First moment.
    pub m: &'a mut [T],
    /// Second moment.
    pub v: &'a mut [T],
    /// Whether weight decay applies.
    pub decay: bool,
}

/// `(array, range)` of each chunk, in order.
fn chunks(lens: impl Iterator<Item = usize>) -> Vec<(usize, std::ops::Range<usize>)> {
    lens.enumerate()
        .flat_map(|(a, len)| (0..len).step_by(CHUNK).map(move |i| (a, i..(i + CHUNK).min(len))))
        .collect()
}

/// Updates parameters and moments of every leaf.
///
/// # Errors
/// Where lengths within a leaf differ.
pub(crate) fn adamw<T: Float>(leaves: &mut [Leaf<'_, T>], how: AdamW) -> Result<()> {
    for leaf in &*leaves {
        check_len("grads", leaf.grad, leaf.param.len())?;
        check_len("state m", leaf.m, leaf.param.len())?;
        check_len("state v", leaf.v, leaf.param.len())?;
    }
    let list = chunks(leaves.iter().map(|l| l.param.len()));
    let shared: Vec<_> = leaves
        .iter_mut()
        .map(|l| {
            (
                Disjoint::new(&mut *l.param),
                l.grad,
                Disjoint::new(&mut *l.m),
                Disjoint::new(&mut *l.v),
                l.decay,
            )
        })
        .collect();
    for_each(list.len(), CHUNK * 15, |i| {
        let (a, range) = &list[i];
        let (param, grad, m, v, decay) = &shared[*a];
        // SAFETY: each task has its own range of its array.
        let (param, m, v) =
            unsafe { (param.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone())) };
        T::dispatch(Step { how, param, grad: &grad[range.clone()], m, v, decay: *decay });
    });
    Ok(())
}

struct Step<'a, T> {
    how: AdamW,
    param: &'a mut [T],
    grad: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
    decay: bool,
}

impl<T: Float> Kernel<T> for Step<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { how, param, grad, m, v, decay } = self;
        let of = |x: f64| s.splat(T::from_f64(x));
        let correct1 = 1.0 - how.beta1.powf(how.step as f64);
        let correct2 = 1.0 - how.beta2.powf(how.step as f64);
        let (b1, rest1) = (of(how.beta1), of(1.0 - how.beta1));
        let (b2, rest2) = (of(how.beta2), of(1.0 - how.beta2));
        let (size, root, eps) = (of(how.lr / correct1), of(1.0 / correct2.sqrt()), of(how.eps));
        let keep = of(if decay { 1.0 - how.lr * how.weight_decay } else { 1.0 });
        let scale = of(how.grad_scale);
        for j in (0..param.len()).step_by(S::LANES) {
            let g = s.mul(load(s, grad, j, T::ZERO), scale);
            let first = s.mul_add(b1, load(s, m, j, T::ZERO), s.mul(rest1, g));
            let second = s.mul_add(b2, load(s, v, j, T::ZERO), s.mul(rest2, s.mul(g, g)));
            let below = s.mul_add(s.sqrt(second), root, eps);
            let p = s.mul(load(s, param, j, T::ZERO), keep);
            store(s, param, j, s.neg_mul_add(size, s.div(first, below), p));
            store(s, m, j, first);
            store(s, v, j, second);
        }
    }
}

/// Sum of squares of all elements, in double precision: within a chunk in vectors of partial sums of 1024
/// elements, then chunk by chunk in order.
#[must_use]
pub(crate) fn sum_of_squares<T: Float>(arrays: &[&[T]]) -> f64 {
    let list = chunks(arrays.iter().map(|a| a.len()));
    let mut partials = vec![0.0_f64; list.len()];
    let parts = Disjoint::new(&mut partials);
    for_each(list.len(), CHUNK * 2, |i| {
        let (a, range) = &list[i];
        // SAFETY: each task has its own partial sum.
        let partial = unsafe { parts.slice(i..i + 1) };
        partial[0] = T::dispatch(Squares(&arrays[*a][range.clone()]));
    });
    partials.iter().sum()
}

struct Squares<'a, T>(&'a [T]);

impl<T: Float> Kernel<T> for Squares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> f64 {
        let mut lanes = [0.0_f64; 16];
        let chunks = self.0.chunks_exact(16);
        let tail = chunks.remainder();
        for x in chunks {
            for (sum, &x) in lanes.iter_mut().zip(x) {
                let x = x.to_f64();
                *sum += x * x;
            }
        }
        let rest: f64 = tail.iter().map(|x| x.to_f64() * x.to_f64()).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// Multiplies every element by `factor`.
pub(crate) fn scale<T: Float>(arrays: &mut [&mut [T]], factor: T) {
    let list = chunks(arrays.iter().map(|a| a.len()));
    let shared: Vec<_> = arrays.iter_mut().map(|a| Disjoint::new(a)).collect();
    for_each(list.len(), CHUNK, |i| {
        let (a, range) = &list[i];
        // SAFETY: each task has its own range of its array.
        for x in unsafe { shared[*a].slice(range.clone()) } {
            *x *= factor;
        }
    });
}

/// `mean = decay * mean + (1 - decay) * value` for each pair of arrays.
///
/// # Errors
/// Where lengths within a pair differ.
pub(crate) fn running_mean<T: Float>(pairs: &mut [(&mut [T], &[T])], decay: f64) -> Result<()> {
    for (mean, value) in &*pairs {
        check_len("params", value, mean.len())?;
    }
    let list = chunks(pairs.iter().map(|p| p.0.len()));
    let shared: Vec<_> = pairs.iter_mut().map(|(mean, value)| (Disjoint::new(mean), *value)).collect();
    let rest = T::from_f64(1.0 - decay);
    for_each(list.len(), CHUNK * 3, |i| {
        let (a, range) = &list[i];
        let (mean, value) = &shared[*a];
        // SAFETY: each task has its own range of its array.
        let mean = unsafe { mean.slice(range.clone()) };
        for (m, &x) in mean.iter_mut().zip(&value[range.clone()]) {
            *m += (x - *m) * rest;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_size_of_the_rate() {
        let (mut param, grad) = ([1.0_f64, 2.0, 3.0], [5.0, -0.1, 0.0]);
        let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
        let leaf = Leaf { param: &mut param, grad: &grad, m: &mut m, v: &mut v, decay: false };
        let (beta1, beta2) = (0.9, 0.95);
        let how = AdamW { lr: 0.5, beta1, beta2, eps: 1e-12, weight_decay: 1.0, step: 1, grad_scale: 1.0 };
        adamw(&mut [leaf], how).unwrap();
        for (got, want) in param.iter().zip([0.5, 2.5, 3.0]) {
            assert!((got - want).abs() < 1e-9);
        }
    }

    #[test]
    fn squares_of_several_arrays_add_up_in_double_precision() {
        let (a, b) = (vec![3.0_f32; 40_000], [1e-4_f32; 5]);
        let want = 360_000.0 + 5.0 * f64::from(1e-4_f32) * f64::from(1e-4_f32);
        assert!((sum_of_squares(&[&a[..], &b[..], &[]]) - want).abs() < 1e-8);
    }
}
