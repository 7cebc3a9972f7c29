//! Rows of tokens to lanes of queries and back.
//!
//! Squares of 4 x 4 are turned in registers: with short segments, where a block sees some forty keys, moving elements
//! one by one took a quarter of the time.

use sensorium_core::Float;
use sensorium_core::squares::{SQUARE, square};

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
                square(src.add(i * stride + d), stride, [scale; SQUARE], dst.add(d * width + i), width);
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
            let factors = scale.add(i).cast::<[T; SQUARE]>().read_unaligned();
            for d in (0..whole_depth).step_by(SQUARE) {
                square(src.add(d * width + i), width, factors, dst.add(i * stride + d), stride);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Float>() {
        for (rows, depth) in [(1, 1), (4, 4), (7, 9), (16, 32), (5, 3)] {
            let (stride, width) = (depth + 2, rows + 3);
            let src: Vec<T> = (0..rows * stride).map(T::from_usize).collect();
            let mut lanes = vec![T::ONE; depth * width];
            let mut back = vec![T::ZERO; rows * stride];
            let factors: Vec<T> = (0..rows).map(|i| T::from_usize(i + 1)).collect();
            // SAFETY: the sizes are those of the buffers.
            unsafe {
                transpose_in(src.as_ptr(), stride, rows, depth, T::from_f64(2.0), lanes.as_mut_ptr(), width);
                let (from, to) = (lanes.as_ptr(), back.as_mut_ptr());
                transpose_out(from, width, rows, depth, factors.as_ptr(), to, stride);
            }
            for i in 0..width {
                for d in 0..depth {
                    let (want, got) = (i * stride + d, lanes[d * width + i]);
                    assert_eq!(got, if i < rows { T::from_usize(2 * want) } else { T::ZERO });
                    if i < rows {
                        assert_eq!(back[want], T::from_usize(2 * want * (i + 1)));
                    }
                }
            }
        }
    }

    #[test]
    fn there_and_back() {
        check::<f32>();
        check::<f64>();
    }
}
