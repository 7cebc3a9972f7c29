//! One task of a product: a block of rows and columns of the output, over the whole of `k`.

use super::scratch::Scratch;
use super::tile::{self, VECTORS, tile};
use super::{Dims, MatRef, PackB, Plan, pack};
use crate::threads::Disjoint;
use crate::{Float, Kernel, Simd, Storage};
use std::ops::Range;

/// Panels of a group: a row of blocks wider than that is worked off in groups, so that the output stays in the
/// second-level cache over all of `k`.
const GROUP: usize = 12;

/// Steps of `k` for which all panels of `A` are packed before the next steps are.
const PACKED_STEPS: usize = 16;

/// A block of the output, and what it is computed from.
pub(super) struct Block<'a, T, E> {
    pub(super) dims: Dims,
    pub(super) a: MatRef<'a, T>,
    pub(super) b: MatRef<'a, E>,
    pub(super) beta: T,
    pub(super) plan: Plan,
    /// All of `B`, panel by panel, each over the whole of `k`.
    pub(super) packed_b: Option<&'a [T]>,
    pub(super) rows: Range<usize>,
    /// Starts at the start of a panel.
    pub(super) cols: Range<usize>,
    /// The output, of which this block alone writes these rows and columns.
    pub(super) out: &'a Disjoint<'a, T>,
}

/// Operands of a tile, lane by step.
#[derive(Clone, Copy)]
struct Operand<T> {
    start: *const T,
    lane_stride: usize,
    step: usize,
}

impl<T: Float, E: Storage<Float = T>> Kernel<T> for Block<'_, T, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let group = GROUP * VECTORS * S::LANES;
        for start in self.cols.clone().step_by(group) {
            let cols = start..(start + group).min(self.cols.end);
            if tile::rows::<T, S>() == 8 {
                self.over_k::<S, 8>(s, cols);
            } else {
                self.over_k::<S, 4>(s, cols);
            }
        }
    }
}

