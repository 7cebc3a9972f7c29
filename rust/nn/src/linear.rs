//! Linear maps with their epilogue: `out = residual + act(x W + b)`, `x (m, k)`, `W (k, n)`.
//!
//! Backward, with `p = x W + b` and `dp = grad * act'(p)`: `dx = dp W^T`, `dW = x^T dp`, `db = sum dp`. Where
//! `x = act(q)` itself, `dq = dx * act'(q)` is made from each block of `dx` while that is in cache.

use crate::activation::{self, Activation};
use crate::vector::{column_sums, load, store};
use sensorium_core::error::{check_len, product};
use sensorium_core::gemm::{self, MatRef};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, Kernel, Result, Simd};

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

/// `out = residual + act(x W + b)`; `x W + b` is kept in `pre` where asked.
///
/// # Errors
/// Where a length does not fit `dims`.
pub fn forward<T: Float>(
    dims: Dims,
    x: &[T],
    weight: &[T],
    after: Epilogue<'_, T>,
    pre: Option<&mut [T]>,
    out: &mut [T],
) -> Result<()> {
    let Dims { m, k, n } = dims;
    let len = product("out", &[m, n])?;
    check_len("x", x, product("x", &[m, k])?)?;
    check_len("weight", weight, product("weight", &[k, n])?)?;
    check_len("out", out, len)?;
    after.bias.map_or(Ok(()), |b| check_len("bias", b, n))?;
    after.residual.map_or(Ok(()), |r| check_len("residual", r, len))?;
    pre.as_ref().map_or(Ok(()), |p| check_len("pre", p, len))?;
    let sizes = gemm::Dims { m, n, k };
    let (a, b) = (MatRef::rows(x, k), MatRef::rows(weight, n));
    let Epilogue { bias, activation, residual } = after;
    if bias.is_none() && activation.is_none() && residual.is_none() && pre.is_none() {
        return gemm::gemm(sizes, a, b, T::ZERO, out);
    }
    let pre = pre.map(Disjoint::new);
    gemm::gemm_with(sizes, a, b, T::ZERO, out, |rows, out| {
        let part = rows.start * n..rows.end * n;
        T::dispatch(After {
            bias,
            activation,
            residual: residual.map(|r| &r[part.clone()]),
            // SAFETY: blocks of rows do not overlap.
            pre: pre.as_ref().map(|p| unsafe { p.slice(part) }),
            out,
            n,
        });
    })
}

/// The epilogue over some rows.
struct After<'a, T> {
    bias: Option<&'a [T]>,
    activation: Option<Activation>,
    residual: Option<&'a [T]>,
    pre: Option<&'a mut [T]>,
    out: &'a mut [T],
    n: usize,
}

impl<T: Float> Kernel<T> for After<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { bias, activation, residual, mut pre, out, n } = self;
        if n == 0 {
            return;
        }
        for (i, out) in out.chunks_exact_mut(n).enumerate() {
            for j in (0..n).step_by(S::LANES) {
                let mut v = load(s, out, j, T::ZERO);
                if let Some(bias) = bias {
                    v = s.add(v, load(s, bias, j, T::ZERO));
                }
                if let Some(pre) = pre.as_mut() {
                    store(s, &mut pre[i * n..(i + 1) * n], j, v);
                }
                if let Some(act) = activation {
                    v = activation::value(s, act, v);
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
/// Where `below` is `(act, q)` with `x = act(q)`, `dx` is the gradient of `q` instead.
///
/// # Errors
/// Where a length does not fit `dims`.
pub fn backward<T: Float>(
    dims: Dims,
    dp: &[T],
    x: &[T],
    weight: &[T],
    below: Option<(Activation, &[T])>,
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
        Some((act, q)) => {
            check_len("below", q, dx.len())?;
            gemm::gemm_with(to_x, a, b, T::ZERO, dx, |rows, dx| {
                T::dispatch(activation::Through { act, x: &q[rows.start * k..rows.end * k], dx });
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
