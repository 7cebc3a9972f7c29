//! Matrix products.

use crate::{Error, Float, Result};

/// Sizes of a product: `C (m, n) = A (m, k) B (k, n)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`.
    pub k: usize,
}

/// A matrix in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a, T> {
    /// Elements.
    pub data: &'a [T],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// A row-major matrix with `cols` columns.
    #[must_use]
    pub const fn rows(data: &'a [T], cols: usize) -> Self {
        Self { data, row_stride: cols, col_stride: 1 }
    }

    /// The transpose.
    #[must_use]
    pub const fn t(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0
            || cols == 0
            || (rows - 1)
                .checked_mul(self.row_stride)
                .and_then(|r| (cols - 1).checked_mul(self.col_stride)?.checked_add(r))
                .is_some_and(|last| last < self.data.len())
    }
}

/// `out = A B + beta * out`, row-major `out (m, n)`; `beta = 0` overwrites without reading.
///
/// # Errors
/// [`Error::Len`] where a slice is too short for its sizes.
pub fn gemm<T: Float>(dims: Dims, a: MatRef<'_, T>, b: MatRef<'_, T>, beta: T, out: &mut [T]) -> Result<()> {
    let Dims { m, n, k } = dims;
    let len = |arg, want, got| Err(Error::Len { arg, want, got });
    if !a.holds(m, k) {
        return len("a", m * k, a.data.len());
    }
    if !b.holds(k, n) {
        return len("b", k * n, b.data.len());
    }
    if out.len() != m * n {
        return len("out", m * n, out.len());
    }
    for i in 0..m {
        let row = &mut out[i * n..(i + 1) * n];
        for c in row.iter_mut() {
            *c = if beta == T::ZERO { T::ZERO } else { *c * beta };
        }
        for p in 0..k {
            let x = a.data[i * a.row_stride + p * a.col_stride];
            for (j, c) in row.iter_mut().enumerate() {
                *c += x * b.data[p * b.row_stride + j * b.col_stride];
            }
        }
    }
    Ok(())
}
