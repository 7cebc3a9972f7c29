//! The register tile: every matrix product of the kernels is this one loop.
//!
//! `C (rows, columns) = start + A (rows, n) B (n, columns)`. An element of `A` is broadcast, a row of `B` is loaded,
//! and `MR * NR` vectors of `C` stay in registers. Queries lie along the columns in the score and value products, so
//! keys and values are only ever broadcast: they are read where they are, in rows of any stride, and never packed;
//! the maximum and sum of a softmax are lanes of a vector, and no sum runs across lanes.
//!
//! The ladder, `f32`, D 64, one core of a Zen 4 (SGEMM there 100 GFLOP/s), N 2048, `showo2`, forward / backward:
//!
//! | form | GFLOP/s |
//! |---|---|
//! | chunks of keys handed to a closure: it is compiled without the target's features, and all it calls | 1 / 1 |
//! | the same in a loop; eight rows by three vectors; a copy of the loop for each product and width | 90 / 72 |
//! | one copy, called through dispatch, strides known only at run time, exponentials in a loop of their own | 94 / 100 |
//! | squares turned in registers, scratch kept between tasks, a block's 48 queries in one product | 110 / 116 |
//!
//! The copies: 132 for each float and level took two minutes to build. Rows of short samples (N 152 in four samples
//! of 38, D 32): 33 / 28, 30 / 27 with one copy, then 42 / 45. At AVX2, four rows by three vectors spilt an
//! accumulator in every step, 53 / 55; four by two, 105 / 110. The baseline, without fused multiply-add: 35 / 35.
//!
//! Over widths, N 2048, `bagel`, one core on which SGEMM reaches 104, forward / backward: D 32 90 / 97, D 48 93 / 99,
//! D 64 98 / 101, D 80 99 / 102, D 128 102 / 104. A step of the tile is 24 multiply-adds, 8 broadcasts, 3 loads and
//! 5 others; a vector of scores costs 2 D of those multiply-adds forward and 8 more multiplications for the
//! exponential, so D 32 can have 0.89 of what D 128 has 0.97 of. Strides of any size cost under 5 %, powers of two
//! included. To ask for the rows of the next chunk beforehand (N 4096 and 8192) gained nothing beyond the noise.
//! Packing keys and values, or lanes along keys, was not tried: nothing is left between this and SGEMM.

use sensorium_core::{Float, Kernel, Simd};

/// Sums of fewer terms are not cut.
const SHORT: usize = 32;

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<T> {
    /// Nothing: `C` is overwritten.
    Zero,
    /// Nothing, and the terms are summed in two halves.
    Halves,
    /// `C` itself.
    Add,
    /// `C` with each column multiplied by a factor.
    Scaled(*const T),
}

/// A product whose elements are `a[i * row + p * col]`, `b[p * ldb + j]` and `c[i * ldc + j]`.
///
/// It runs by [`Float::dispatch`], so that there is one copy for each float and level. Should the level change
/// meanwhile, the sizes still hold: they are in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<T> {
    pub(crate) a: *const T,
    pub(crate) row: usize,
    pub(crate) col: usize,
    pub(crate) b: *const T,
    pub(crate) ldb: usize,
    pub(crate) n: usize,
    pub(crate) c: *mut T,
    pub(crate) ldc: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) start: Start<T>,
}

impl<T: Float> Product<T> {
    /// Computes it.
    ///
    /// # Safety
    /// All those elements are readable, those of `c` writable; a row of `b` may be read up to 64 bytes past its end.
    #[inline(always)]
    pub(crate) unsafe fn run(self) {
        T::dispatch(self);
    }

    /// Computes it as two sums, each over half of the terms: a sum of one product after another makes most of the
    /// error of a score, and halves make it smaller by a third. Costs 1 % of
    /// the kernels at D 64; as two products, one after the other, it cost 3 %.
    ///
    /// # Safety
    /// As for [`run`](Self::run); `c` is overwritten.
    #[inline(always)]
    pub(crate) unsafe fn run_in_halves(self) {
        let start = if self.n < SHORT { Start::Zero } else { Start::Halves };
        // SAFETY: as the caller vouches.
        unsafe { Self { start, ..self }.run() };
    }
}