impl<T: Float, E: Storage<Float = T>> Block<'_, T, E> {
    #[inline(always)]
    fn over_k<S: Simd<T>, const R: usize>(&self, s: S, cols: Range<usize>) {
        let k = self.dims.k;
        let (mut scratch_a, mut scratch_b) = (Scratch::take(), Scratch::take());
        let mut steps = 0..self.plan.depth.min(k);
        loop {
            let beta = if steps.start == 0 { self.beta } else { T::ONE };
            self.over_panels::<S, R>(s, cols.clone(), steps.clone(), beta, &mut scratch_a, &mut scratch_b);
            if steps.end == k {
                break;
            }
            steps = steps.end..(steps.end + self.plan.depth).min(k);
        }
    }

    #[inline(always)]
    fn over_panels<S: Simd<T>, const R: usize>(
        &self,
        s: S,
        cols: Range<usize>,
        steps: Range<usize>,
        beta: T,
        scratch_a: &mut Scratch,
        scratch_b: &mut Scratch,
    ) {
        let (a, b, depth) = (self.a, self.b, steps.len());
        let width = VECTORS * S::LANES;
        let packed_a = (self.plan.pack_a && depth > 0).then(|| {
            let packed = scratch_a.get::<T>(self.rows.len().div_ceil(R) * R * depth);
            // All panels over a few steps, then the next: rows of a transposed matrix are read along.
            for start in (0..depth).step_by(PACKED_STEPS) {
                let chunk = start..(start + PACKED_STEPS).min(depth);
                for (i, panel) in self.rows.clone().step_by(R).zip(packed.chunks_exact_mut(R * depth)) {
                    let out = &mut panel[R * chunk.start..R * chunk.end];
                    let (src, strides) = (a.at(i, steps.start + start), (a.row_stride, a.col_stride));
                    // SAFETY: `a` holds these rows and steps.
                    unsafe { pack::panel(s, R, R.min(self.rows.end - i), chunk.len(), src, strides, out) }
                }
            }
            &*packed
        });
        let mut j = cols.start;
        while j < cols.end {
            // Four vectors in place are two tiles of two: a tile of one has too few sums to hide their latency.
            let left = cols.end - j;
            let narrow = self.packed_b.is_none() && left.div_ceil(S::LANES) == VECTORS + 1;
            let width = if narrow { (VECTORS - 1) * S::LANES } else { width };
            let cols = j..j + width.min(left);
            let panel_b = if let Some(packed) = self.packed_b {
                let start = packed[j / width * width * self.dims.k + steps.start * width..].as_ptr();
                Operand { start, lane_stride: 1, step: width }
            } else if E::IS_FLOAT
                && self.plan.pack_b == PackB::Never
                && b.col_stride == 1
                && cols.len() == width
            {
                // Stored as what it is computed in.
                Operand { start: b.at(steps.start, j).cast(), lane_stride: 1, step: b.row_stride }
            } else {
                let packed = scratch_b.get::<T>(width * depth);
                let (src, strides) = (b.at(steps.start, j), (b.col_stride, b.row_stride));
                // SAFETY: `b` holds these columns and steps.
                unsafe { pack::panel(s, width, cols.len(), depth, src, strides, packed) };
                Operand { start: packed.as_ptr(), lane_stride: 1, step: width }
            };
            for i in self.rows.clone().step_by(R) {
                let rows = i..(i + R).min(self.rows.end);
                let panel_a = if let Some(packed) = packed_a {
                    let start = packed[(i - self.rows.start) * depth..].as_ptr();
                    Operand { start, lane_stride: 1, step: R }
                } else {
                    let start = a.at(i, steps.start);
                    Operand { start, lane_stride: a.row_stride, step: a.col_stride }
                };
                self.by_size::<S, R>(s, depth, panel_a, panel_b, beta, rows, cols.clone());
            }
            j += width;
        }
    }

    /// The smallest tile that covers `rows` and `cols`.
    #[inline(always)]
    fn by_size<S: Simd<T>, const R: usize>(
        &self,
        s: S,
        depth: usize,
        a: Operand<T>,
        b: Operand<T>,
        beta: T,
        rows: Range<usize>,
        cols: Range<usize>,
    ) {
        macro_rules! tiles {
            ($($r:literal)*) => {
                match (rows.len().next_power_of_two(), cols.len().div_ceil(S::LANES)) {
                    $(($r, 3) => self.one::<S, $r, 3>(s, depth, a, b, beta, rows, cols),
                    ($r, 2) => self.one::<S, $r, 2>(s, depth, a, b, beta, rows, cols),
                    ($r, _) => self.one::<S, $r, 1>(s, depth, a, b, beta, rows, cols),)*
                    _ => unreachable!("tiles have at most {R} rows"),
                }
            };
        }
        if R == 8 { tiles!(8 4 2 1) } else { tiles!(4 2 1) }
    }

    #[inline(always)]
    fn one<S: Simd<T>, const R: usize, const V: usize>(
        &self,
        s: S,
        depth: usize,
        a: Operand<T>,
        b: Operand<T>,
        beta: T,
        rows: Range<usize>,
        cols: Range<usize>,
    ) {
        // Rows past the end read the last one again and are thrown away.
        let last = rows.len() - 1;
        let row = std::array::from_fn(|r| a.start.wrapping_add(r.min(last) * a.lane_stride));
        // SAFETY: rows up to the last and all vectors of the panel are readable over these steps of k.
        let sum = unsafe { tile::<T, S, R, V>(s, depth, (row, a.step), (b.start, b.step)) };
        for (i, sum) in rows.zip(sum) {
            let start = i * self.dims.n;
            // SAFETY: this block alone writes these rows and columns.
            let out = unsafe { self.out.slice(start + cols.start..start + cols.end) };
            for (v, sum) in sum.into_iter().enumerate() {
                let out = &mut out[v * S::LANES..];
                if out.len() < S::LANES {
                    let old = if beta == T::ZERO { s.splat(T::ZERO) } else { s.load_head(out, T::ZERO) };
                    s.store_head(out, if beta == T::ZERO { sum } else { s.mul_add(s.splat(beta), old, sum) });
                } else if beta == T::ZERO {
                    s.store(out, sum);
                } else {
                    s.store(out, s.mul_add(s.splat(beta), s.load(out), sum));
                }
            }
        }
    }
}
