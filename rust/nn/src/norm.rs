//! Layer norm (Ba, Kiros and Hinton, 2016) and RMS norm (Zhang and Sennrich, 2019) over the last axis.
//!
//! `y = (x - mean) * rstd * weight + bias`, `rstd = 1 / sqrt(var + eps)`; RMS norm has `mean = 0`, `var` the
//! mean square and no bias. With `h = (x - mean) * rstd` and `g = grad * weight`:
//! `dx = rstd * (g - mean(g) - h mean(g h))` (without `mean(g)` for RMS norm), `dweight = sum grad h`,
//! `dbias = sum grad`.
//!
//! The mean is corrected by the mean of what it leaves, so that a constant row of any size gives zeros. Rows of
//! `f32` whose squares overflow are measured in double precision. One read and one write of memory forward; two
//! reads and one write backward.

use crate::vector::{ROWS, load, store, sum_blocks};
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Float, Kernel, Result, Simd};

/// Sizes: `rows` rows of `d` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub d: usize,
}

/// What the forward keeps for the backward, one element a row. RMS norm has no mean.
#[derive(Debug, Clone, Copy)]
pub struct Stats<M, R> {
    /// Mean of each row; `None` for RMS norm.
    pub mean: Option<M>,
    /// One over the standard deviation (or root mean square) of each row.
    pub rstd: R,
}

/// Writes the norm of each row of `x` to `y`: layer norm where `stats.mean` is given, else RMS norm.
///
/// # Errors
/// Where a length does not fit `dims`.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    eps: T,
    y: &mut [T],
    stats: Stats<&mut [T], &mut [T]>,
) -> Result<()> {
    let Dims { rows, d } = dims;
    let len = product("x", &[rows, d])?;
    check_len("x", x, len)?;
    check_len("y", y, len)?;
    check_len("weight", weight, d)?;
    bias.map_or(Ok(()), |b| check_len("bias", b, d))?;
    check_len("rstd", stats.rstd, rows)?;
    let (y, rstd) = (Disjoint::new(y), Disjoint::new(stats.rstd));
    let mean = match stats.mean {
        Some(mean) => {
            check_len("mean", mean, rows)?;
            Some(Disjoint::new(mean))
        }
        None => None,
    };
    for_each(rows.div_ceil(ROWS), ROWS * d * 8, |i| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        let cells = part.start * d..part.end * d;
        // SAFETY: each task has its own rows.
        let (y, rstd) = unsafe { (y.slice(cells.clone()), rstd.slice(part.clone())) };
        // SAFETY: as above.
        let mean = mean.as_ref().map(|m| unsafe { m.slice(part) });
        T::dispatch(Forward { x: &x[cells], weight, bias, eps, y, mean, rstd });
    });
    Ok(())
}

struct Forward<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    eps: T,
    y: &'a mut [T],
    mean: Option<&'a mut [T]>,
    rstd: &'a mut [T],
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { x, weight, bias, eps, y, mut mean, rstd } = self;
        let d = weight.len();
        for (i, rstd) in rstd.iter_mut().enumerate() {
            let x = &x[i * d..(i + 1) * d];
            let (first, rest, one_over) = statistics(s, x, eps, mean.is_some());
            *rstd = one_over;
            if let Some(mean) = mean.as_mut() {
                mean[i] = first + rest;
            }
            let (first, rest, rstd) = (s.splat(first), s.splat(rest), s.splat(*rstd));
            let y = &mut y[i * d..(i + 1) * d];
            for j in (0..d).step_by(S::LANES) {
                let h = s.mul(s.sub(s.sub(load(s, x, j, T::ZERO), first), rest), rstd);
                let w = load(s, weight, j, T::ZERO);
                let b = bias.map_or(s.splat(T::ZERO), |b| load(s, b, j, T::ZERO));
                store(s, y, j, s.mul_add(h, w, b));
            }
        }
    }
}

/// A first mean, the mean of what it leaves, and `rstd`.
#[inline(always)]
pub(crate) fn statistics<T: Float, S: Simd<T>>(s: S, x: &[T], eps: T, centred: bool) -> (T, T, T) {
    let scale = T::ONE / T::from_usize(x.len().max(1));
    let first = if centred { moments(s, x, T::ZERO).0 * scale } else { T::ZERO };
    let (sum, squares) = moments(s, x, first);
    if !squares.is_finite() {
        return wide_statistics(x, eps, centred);
    }
    let rest = if centred { sum * scale } else { T::ZERO };
    let var = (squares * scale - rest * rest).max(T::ZERO);
    (first, rest, T::ONE / (var + eps).sqrt())
}

