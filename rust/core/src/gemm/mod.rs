//! Matrix products: `out = A B + beta out` for any strides, in `2 m n k` operations.
//!
//! A tile of the output (8 rows by 3 vectors where there are 32 registers, 4 by 3 where 16) stays in registers
//! over up to 512 steps of `k`. Operands are read where they lie unless packing pays (see [`Plan`]); blocks of rows
//! and columns are tasks. Every element is the sum over `k` in order, in steps of fixed size, wherever it lies:
//! results do not depend on threads, tiles or packing. `k = 0` gives `beta out`; `beta = 0` does not read `out`.
//!
//! # What each step brought
//! GFLOP/s, `f32`, AVX-512, one thread's processor time, 1024^3 | 2500x288x96 | 96x288x2500 with `A` transposed
//! (one core's peak is 117):
//!
//! | | 1024^3 | forward | weight's gradient |
//! |---|---|---|---|
//! | `A` and `B` packed, blocks of 64 rows, steps of 256 | 100 | 90 | 88 |
//! | `A` in place | 101 | 104 | 91 |
//! | `B` in place too, where few rows read it | - | 107 | 112 |
//! | steps of 512, output kept in cache by groups of 12 panels | 109 | 109 | 115 |
//! | the `gemm` crate 0.19 | 105 | 109 | 101 |
//!
//! Tried and dropped: packing `A` whenever it is transposed (5 to 15 % slower below 768 columns), tasks of 48 rows by
//! 3 panels (slower wherever `A` is packed).
//!
//! # Against NumPy's BLAS
//! Best of 200 calls from Python, `f32`, OpenBLAS 0.3.31 (its `SkylakeX` kernels) / ours, GFLOP/s, on a machine
//! shared with other work. `f64` is at half of that, with like ratios.
//!
//! | product | one thread | two threads |
//! |---|---|---|
//! | 2500x288x96 | 99 / 104 | 201 / 211 |
//! | 2500x96x96 | 100 / 108 | 193 / 208 |
//! | 2500x384x96 | 100 / 100 | 203 / 207 |
//! | 2500x96x384 | 102 / 111 | 204 / 223 |
//! | 2500x96x288, `B` transposed | 102 / 109 | 200 / 203 |
//! | 2500x96x384, `B` transposed | 100 / 109 | 201 / 203 |
//! | 96x288x2500, `A` transposed | 101 / 112 | 186 / 223 |
//! | 96x384x2500, `A` transposed | 95 / 106 | 189 / 226 |
//! | 384x96x2500, `A` transposed | 99 / 112 | 188 / 227 |
//! | 96x96x2500, `A` transposed | 98 / 113 | 159 / 226 |
//! | 64^3 | 93 / 88 | one thread |
//! | 512^3 | 106 / 115 | 153 / 228 |
//! | 1024^3 | 98 / 105 | 109 / 116, far from quiet |
//! | 2048^3 | 101 / 101 | 106 / 140, far from quiet |
//!
//! So every product, small or large, stays here.

mod block;
mod few;
mod pack;
mod plan;
mod scratch;
mod tile;

use crate::threads::{self, Disjoint};
use crate::{Bf16, Error, F16, Float, Kernel, Result, Simd, Storage, isa};
use block::Block;
use scratch::Scratch;
use std::ops::Range;

