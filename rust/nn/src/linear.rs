//! Linear maps with their epilogue: `out = residual + act(x W + b)`, `x (m, k)`, `W (k, n)`.
//!
//! The forward also takes `W` by its transpose, as checkpoints store it, and in half precision; with few rows of `x`, as in
//! decoding, it is then read once, as it lies.
//!
//! Backward, with `p = x W + b` and `dp = grad * act'(p)`: `dx = dp W^T`, `dW = x^T dp`, `db = sum dp`. The
//! forward keeps `act'(p)`, which comes with `act(p)` almost free, so that the backward has no exponential.
//! Where `x = act(q)` itself, `dq = dx * act'(q)` is made from each block of `dx` while that is in cache.

use crate::activation::{self, Activation};
use crate::vector::{column_sums, load, store};
use sensorium_core::error::{check_len, product};
use sensorium_core::gemm::{self, MatRef, Products};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, Kernel, Result, Simd};
use std::ops::Range;

/// Sizes of `x (m, k)` and `W (k, n)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of `x`.
    pub m: usize,
    /// Width of the input.
    pub k: usize,
    /// Width of the output.
    pub n: usize,
}

/// What follows the product.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a, T> {
    /// Added to every row.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub activation: Option<Activation>,
    /// Added to the result, `(m, n)`.
    pub residual: Option<&'a [T]>,
}

/// The matrix of a linear map as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a, E> {
    /// Elements, in half precision where `E` is.
    pub data: &'a [E],
    /// Whether they are those of the transpose, `(n, k)`.
    pub transposed: bool,
}

/// `out = residual + act(x W + b)`; `act'(x W + b)` is kept in `slope` where asked, which needs an activation.
///
/// # Errors
/// Where a length does not fit `dims`.
pub(crate) fn forward<T: Float, E: Products<Float = T>>(
    dims: Dims,
    x: &[T],
    weight: Weight<'_, E>,
    after: Epilogue<'_, T>,
    slope: Option<&mut [T]>,
    out: &mut [T],
) -> Result<()> {
    let Dims { m, k, n } = dims;
    let len = product("out", &[m, n])?;
    check_len("x", x, product("x", &[m, k])?)?;
    check_len("weight", weight.data, product("weight", &[k, n])?)?;
    check_len("out", out, len)?;
    after.bias.map_or(Ok(()), |b| check_len("bias", b, n))?;
    after.residual.map_or(Ok(()), |r| check_len("residual", r, len))?;
    slope.as_ref().map_or(Ok(()), |s| check_len("slope", s, len))?;
    let sizes = gemm::Dims { m, n, k };
    let Epilogue { bias, activation, residual } = after;
    let plain = bias.is_none() && activation.is_none() && residual.is_none();
    let slope = slope.map(Disjoint::new);
    let epilogue = |rows: Range<usize>, out: &mut [T]| {
        let part = rows.start * n..rows.end * n;
        T::dispatch(After {
            bias,
            activation,
            residual: residual.map(|r| &r[part.clone()]),
            // SAFETY: blocks of rows do not overlap.
            slope: slope.as_ref().map(|p| unsafe { p.slice(part) }),
            out,
            n,
        });
    };
    if m <= gemm::FEW_ROWS && (weight.transposed || !E::IS_FLOAT) {
        E::few_rows(sizes, x, weight.data, weight.transposed, out)?;
        if !plain {
            epilogue(0..m, out);
        }
        return Ok(());
    }
    let a = MatRef::rows(x, k);
    let b = if weight.transposed { MatRef::rows(weight.data, k).t() } else { MatRef::rows(weight.data, n) };
    if plain {
        return gemm::gemm(sizes, a, b, T::ZERO, out);
    }
    gemm::gemm_with(sizes, a, b, T::ZERO, out, epilogue)
}

/// The epilogue over some rows.
struct After<'a, T> {
    bias: Option<&'a [T]>,
    activation: Option<Activation>,
    residual: Option<&'a [T]>,
    slope: Option<&'a mut [T]>,
    out: &'a mut [T],
    n: usize,
}