/// [`statistics`] in double precision, for rows whose squares overflow in `f32` and rows with a NaN.
#[cold]
fn wide_statistics<T: Float>(x: &[T], eps: T, centred: bool) -> (T, T, T) {
    let mean = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(x.to_f64())).sum::<f64>() / x.len() as f64;
    let first = if centred { T::from_f64(mean(&|x| x)) } else { T::ZERO };
    let rest = if centred { mean(&|x| x - first.to_f64()) } else { 0.0 };
    let centre = first.to_f64() + rest;
    let var = mean(&|x| (x - centre) * (x - centre));
    (first, T::from_f64(rest), T::from_f64(1.0 / (var + eps.to_f64()).sqrt()))
}

/// `sum (x - centre)` and `sum (x - centre)^2`.
#[inline(always)]
fn moments<T: Float, S: Simd<T>>(s: S, x: &[T], centre: T) -> (T, T) {
    let (mut sum, mut squares, c) = (s.splat(T::ZERO), s.splat(T::ZERO), s.splat(centre));
    for j in (0..x.len()).step_by(S::LANES) {
        let rest = s.sub(load(s, x, j, centre), c);
        sum = s.add(sum, rest);
        squares = s.mul_add(rest, rest, squares);
    }
    (s.reduce_sum(sum), s.reduce_sum(squares))
}

/// Gradients of [`forward`]. Where `residual` is given, `dx` is that much more: the norm's input is often
/// also carried around the block that the norm opens.
///
/// # Errors
/// Where a length does not fit `dims`.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    grad: &[T],
    x: &[T],
    weight: &[T],
    stats: Stats<&[T], &[T]>,
    residual: Option<&[T]>,
    dx: &mut [T],
    dweight: &mut [T],
    dbias: Option<&mut [T]>,
) -> Result<()> {
    let Dims { rows, d } = dims;
    let len = product("x", &[rows, d])?;
    for (arg, slice) in [("grad", grad), ("x", x), ("dx", &*dx), ("residual", residual.unwrap_or(x))] {
        check_len(arg, slice, len)?;
    }
    check_len("weight", weight, d)?;
    check_len("dweight", dweight, d)?;
    check_len("rstd", stats.rstd, rows)?;
    stats.mean.map_or(Ok(()), |m| check_len("mean", m, rows))?;
    dbias.as_ref().map_or(Ok(()), |b| check_len("dbias", b, d))?;
    let dx = Disjoint::new(dx);
    let width = if dbias.is_some() { 2 * d } else { d };
    let mut sums = vec![T::ZERO; width];
    sum_blocks(rows, d * 16, width, &mut sums, |i, sums| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        let cells = part.start * d..part.end * d;
        let (dweight, dbias) = sums.split_at_mut(d);
        T::dispatch(Backward {
            grad: &grad[cells.clone()],
            x: &x[cells.clone()],
            weight,
            mean: stats.mean.map(|m| &m[part.clone()]),
            rstd: &stats.rstd[part],
            residual: residual.map(|r| &r[cells.clone()]),
            // SAFETY: each task has its own rows.
            dx: unsafe { dx.slice(cells) },
            dweight,
            dbias,
        });
    });
    dweight.copy_from_slice(&sums[..d]);
    if let Some(dbias) = dbias {
        dbias.copy_from_slice(&sums[d..]);
    }
    Ok(())
}

