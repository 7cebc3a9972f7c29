//! Softmax cross-entropy over weighted positions: `sum_i w_i (lse_i - logits[i, target_i]) / sum_i w_i`.
//!
//! A position of weight 0 is never read: its logits and its target may hold anything. The loss is summed in
//! double precision, row by row in blocks. Backward: `dlogits = grad * w_i / sum(w) * (softmax - onehot)`.

use crate::vector::{ROWS, load, store};
use sensorium_core::error::{check_len, product};
use sensorium_core::math::exp_nonpositive;
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, Result, Simd};

/// Work of a logit, in floating-point operations.
const WORK: usize = 20;

/// Sizes: `rows` positions of `k` classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Positions.
    pub rows: usize,
    /// Classes.
    pub k: usize,
}

fn check<T: Float>(
    dims: Dims,
    logits: &[T],
    targets: &[i64],
    weights: Option<&[T]>,
    lse: &[T],
) -> Result<f64> {
    let Dims { rows, k } = dims;
    check_len("logits", logits, product("logits", &[rows, k])?)?;
    check_len("targets", targets, rows)?;
    check_len("lse", lse, rows)?;
    weights.map_or(Ok(()), |w| check_len("weights", w, rows))?;
    let mut total = 0.0;
    for (i, &target) in targets.iter().enumerate() {
        let w = weights.map_or(1.0, |w| w[i].to_f64());
        if !(w >= 0.0 && w.is_finite()) {
            let what = format!("must be finite and not negative, found {w}");
            return Err(Error::Value { arg: "weights", what });
        }
        if w > 0.0 && !usize::try_from(target).is_ok_and(|t| t < k) {
            let what = format!("holds {target}, expected classes from 0 to {}", k as i64 - 1);
            return Err(Error::Value { arg: "targets", what });
        }
        total += w;
    }
    Ok(total)
}

/// The loss; 0 where all weights are 0. Writes `lse`, the log-sum-exp of each position (0 where not read).
///
/// # Errors
/// Where a length does not fit `dims`, a weight is negative or not finite, or a target of a position with
/// weight is no class.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    logits: &[T],
    targets: &[i64],
    weights: Option<&[T]>,
    lse: &mut [T],
) -> Result<f64> {
    let total = check(dims, logits, targets, weights, lse)?;
    if total == 0.0 {
        lse.fill(T::ZERO);
        return Ok(0.0);
    }
    let Dims { rows, k } = dims;
    let blocks = rows.div_ceil(ROWS);
    let mut partials = vec![0.0_f64; blocks];
    let (parts, lse) = (Disjoint::new(&mut partials), Disjoint::new(lse));
    for_each(blocks, ROWS * k * WORK, |i| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        // SAFETY: each task has its own rows and its own partial sum.
        let (partial, lse) = unsafe { (parts.slice(i..i + 1), lse.slice(part.clone())) };
        partial[0] = T::dispatch(Forward {
            k,
            logits: &logits[part.start * k..part.end * k],
            targets: &targets[part.clone()],
            weights: weights.map(|w| &w[part]),
            lse,
        });
    });
    Ok(partials.iter().sum::<f64>() / total)
}

struct Forward<'a, T> {
    k: usize,
    logits: &'a [T],
    targets: &'a [i64],
    weights: Option<&'a [T]>,
    lse: &'a mut [T],
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) -> f64 {
        let k = self.k;
        let mut sum = 0.0;
        for (i, lse) in self.lse.iter_mut().enumerate() {
            let w = self.weights.map_or(T::ONE, |w| w[i]);
            if w == T::ZERO {
                *lse = T::ZERO;
                continue;
            }
            let row = &self.logits[i * k..(i + 1) * k];
            *lse = log_sum_exp(s, row);
            sum += w.to_f64() * (*lse - row[self.targets[i] as usize]).to_f64();
        }
        sum
    }
}

#[inline(always)]
fn log_sum_exp<T: Float, S: Simd<T>>(s: S, row: &[T]) -> T {
    let mut top = s.splat(T::NEG_INFINITY);
    for j in (0..row.len()).step_by(S::LANES) {
        top = s.max(load(s, row, j, T::NEG_INFINITY), top);
    }
    let top = s.reduce_max(top);
    let (mut sum, shift) = (s.splat(T::ZERO), s.splat(top));
    for j in (0..row.len()).step_by(S::LANES) {
        sum = s.add(sum, exp_nonpositive(s, s.sub(load(s, row, j, T::NEG_INFINITY), shift)));
    }
    top + s.reduce_sum(sum).ln()
}

/// Writes `dlogits`; rows of weight 0 are zeros.
///
/// # Errors
/// As [`forward`].
pub(crate) fn backward<T: Float>(
    dims: Dims,
    grad: f64,
    logits: &[T],
    targets: &[i64],
    weights: Option<&[T]>,
    lse: &[T],
    dlogits: &mut [T],
) -> Result<()> {
    let total = check(dims, logits, targets, weights, lse)?;
    check_len("dlogits", dlogits, logits.len())?;
    let Dims { rows, k } = dims;
    let scale = if total > 0.0 { grad / total } else { 0.0 };
    let dlogits = Disjoint::new(dlogits);
    for_each(rows.div_ceil(ROWS), ROWS * k * WORK, |i| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        let cells = part.start * k..part.end * k;
        T::dispatch(Backward {
            k,
            scale,
            logits: &logits[cells.clone()],
            targets: &targets[part.clone()],
            weights: weights.map(|w| &w[part.clone()]),
            lse: &lse[part],
            // SAFETY: each task has its own rows.
            dlogits: unsafe { dlogits.slice(cells) },
        });
    });
    Ok(())
}

struct Backward<'a, T> {
    k: usize,
    scale: f64,
    logits: &'a [T],
    targets: &'a [i64],
    weights: Option<&'a [T]>,
    lse: &'a [T],
    dlogits: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let k = self.k;
        for (i, &lse) in self.lse.iter().enumerate() {
            let (row, out) = (&self.logits[i * k..(i + 1) * k], &mut self.dlogits[i * k..(i + 1) * k]);
            let w = self.weights.map_or(T::ONE, |w| w[i]);
            if w == T::ZERO {
                out.fill(T::ZERO);
                continue;
            }
            let w = T::from_f64(w.to_f64() * self.scale);
            let (scale, shift, zero) = (s.splat(w), s.splat(lse), s.splat(T::ZERO));
            for j in (0..k).step_by(S::LANES) {
                let x = s.sub(load(s, row, j, T::NEG_INFINITY), shift);
                store(s, out, j, s.mul(exp_nonpositive(s, s.min(zero, x)), scale));
            }
            out[self.targets[i] as usize] -= w;
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // What is compared is exact.
mod tests {
    use super::*;

    #[test]
    fn positions_without_weight_are_not_read() {
        let dims = Dims { rows: 2, k: 2 };
        let (logits, mut lse) = ([0.0, 0.0, f64::NAN, 1.0], [9.0; 2]);
        let loss = forward(dims, &logits, &[1, -7], Some(&[2.0, 0.0]), &mut lse).unwrap();
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-15);
        let mut d = [9.0; 4];
        backward(dims, 4.0, &logits, &[1, -7], Some(&[2.0, 0.0]), &lse, &mut d).unwrap();
        assert_eq!(d, [2.0, -2.0, 0.0, 0.0]);
        let wrong = forward(dims, &logits, &[1, -7], None, &mut lse).unwrap_err();
        assert_eq!(wrong.to_string(), "targets holds -7, expected classes from 0 to 1");
    }
}