pub use few::FEW_ROWS;
pub use plan::{PackB, Plan};
pub use tile::{VECTORS, rows, tile};

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

    /// Where element `(i, j)` is; only to be read where the matrix holds it.
    fn at(&self, i: usize, j: usize) -> *const T {
        self.data.as_ptr().wrapping_add(i * self.row_stride + j * self.col_stride)
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

/// `out = A B + beta * out`, row-major `out (m, n)`; `beta = 0` overwrites without reading. `B` may be
/// stored in half precision.
///
/// # Errors
/// [`Error::Len`] where a slice does not fit its sizes.
pub fn gemm<E: Products>(
    dims: Dims,
    a: MatRef<'_, E::Float>,
    b: MatRef<'_, E>,
    beta: E::Float,
    out: &mut [E::Float],
) -> Result<()> {
    E::product(dims, a, b, beta, out, None, None)
}

/// [`gemm`] that hands every block of finished rows to `epilogue` while it is in cache: the indices of the rows
/// and their elements, `n` to a row. Blocks come in any order, on any thread.
///
/// # Errors
/// [`Error::Len`] where a slice does not fit its sizes.
pub fn gemm_with<E: Products>(
    dims: Dims,
    a: MatRef<'_, E::Float>,
    b: MatRef<'_, E>,
    beta: E::Float,
    out: &mut [E::Float],
    epilogue: impl Fn(Range<usize>, &mut [E::Float]) + Sync,
) -> Result<()> {
    E::product(dims, a, b, beta, out, None, Some(&epilogue))
}

/// What is done with a block of finished rows.
pub type Epilogue<'a, T> = &'a (dyn Fn(Range<usize>, &mut [T]) + Sync);

crate::instances! {
    /// Products with a matrix of this type on the right.
    pub trait Products: Storage for [f32, f64, Bf16, F16] {
        /// What [`gemm`] and [`gemm_with`] do, by a given plan where there is one.
        fn product(
            dims: Dims,
            a: MatRef<'_, Self::Float>,
            b: MatRef<'_, Self>,
            beta: Self::Float,
            out: &mut [Self::Float],
            plan: Option<Plan>,
            epilogue: Option<Epilogue<'_, Self::Float>>,
        ) -> Result<()> = product;
        /// `out (m, n) = A B` for contiguous `a (m, k)` of few rows, up to [`FEW_ROWS`], and `B (k, n)`, or its transpose
        /// `(n, k)` where `transposed`.
        fn few_rows(
            dims: Dims,
            a: &[Self::Float],
            b: &[Self],
            transposed: bool,
            out: &mut [Self::Float],
        ) -> Result<()> = few::few_rows;
    }
}

/// [`gemm`] by a given plan.
#[doc(hidden)]
pub fn gemm_by<E: Products>(
    dims: Dims,
    a: MatRef<'_, E::Float>,
    b: MatRef<'_, E>,
    beta: E::Float,
    out: &mut [E::Float],
    plan: Plan,
) -> Result<()> {
    E::product(dims, a, b, beta, out, Some(plan), None)
}

fn product<T: Float, E: Storage<Float = T>>(
    dims: Dims,
    a: MatRef<'_, T>,
    b: MatRef<'_, E>,
    beta: T,
    out: &mut [T],
    plan: Option<Plan>,
    epilogue: Option<Epilogue<'_, T>>,
) -> Result<()> {
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
    if out.is_empty() {
        return Ok(());
    }
    // One level for the whole product: panels are as wide as its vectors.
    let level = isa::level();
    let width = T::dispatch_at(level, PanelWidth);
    let panels = n.div_ceil(width);
    let plan = plan.unwrap_or_else(|| Plan::new(dims, &a, &b, width));
    let mut scratch = Scratch::take();
    let packed_b = (plan.pack_b == PackB::Shared).then(|| {
        let packed = scratch.get::<T>(panels * width * k);
        threads::for_each_block(packed, width * k, width * k * 4, |panel, out| {
            T::dispatch_at(level, PackPanelOfB { dims, b, col: panel * width, out });
        });
        &*packed
    });
    let col_blocks = panels.div_ceil(plan.block_panels);
    let row_blocks = m.div_ceil(plan.block_rows);
    let block_cols = plan.block_panels.saturating_mul(width);
    let work = k.saturating_mul(plan.block_rows.min(m)).saturating_mul(block_cols.min(n));
    let rows_of = |block: usize| block * plan.block_rows..((block + 1) * plan.block_rows).min(m);
    let elements_of = |rows: &Range<usize>| rows.start * n..rows.end * n;
    let shared = Disjoint::new(out);
    threads::for_each(row_blocks * col_blocks, work, |task| {
        let (rows, first) = (rows_of(task / col_blocks), task % col_blocks * block_cols);
        let cols = first..first.saturating_add(block_cols).min(n);
        T::dispatch_at(
            level,
            Block { dims, a, b, beta, plan, packed_b, rows: rows.clone(), cols, out: &shared },
        );
        if let Some(epilogue) = epilogue
            && col_blocks == 1
        {
            // SAFETY: these rows belong to this task alone.
            epilogue(rows.clone(), unsafe { shared.slice(elements_of(&rows)) });
        }
    });
    if let Some(epilogue) = epilogue
        && col_blocks > 1
    {
        threads::for_each(row_blocks, plan.block_rows * n, |block| {
            let rows = rows_of(block);
            // SAFETY: blocks of rows do not overlap, and the product is done with them.
            epilogue(rows.clone(), unsafe { shared.slice(elements_of(&rows)) });
        });
    }
    Ok(())
}

/// Columns of a panel of `B`.
struct PanelWidth;
impl<T: Float> Kernel<T> for PanelWidth {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> usize {
        VECTORS * S::LANES
    }
}

/// Packs all of `k` for the panel of `B` that starts at column `col`.
struct PackPanelOfB<'a, T, E> {
    dims: Dims,
    b: MatRef<'a, E>,
    col: usize,
    out: &'a mut [T],
}
impl<T: Float, E: Storage<Float = T>> Kernel<T> for PackPanelOfB<'_, T, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = VECTORS * S::LANES;
        let src = self.b.at(0, self.col);
        let strides = (self.b.col_stride, self.b.row_stride);
        // SAFETY: `b` holds k rows and n columns.
        unsafe {
            pack::panel(s, width, width.min(self.dims.n - self.col), self.dims.k, src, strides, self.out);
        }
    }
}