struct Backward<'a, T> {
    grad: &'a [T],
    x: &'a [T],
    weight: &'a [T],
    mean: Option<&'a [T]>,
    rstd: &'a [T],
    residual: Option<&'a [T]>,
    dx: &'a mut [T],
    dweight: &'a mut [T],
    /// Empty where there is no bias.
    dbias: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { grad, x, weight, mean, rstd, residual, dx, dweight, dbias } = self;
        let d = weight.len();
        let scale = T::ONE / T::from_usize(d.max(1));
        let zero = T::ZERO;
        for (i, &rstd) in rstd.iter().enumerate() {
            let row = i * d..(i + 1) * d;
            let (grad, x, dx) = (&grad[row.clone()], &x[row.clone()], &mut dx[row.clone()]);
            let residual = residual.map(|r| &r[row]);
            let (m, r) = (s.splat(mean.map_or(zero, |m| m[i])), s.splat(rstd));
            let (mut sum_g, mut sum_gh) = (s.splat(zero), s.splat(zero));
            for j in (0..d).step_by(S::LANES) {
                let g0 = load(s, grad, j, zero);
                let h = s.mul(s.sub(load(s, x, j, zero), m), r);
                let g = s.mul(g0, load(s, weight, j, zero));
                sum_g = s.add(sum_g, g);
                sum_gh = s.mul_add(g, h, sum_gh);
                let dw = s.mul_add(g0, h, load(s, dweight, j, zero));
                store(s, dweight, j, dw);
                if !dbias.is_empty() {
                    let db = s.add(load(s, dbias, j, zero), g0);
                    store(s, dbias, j, db);
                }
            }
            let mean_g = if mean.is_some() { s.reduce_sum(sum_g) * scale } else { zero };
            let (mean_g, mean_gh) = (s.splat(mean_g), s.splat(s.reduce_sum(sum_gh) * scale));
            for j in (0..d).step_by(S::LANES) {
                let h = s.mul(s.sub(load(s, x, j, zero), m), r);
                let g = s.mul(load(s, grad, j, zero), load(s, weight, j, zero));
                let inner = s.sub(s.neg_mul_add(h, mean_gh, g), mean_g);
                let around = residual.map_or(s.splat(zero), |r| load(s, r, j, zero));
                store(s, dx, j, s.mul_add(inner, r, around));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // What is compared is exact.
mod tests {
    use super::*;

    #[test]
    fn rows_are_standard_and_a_constant_row_is_zero() {
        let dims = Dims { rows: 3, d: 5 };
        let x: Vec<f64> = (0..15).map(|i| if i < 5 { 7e9 } else { f64::from(i * i) }).collect();
        let (mut y, mut mean, mut rstd) = ([0.0; 15], [0.0; 3], [0.0; 3]);
        let stats = Stats { mean: Some(&mut mean[..]), rstd: &mut rstd[..] };
        forward(dims, &x, &[1.0; 5], None, 1e-12, &mut y, stats).unwrap();
        assert_eq!(y[..5], [0.0; 5]);
        for row in y[5..].chunks(5) {
            assert!(row.iter().sum::<f64>().abs() < 1e-14);
            assert!((row.iter().map(|x| x * x).sum::<f64>() - 5.0).abs() < 1e-12);
        }
        assert_eq!(mean[0], 7e9);
    }

    #[test]
    fn the_gradient_of_a_row_is_orthogonal_to_ones_and_to_the_row() {
        let dims = Dims { rows: 1, d: 19 };
        let x: Vec<f64> = (0..19).map(|i| f64::from(i).sin()).collect();
        let grad: Vec<f64> = (0..19).map(|i| f64::from(i).cos()).collect();
        let (mut y, mut mean, mut rstd) = ([0.0; 19], [0.0], [0.0]);
        let stats = Stats { mean: Some(&mut mean[..]), rstd: &mut rstd[..] };
        forward(dims, &x, &[1.0; 19], None, 0.0, &mut y, stats).unwrap();
        let (mut dx, mut dw) = ([0.0; 19], [0.0; 19]);
        let stats = Stats { mean: Some(&mean[..]), rstd: &rstd[..] };
        backward(dims, &grad, &x, &[1.0; 19], stats, None, &mut dx, &mut dw, None).unwrap();
        assert!(dx.iter().sum::<f64>().abs() < 1e-13);
        assert!(dx.iter().zip(&y).map(|(d, y)| d * y).sum::<f64>().abs() < 1e-13);
    }

    #[test]
    fn lengths_are_checked() {
        let stats = Stats { mean: None, rstd: &mut [0.0][..] };
        let wrong = forward(Dims { rows: 1, d: 2 }, &[0.0; 2], &[1.0; 3], None, 0.0, &mut [0.0; 2], stats);
        assert_eq!(wrong.unwrap_err().to_string(), "weight has 3 elements, expected 2");
    }
}
