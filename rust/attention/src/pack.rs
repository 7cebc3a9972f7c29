//! Rows of tokens to lanes of queries and back.

use sensorium_core::Float;

/// Side of the squares that a transposition moves at once.
const SQUARE: usize = 4;

/// `dst[d * width + i] = scale * src[i * stride + d]` for `i < rows`, 0 for `rows <= i < width`.
///
/// # Safety
/// `src` has `rows` rows of `depth` elements, `dst` has `depth * width`.
#[inline(always)]
pub(crate) unsafe fn transpose_in<T: Float>(
    src: *const T,
    stride: usize,
    rows: usize,
    depth: usize,
    scale: T,
    dst: *mut T,
    width: usize,
) {
    let (whole_rows, whole_depth) = (rows - rows % SQUARE, depth - depth % SQUARE);
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        for i in (0..whole_rows).step_by(SQUARE) {
            for d in (0..whole_depth).step_by(SQUARE) {
                let read = |r: usize| src.add((i + r) * stride + d).cast::<[T; SQUARE]>().read_unaligned();
                let block: [[T; SQUARE]; SQUARE] = std::array::from_fn(read);
                for c in 0..SQUARE {
                    let column: [T; SQUARE] = std::array::from_fn(|r| block[r][c] * scale);
                    dst.add((d + c) * width + i).cast::<[T; SQUARE]>().write_unaligned(column);
                }
            }
        }
        for i in 0..rows {
            let from = if i < whole_rows { whole_depth } else { 0 };
            for d in from..depth {
                *dst.add(d * width + i) = *src.add(i * stride + d) * scale;
            }
        }
        for d in 0..depth {
            for i in rows..width {
                *dst.add(d * width + i) = T::ZERO;
            }
        }
    }
}

/// `dst[i * stride + d] = scale[i] * src[d * width + i]` for `i < rows`.
///
/// # Safety
/// `src` has `depth * width` elements, `scale` has `rows`, `dst` has `rows` rows of `depth`.
#[inline(always)]
pub(crate) unsafe fn transpose_out<T: Float>(
    src: *const T,
    width: usize,
    rows: usize,
    depth: usize,
    scale: *const T,
    dst: *mut T,
    stride: usize,
) {
    let (whole_rows, whole_depth) = (rows - rows % SQUARE, depth - depth % SQUARE);
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        for i in (0..whole_rows).step_by(SQUARE) {
            for d in (0..whole_depth).step_by(SQUARE) {
                let read = |c: usize| src.add((d + c) * width + i).cast::<[T; SQUARE]>().read_unaligned();
                let block: [[T; SQUARE]; SQUARE] = std::array::from_fn(read);
                for r in 0..SQUARE {
                    let factor = *scale.add(i + r);
                    let row: [T; SQUARE] = std::array::from_fn(|c| block[c][r] * factor);
                    dst.add((i + r) * stride + d).cast::<[T; SQUARE]>().write_unaligned(row);
                }
            }
        }
        for i in 0..rows {
            let from = if i < whole_rows { whole_depth } else { 0 };
            for d in from..depth {
                *dst.add(i * stride + d) = *src.add(d * width + i) * *scale.add(i);
            }
        }
    }
}