impl<T: Float> Kernel<T> for Product<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let mut j = 0;
        // SAFETY: as the caller of `Product::run` vouches, for every column and row.
        unsafe {
            loop {
                let left = self.columns - j;
                // Of 32 registers, 24 accumulate: eight rows by three vectors. Of 16, eight do, four by two: with
                // twelve, the compiler spills one in every step. Four vectors are two and two: one vector alone
                // reuses little of what it loads.
                if const { S::REGISTERS >= 32 } && left >= 3 * S::LANES && left != 4 * S::LANES {
                    self.columns::<S, 3>(s, j, 3 * S::LANES);
                    j += 3 * S::LANES;
                } else if left >= 2 * S::LANES {
                    self.columns::<S, 2>(s, j, 2 * S::LANES);
                    j += 2 * S::LANES;
                } else if left > 0 {
                    let width = left.min(S::LANES);
                    self.columns::<S, 1>(s, j, width);
                    j += width;
                } else {
                    break;
                }
            }
        }
    }
}

impl<T: Float> Product<T> {
    /// Columns `j..j + width`, `NR` vectors or, with one, part of it.
    #[inline(always)]
    unsafe fn columns<S: Simd<T>, const NR: usize>(&self, s: S, j: usize, width: usize) {
        let mut i = 0;
        // SAFETY: as the caller vouches.
        unsafe {
            if const { S::REGISTERS >= 32 } {
                while i + 8 <= self.rows {
                    self.tile::<S, 8, NR>(s, i, j, width);
                    i += 8;
                }
            }
            while i + 4 <= self.rows {
                self.tile::<S, 4, NR>(s, i, j, width);
                i += 4;
            }
            if i + 2 <= self.rows {
                self.tile::<S, 2, NR>(s, i, j, width);
                i += 2;
            }
            if i < self.rows {
                self.tile::<S, 1, NR>(s, i, j, width);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd<T>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        i: usize,
        j: usize,
        width: usize,
    ) {
        let mut acc = [[s.splat(T::ZERO); NR]; MR];
        let part = NR == 1 && width < S::LANES;
        // SAFETY: as the caller vouches.
        unsafe {
            let c = self.c.add(i * self.ldc + j);
            let (mut a, mut b) = (self.a.add(i * self.row), self.b.add(j));
            let half = if let Start::Halves = self.start { self.n / 2 } else { 0 };
            let mut n = self.n - half;
            let mut left = half;
            loop {
                for _ in 0..n {
                    let mut bv = [s.splat(T::ZERO); NR];
                    for v in 0..NR {
                        bv[v] = s.load_ptr(b.add(v * S::LANES));
                    }
                    for r in 0..MR {
                        let av = s.splat(*a.add(r * self.row));
                        for v in 0..NR {
                            acc[r][v] = s.mul_add(av, bv[v], acc[r][v]);
                        }
                    }
                    a = a.wrapping_add(self.col);
                    b = b.wrapping_add(self.ldb);
                }
                if left == 0 {
                    break;
                }
                for r in 0..MR {
                    let c = c.add(r * self.ldc);
                    if part {
                        s.store_head(std::slice::from_raw_parts_mut(c, width), acc[r][0]);
                    } else {
                        for v in 0..NR {
                            s.store_ptr(c.add(v * S::LANES), acc[r][v]);
                        }
                    }
                }
                acc = [[s.splat(T::ZERO); NR]; MR];
                (n, left) = (left, 0);
            }
            for r in 0..MR {
                let c = c.add(r * self.ldc);
                if part {
                    let c = std::slice::from_raw_parts_mut(c, width);
                    acc[r][0] = match self.start {
                        Start::Zero => acc[r][0],
                        Start::Add | Start::Halves => s.add(acc[r][0], s.load_head(c, T::ZERO)),
                        Start::Scaled(factor) => {
                            let factor = std::slice::from_raw_parts(factor.add(j), width);
                            s.mul_add(s.load_head(factor, T::ZERO), s.load_head(c, T::ZERO), acc[r][0])
                        }
                    };
                    s.store_head(c, acc[r][0]);
                    continue;
                }
                for v in 0..NR {
                    let c = c.add(v * S::LANES);
                    let value = match self.start {
                        Start::Zero => acc[r][v],
                        Start::Add | Start::Halves => s.add(acc[r][v], s.load_ptr(c)),
                        Start::Scaled(factor) => {
                            let factor = s.load_ptr(factor.add(j + v * S::LANES));
                            s.mul_add(factor, s.load_ptr(c), acc[r][v])
                        }
                    };
                    s.store_ptr(c, value);
                }
            }
        }
    }
}
