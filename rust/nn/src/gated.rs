//! Gated RMS norm, as Mamba-2 ends its blocks (Dao and Gu, 2024): `y = u rstd weight` with `u = x silu(z)`.
//!
//! `rstd = 1 / sqrt(mean(u^2) + eps)`, the mean being over each of the groups that a row is cut into. With `h = u rstd` and
//! `g = grad weight`: `du = rstd (g - h mean(g h))`, `dx = du silu(z)`, `dz = du x silu'(z)`, `dweight = sum grad h`.
//!
//! Two reads and one write of memory forward, three reads and two writes backward; `u` is computed anew there.

use crate::norm::statistics;
use crate::vector::{ROWS, load, store, sum_blocks};
use sensorium_core::error::{check_len, product};
use sensorium_core::math::{silu, silu_slope};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, Result, Simd};

/// Work of an element, in floating-point operations.
const WORK: usize = 40;

/// Sizes: `rows` rows of `d` elements, each in `groups` groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub d: usize,
    /// Groups of a row, each with a norm of its own.
    pub groups: usize,
}

impl Dims {
    fn check<T>(self, arrays: &[(&'static str, &[T])], weight: &[T], rstd: &[T]) -> Result<usize> {
        let Self { rows, d, groups } = self;
        if groups == 0 || !d.is_multiple_of(groups) {
            let what = format!("must divide the width {d}, not be {groups}");
            return Err(Error::Value { arg: "groups", what });
        }
        let len = product("x", &[rows, d])?;
        for (arg, array) in arrays {
            check_len(arg, array, len)?;
        }
        check_len("weight", weight, d)?;
        check_len("rstd", rstd, product("rstd", &[rows, groups])?)?;
        Ok(d / groups)
    }
}

/// Writes `y`, and `rstd (rows, groups)`.
///
/// # Errors
/// Where a length does not fit `dims`, or the groups do not divide the width.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    x: &[T],
    z: &[T],
    weight: &[T],
    eps: T,
    y: &mut [T],
    rstd: &mut [T],
) -> Result<()> {
    let width = dims.check(&[("x", x), ("z", z), ("y", y)], weight, rstd)?;
    let Dims { rows, d, groups } = dims;
    let (y, rstd) = (Disjoint::new(y), Disjoint::new(rstd));
    for_each(rows.div_ceil(ROWS), ROWS * d * WORK, |i| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        let cells = part.start * d..part.end * d;
        // SAFETY: each task has its own rows.
        let (y, rstd) =
            unsafe { (y.slice(cells.clone()), rstd.slice(part.start * groups..part.end * groups)) };
        T::dispatch(Forward { width, x: &x[cells.clone()], z: &z[cells], weight, eps, y, rstd });
    });
    Ok(())
}

struct Forward<'a, T> {
    width: usize,
    x: &'a [T],
    z: &'a [T],
    weight: &'a [T],
    eps: T,
    y: &'a mut [T],
    rstd: &'a mut [T],
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { width, x, z, weight, eps, y, rstd } = self;
        let groups = weight.len().checked_div(width).unwrap_or(1);
        for (i, rstd) in rstd.iter_mut().enumerate() {
            let part = i * width..(i + 1) * width;
            let (x, z, y) = (&x[part.clone()], &z[part.clone()], &mut y[part]);
            for j in (0..width).step_by(S::LANES) {
                let gate = silu(s, load(s, z, j, T::ZERO));
                store(s, y, j, s.mul(load(s, x, j, T::ZERO), gate));
            }
            *rstd = statistics(s, y, eps, false).2;
            let (r, weight) = (s.splat(*rstd), &weight[i % groups * width..][..width]);
            for j in (0..width).step_by(S::LANES) {
                let h = s.mul(load(s, y, j, T::ZERO), r);
                store(s, y, j, s.mul(h, load(s, weight, j, T::ZERO)));
            }
        }
    }
}

/// Gradients of [`forward`].
///
/// # Errors
/// Where a length does not fit `dims`, or the groups do not divide the width.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    grad: &[T],
    x: &[T],
    z: &[T],
    weight: &[T],
    rstd: &[T],
    dx: &mut [T],
    dz: &mut [T],
    dweight: &mut [T],
) -> Result<()> {
    let arrays = [("grad", grad), ("x", x), ("z", z), ("dx", &*dx), ("dz", &*dz)];
    let width = dims.check(&arrays, weight, rstd)?;
    let Dims { rows, d, groups } = dims;
    check_len("dweight", dweight, d)?;
    let (dx, dz) = (Disjoint::new(dx), Disjoint::new(dz));
    sum_blocks(rows, d * WORK, d, dweight, |i, dweight| {
        let part = i * ROWS..((i + 1) * ROWS).min(rows);
        let cells = part.start * d..part.end * d;
        // SAFETY: each task has its own rows.
        let (dx, dz) = unsafe { (dx.slice(cells.clone()), dz.slice(cells.clone())) };
        T::dispatch(Backward {
            width,
            grad: &grad[cells.clone()],
            x: &x[cells.clone()],
            z: &z[cells],
            weight,
            rstd: &rstd[part.start * groups..part.end * groups],
            dx,
            dz,
            dweight,
        });
    });
    Ok(())
}

struct Backward<'a, T> {
    width: usize,
    grad: &'a [T],
    x: &'a [T],
    z: &'a [T],
    weight: &'a [T],
    rstd: &'a [T],
    dx: &'a mut [T],
    dz: &'a mut [T],
    dweight: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { width, grad, x, z, weight, rstd, dx, dz, dweight } = self;
        let zero = T::ZERO;
        let scale = T::ONE / T::from_usize(width.max(1));
        let groups = weight.len().checked_div(width).unwrap_or(1);
        for (i, &rstd) in rstd.iter().enumerate() {
            let (part, first) = (i * width..(i + 1) * width, i % groups * width);
            let (grad, x, z) = (&grad[part.clone()], &x[part.clone()], &z[part.clone()]);
            let (dx, dz) = (&mut dx[part.clone()], &mut dz[part]);
            let (weight, dweight) = (&weight[first..first + width], &mut dweight[first..first + width]);
            let (r, mut sum) = (s.splat(rstd), s.splat(zero));
            // `silu(z)` waits in `dx` and its slope in `dz` for the mean.
            for j in (0..width).step_by(S::LANES) {
                let (gate, slope) = silu_slope(s, load(s, z, j, zero));
                let h = s.mul(s.mul(load(s, x, j, zero), gate), r);
                let gh = s.mul(load(s, grad, j, zero), h);
                sum = s.mul_add(gh, load(s, weight, j, zero), sum);
                store(s, dweight, j, s.add(load(s, dweight, j, zero), gh));
                store(s, dx, j, gate);
                store(s, dz, j, slope);
            }
            let mean = s.splat(s.reduce_sum(sum) * scale);
            for j in (0..width).step_by(S::LANES) {
                let (x, gate) = (load(s, x, j, zero), load(s, dx, j, zero));
                let h = s.mul(s.mul(x, gate), r);
                let g = s.mul(load(s, grad, j, zero), load(s, weight, j, zero));
                let du = s.mul(s.neg_mul_add(h, mean, g), r);
                store(s, dx, j, s.mul(du, gate));
                store(s, dz, j, s.mul(s.mul(du, x), load(s, dz, j, zero)));
            }
        }
    }
}
