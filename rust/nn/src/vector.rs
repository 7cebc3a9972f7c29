//! Loops over slices in vectors, and sums over rows in blocks.

use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Float, Kernel, Simd};

/// Rows that one task works on: 64 rows of 128 `f32` are 32 kB, which stay in the first-level cache between
/// the passes of a kernel.
pub(crate) const ROWS: usize = 64;

/// The vector at `x[j..]`, filled up with `fill` where it ends early.
#[inline(always)]
pub(crate) fn load<T: Float, S: Simd<T>>(s: S, x: &[T], j: usize, fill: T) -> S::V {
    let x = &x[j..];
    if x.len() >= S::LANES { s.load(x) } else { s.load_head(x, fill) }
}

/// Writes a vector, or its head, to `x[j..]`.
#[inline(always)]
pub(crate) fn store<T: Float, S: Simd<T>>(s: S, x: &mut [T], j: usize, v: S::V) {
    let x = &mut x[j..];
    if x.len() >= S::LANES {
        s.store(x, v);
    } else {
        s.store_head(x, v);
    }
}

/// Columns summed over rows: `out_j = sum_i x_ij`.
pub(crate) fn column_sums<T: Float>(x: &[T], cols: usize, out: &mut [T]) {
    let rows = x.len().checked_div(cols).unwrap_or(0);
    sum_blocks(rows, cols, cols, out, |i, part| {
        T::dispatch(AddRows { x: &x[i * ROWS * cols..((i + 1) * ROWS).min(rows) * cols], out: part });
    });
}

/// Calls `f(block, partial)` for each block of [`ROWS`] rows, `partial` being zeros of `out`'s size, and sets
/// `out` to the sum of the partials in index order.
pub(crate) fn sum_blocks<T: Float>(
    rows: usize,
    work_per_row: usize,
    width: usize,
    out: &mut [T],
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let blocks = rows.div_ceil(ROWS);
    debug_assert_eq!(out.len(), width);
    let mut partials = vec![T::ZERO; blocks * width];
    let parts = Disjoint::new(&mut partials);
    for_each(blocks, work_per_row * ROWS, |i| {
        // SAFETY: each task has its own block.
        f(i, unsafe { parts.slice(i * width..(i + 1) * width) });
    });
    out.fill(T::ZERO);
    if width > 0 {
        T::dispatch(AddRows { x: &partials, out });
    }
}

/// Adds every row of `x` to `out`.
struct AddRows<'a, T> {
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Float> Kernel<T> for AddRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        for row in self.x.chunks_exact(self.out.len()) {
            for (o, &x) in self.out.iter_mut().zip(row) {
                *o += x;
            }
        }
    }
}