impl<T: Float> Kernel<T> for After<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { bias, activation, residual, mut slope, out, n } = self;
        if n == 0 {
            return;
        }
        for (i, out) in out.chunks_exact_mut(n).enumerate() {
            for j in (0..n).step_by(S::LANES) {
                let mut v = load(s, out, j, T::ZERO);
                if let Some(bias) = bias {
                    v = s.add(v, load(s, bias, j, T::ZERO));
                }
                match (activation, slope.as_mut()) {
                    (Some(act), Some(slope)) => {
                        let (value, steep) = activation::value_and_slope(s, act, v);
                        store(s, &mut slope[i * n..(i + 1) * n], j, steep);
                        v = value;
                    }
                    (Some(act), None) => v = activation::value(s, act, v),
                    (None, _) => {}
                }
                if let Some(residual) = residual {
                    v = s.add(v, load(s, &residual[i * n..(i + 1) * n], j, T::ZERO));
                }
                store(s, out, j, v);
            }
        }
    }
}

/// Gradients of [`forward`] from `dp`, the gradient of `x W + b`. The residual's gradient is that of `out`.
///
/// Where `below` is `act'(q)` with `x = act(q)`, `dx` is the gradient of `q` instead.
///
/// # Errors
/// Where a length does not fit `dims`.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    dp: &[T],
    x: &[T],
    weight: &[T],
    below: Option<&[T]>,
    dx: &mut [T],
    dweight: &mut [T],
    dbias: Option<&mut [T]>,
) -> Result<()> {
    let Dims { m, k, n } = dims;
    check_len("grad", dp, product("grad", &[m, n])?)?;
    check_len("x", x, product("x", &[m, k])?)?;
    check_len("weight", weight, product("weight", &[k, n])?)?;
    check_len("dx", dx, x.len())?;
    check_len("dweight", dweight, weight.len())?;
    let to_x = gemm::Dims { m, n: k, k: n };
    let (a, b) = (MatRef::rows(dp, n), MatRef::rows(weight, n).t());
    match below {
        None => gemm::gemm(to_x, a, b, T::ZERO, dx)?,
        Some(slope) => {
            check_len("below", slope, dx.len())?;
            gemm::gemm_with(to_x, a, b, T::ZERO, dx, |rows, dx| {
                multiply(dx, &slope[rows.start * k..rows.end * k]);
            })?;
        }
    }
    let to_weight = gemm::Dims { m: k, n, k: m };
    gemm::gemm(to_weight, MatRef::rows(x, k).t(), MatRef::rows(dp, n), T::ZERO, dweight)?;
    if let Some(dbias) = dbias {
        check_len("dbias", dbias, n)?;
        column_sums(dp, n, dbias);
    }
    Ok(())
}

/// `x = x * y`.
pub(crate) fn multiply<T: Float>(x: &mut [T], y: &[T]) {
    T::dispatch(Multiply { x, y });
}

struct Multiply<'a, T> {
    x: &'a mut [T],
    y: &'a [T],
}

impl<T: Float> Kernel<T> for Multiply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x *= y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_goes_through_the_activation_below() {
        let dims = Dims { m: 70, k: 3, n: 2 };
        let q: Vec<f64> = (0..210).map(|i| f64::from(i).sin()).collect();
        let dp: Vec<f64> = (0..140).map(|i| f64::from(i).cos()).collect();
        let weight = [1.0, -2.0, 0.5, 3.0, -1.0, 0.25];
        let mut x = vec![0.0; 210];
        activation::forward(Activation::Silu, &q, &mut x).unwrap();
        let (mut dq, mut dx, mut dw, mut db) = (vec![0.0; 210], vec![0.0; 210], [0.0; 6], [0.0; 2]);
        let mut slope = vec![0.0; 210];
        activation::backward(Activation::Silu, &[1.0; 210], &q, &mut slope).unwrap();
        backward(dims, &dp, &x, &weight, Some(&slope), &mut dq, &mut dw, Some(&mut db)).unwrap();
        backward(dims, &dp, &x, &weight, None, &mut dx, &mut dw, None).unwrap();
        let mut want = vec![0.0; 210];
        activation::backward(Activation::Silu, &dx, &q, &mut want).unwrap();
        assert!(dq.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-14));
        let sum: f64 = dp.iter().step_by(2).sum();
        assert!((db[0] - sum).abs() < 1e-12);
    }
}
