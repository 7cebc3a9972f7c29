//! Tensors of rows: `(B, L, heads, width)` with any distances between batches, tokens and heads.

use sensorium_core::squares::{SQUARE, square};
use sensorium_core::{Error, Float, MAX_LANES, Result};

/// A tensor `(B, L, heads, width)` whose rows are contiguous: element `(b, t, h, p)` is
/// `data[b * strides[0] + t * strides[1] + h * strides[2] + p]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    strides: [usize; 3],
}

impl<'a, T: Float> Rows<'a, T> {
    /// A tensor within a slice.
    ///
    /// # Errors
    /// [`Error::Len`] where the slice does not hold it.
    pub fn new(arg: &'static str, data: &'a [T], shape: [usize; 4], strides: [usize; 3]) -> Result<Self> {
        if !shape.contains(&0) {
            let want = (0..3)
                .try_fold(shape[3], |sum, i| sum.checked_add((shape[i] - 1).checked_mul(strides[i])?))
                .ok_or(Error::Overflow { arg })?;
            if want > data.len() {
                return Err(Error::Len { arg, want, got: data.len() });
            }
        }
        Ok(Self { data, strides })
    }

    /// A contiguous tensor.
    ///
    /// # Errors
    /// [`Error::Len`] where the slice does not hold it.
    pub fn contiguous(arg: &'static str, data: &'a [T], shape: [usize; 4]) -> Result<Self> {
        let head = shape[3];
        let token = shape[2].checked_mul(head).ok_or(Error::Overflow { arg })?;
        let batch = shape[1].checked_mul(token).ok_or(Error::Overflow { arg })?;
        Self::new(arg, data, shape, [batch, token, head])
    }

    /// Where the row of a token and head is.
    #[inline(always)]
    pub(super) fn row(&self, batch: usize, token: usize, head: usize) -> *const T {
        let [b, t, h] = self.strides;
        self.data.as_ptr().wrapping_add(batch * b + token * t + head * h)
    }

    /// Distance between tokens.
    #[inline(always)]
    pub(super) fn token(&self) -> usize {
        self.strides[1]
    }
}

/// Rows of a matrix in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<T> {
    pub(super) data: *const T,
    pub(super) stride: usize,
}

/// Elements of a padded row: whole vectors at every level.
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(MAX_LANES)
}

/// Copies rows and pads them with zeros up to [`padded`].
///
/// # Safety
/// `from` has `rows` rows of `width` elements, `to` has `rows` padded ones.
#[inline(always)]
pub(super) unsafe fn pack<T: Float>(from: Matrix<T>, rows: usize, width: usize, to: *mut T) {
    let wide = padded(width);
    for i in 0..rows {
        // SAFETY: as the caller vouches.
        unsafe {
            let row = to.add(i * wide);
            std::ptr::copy_nonoverlapping(from.data.wrapping_add(i * from.stride), row, width);
            for j in width..wide {
                *row.add(j) = T::ZERO;
            }
        }
    }
}

/// `to[j * ld + i] = from[i][j]` for `i < rows`, `j < columns`.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
pub(super) unsafe fn transpose<T: Float>(
    from: Matrix<T>,
    rows: usize,
    columns: usize,
    to: *mut T,
    ld: usize,
) {
    let (whole_rows, whole_columns) = (rows - rows % SQUARE, columns - columns % SQUARE);
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        // Whole cache lines of what is written, as far as they go.
        let mut i = 0;
        while i < whole_rows {
            let end = whole_rows.min(i + MAX_LANES);
            let mut j = 0;
            while j < whole_columns {
                for r in (i..end).step_by(SQUARE) {
                    let source = from.data.add(r * from.stride + j);
                    square(source, from.stride, [T::ONE; SQUARE], to.add(j * ld + r), ld);
                }
                j += SQUARE;
            }
            i = end;
        }
        for i in 0..rows {
            let first = if i < whole_rows { whole_columns } else { 0 };
            for j in first..columns {
                *to.add(j * ld + i) = *from.data.add(i * from.stride + j);
            }
        }
    }
}
