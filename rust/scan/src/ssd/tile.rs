//! The register tile: every matrix product of the kernels is this one loop.
//!
//! `C = start + factor * (A1 B1) + A2 B2`, with a factor for each row. An element of `A` is broadcast, a row of `B` is
//! loaded, and `MR * NR` vectors of `C` stay in registers over both products. `A2` may be a triangle, of which the
//! other half is neither computed nor read: what lies there, NaN included, reaches nothing. Rows of `B` and `C` are
//! whole vectors.

use sensorium_core::{Float, Kernel, Simd};

/// `A B`, with elements `a[i * row + p * col]` and `b[p * ldb + j]` for `p < n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<T> {
    pub(super) a: *const T,
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) b: *const T,
    pub(super) ldb: usize,
    pub(super) n: usize,
}

impl<T> Operands<T> {
    /// No product.
    pub(super) const NONE: Self =
        Self { a: std::ptr::null(), row: 0, col: 0, b: std::ptr::null(), ldb: 0, n: 0 };
}

/// Which elements of a matrix are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// All.
    Whole,
    /// Column up to row.
    Lower,
    /// Column from row on.
    Upper,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<T> {
    /// Nothing: `C` is overwritten.
    Zero,
    /// A matrix with rows as far apart as those of `C`, times a number.
    Scaled(T, *const T),
}

/// A product of elements `c[i * ldc + j]`.
///
/// It runs by [`Float::dispatch`], so that there is one copy for each float and level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product<T> {
    pub(super) first: Operands<T>,
    /// Factor of each row of the first product; 1 where null.
    pub(super) factor: *const T,
    pub(super) second: Operands<T>,
    /// What there is of `A2`.
    pub(super) half: Half,
    pub(super) c: *mut T,
    pub(super) ldc: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// What is wanted of `C`: the tiles that hold some of it are computed.
    pub(super) wanted: Half,
    pub(super) start: Start<T>,
}

impl<T: Float> Product<T> {
    /// `c = A B`, all of it.
    pub(super) fn new(first: Operands<T>, c: *mut T, ldc: usize, rows: usize, columns: usize) -> Self {
        Self {
            first,
            factor: std::ptr::null(),
            second: Operands::NONE,
            half: Half::Whole,
            c,
            ldc,
            rows,
            columns,
            wanted: Half::Whole,
            start: Start::Zero,
        }
    }

    /// Computes it.
    ///
    /// # Safety
    /// All those elements are readable, those of `c` writable, rows of `b` and `c` up to a whole number of vectors.
    #[inline(always)]
    pub(super) unsafe fn run(self) {
        T::dispatch(self);
    }
}

impl<T: Float> Kernel<T> for Product<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let mut j = 0;
        while j < self.columns {
            let vectors = (self.columns - j).div_ceil(S::LANES);
            // SAFETY: as the caller of `Product::run` vouches, for every column and row.
            unsafe {
                // Of 32 registers, 24 accumulate: eight rows by three vectors. Of 16, eight do, four by two. Four
                // vectors are two and two: one vector alone reuses little of what it loads.
                if const { S::REGISTERS >= 32 } && vectors >= 3 && vectors != 4 {
                    self.column_tile::<S, 3>(s, j);
                    j += 3 * S::LANES;
                } else if vectors >= 2 {
                    self.column_tile::<S, 2>(s, j);
                    j += 2 * S::LANES;
                } else {
                    self.column_tile::<S, 1>(s, j);
                    j += S::LANES;
                }
            }
        }
    }
}

impl<T: Float> Product<T> {
    /// `NR` vectors of columns from `j`.
    #[inline(always)]
    unsafe fn column_tile<S: Simd<T>, const NR: usize>(&self, s: S, j: usize) {
        let (mut i, rows) = match self.wanted {
            Half::Whole => (0, self.rows),
            Half::Lower => (j.min(self.rows), self.rows),
            Half::Upper => (0, self.rows.min(j + NR * S::LANES)),
        };
        // SAFETY: as the caller vouches.
        unsafe {
            if const { S::REGISTERS >= 32 } {
                while i + 8 <= rows {
                    self.tile::<S, 8, NR>(s, i, j);
                    i += 8;
                }
            }
            while i + 4 <= rows {
                self.tile::<S, 4, NR>(s, i, j);
                i += 4;
            }
            if i + 2 <= rows {
                self.tile::<S, 2, NR>(s, i, j);
                i += 2;
            }
            if i < rows {
                self.tile::<S, 1, NR>(s, i, j);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd<T>, const MR: usize, const NR: usize>(&self, s: S, i: usize, j: usize) {
        let mut acc = [[s.splat(T::ZERO); NR]; MR];
        // SAFETY: as the caller vouches.
        unsafe {
            let Operands { a, row, col, b, ldb, n } = self.first;
            let a = a.wrapping_add(i * row);
            acc = steps::<T, S, MR, NR>(s, acc, (a, row, col), (b.wrapping_add(j), ldb), n);
            if !self.factor.is_null() {
                for r in 0..MR {
                    let factor = s.splat(*self.factor.add(i + r));
                    for v in 0..NR {
                        acc[r][v] = s.mul(acc[r][v], factor);
                    }
                }
            }
            let Operands { a, row, col, b, ldb, n } = self.second;
            let (a, b) = (a.wrapping_add(i * row), b.wrapping_add(j));
            match self.half {
                Half::Whole => acc = steps::<T, S, MR, NR>(s, acc, (a, row, col), (b, ldb), n),
                Half::Lower => {
                    acc = steps::<T, S, MR, NR>(s, acc, (a, row, col), (b, ldb), i);
                    let (a, b) = (a.wrapping_add(i * col), b.wrapping_add(i * ldb));
                    for p in 0..MR {
                        let bv = load::<T, S, NR>(s, b.wrapping_add(p * ldb));
                        for r in p..MR {
                            let av = s.splat(*a.add(r * row + p * col));
                            for v in 0..NR {
                                acc[r][v] = s.mul_add(av, bv[v], acc[r][v]);
                            }
                        }
                    }
                }
                Half::Upper => {
                    let (a, b) = (a.wrapping_add(i * col), b.wrapping_add(i * ldb));
                    for p in 0..MR {
                        let bv = load::<T, S, NR>(s, b.wrapping_add(p * ldb));
                        for r in 0..=p {
                            let av = s.splat(*a.add(r * row + p * col));
                            for v in 0..NR {
                                acc[r][v] = s.mul_add(av, bv[v], acc[r][v]);
                            }
                        }
                    }
                    let (a, b) = (a.wrapping_add(MR * col), b.wrapping_add(MR * ldb));
                    acc = steps::<T, S, MR, NR>(s, acc, (a, row, col), (b, ldb), n - i - MR);
                }
            }
            for r in 0..MR {
                let at = (i + r) * self.ldc + j;
                for v in 0..NR {
                    let at = at + v * S::LANES;
                    let value = match self.start {
                        Start::Zero => acc[r][v],
                        Start::Scaled(factor, from) => {
                            s.mul_add(s.splat(factor), s.load_ptr(from.add(at)), acc[r][v])
                        }
                    };
                    s.store_ptr(self.c.add(at), value);
                }
            }
        }
    }
}

/// `NR` vectors from `b`.
#[inline(always)]
unsafe fn load<T: Float, S: Simd<T>, const NR: usize>(s: S, b: *const T) -> [S::V; NR] {
    let mut bv = [s.splat(T::ZERO); NR];
    for v in 0..NR {
        // SAFETY: as the caller vouches.
        bv[v] = unsafe { s.load_ptr(b.add(v * S::LANES)) };
    }
    bv
}

/// `acc` and `n` steps of a product.
#[inline(always)]
unsafe fn steps<T: Float, S: Simd<T>, const MR: usize, const NR: usize>(
    s: S,
    mut acc: [[S::V; NR]; MR],
    (mut a, row, col): (*const T, usize, usize),
    (mut b, ldb): (*const T, usize),
    n: usize,
) -> [[S::V; NR]; MR] {
    for _ in 0..n {
        // SAFETY: as the caller vouches for every step.
        unsafe {
            let bv = load::<T, S, NR>(s, b);
            for r in 0..MR {
                let av = s.splat(*a.add(r * row));
                for v in 0..NR {
                    acc[r][v] = s.mul_add(av, bv[v], acc[r][v]);
                }
            }
        }
        a = a.wrapping_add(col);
        b = b.wrapping_add(ldb);
    }
    acc
}

#[cfg(test)]
mod tests {
    use super::*;
    use sensorium_core::{Level, MAX_LANES, isa};

    /// Small whole numbers, whose sums are exact in any order.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 13) as f32 - 6.0).collect()
    }

    #[test]
    #[allow(clippy::float_cmp)] // Sums of whole numbers are exact.
    fn products_are_right_and_halves_keep_out_what_is_not_theirs() {
        for level in Level::available() {
            isa::set_level(level);
            for (rows, columns, n) in
                [(1_usize, 1_usize, 1_usize), (8, 16, 3), (13, 40, 13), (23, 64, 23), (15, 100, 15)]
            {
                let ld = columns.next_multiple_of(MAX_LANES);
                let (a1, b1) = (numbers(rows * 5, 1), numbers(5 * ld, 2));
                let (mut a2, b2) = (numbers(rows * n, 3), numbers(n * ld, 4));
                let factor = numbers(rows, 5);
                for half in [Half::Whole, Half::Lower, Half::Upper] {
                    let there = |i: usize, p: usize| match half {
                        Half::Whole => true,
                        Half::Lower => p <= i,
                        Half::Upper => p >= i,
                    };
                    if half != Half::Whole && rows != n {
                        continue;
                    }
                    for i in 0..rows {
                        for p in 0..n {
                            let value = ((i * 7 + p * 5) % 9) as f32 - 4.0;
                            a2[i * n + p] = if there(i, p) { value } else { f32::NAN };
                        }
                    }
                    let mut c = numbers(rows * ld, 6);
                    let before = c.clone();
                    let first = Operands { a: a1.as_ptr(), row: 5, col: 1, b: b1.as_ptr(), ldb: ld, n: 5 };
                    let product = Product {
                        factor: factor.as_ptr(),
                        second: Operands { a: a2.as_ptr(), row: n, col: 1, b: b2.as_ptr(), ldb: ld, n },
                        half,
                        start: Start::Scaled(2.0, c.as_ptr()),
                        ..Product::new(first, c.as_mut_ptr(), ld, rows, columns)
                    };
                    // SAFETY: the sizes are those of the buffers.
                    unsafe { product.run() };
                    for i in 0..rows {
                        for j in 0..columns {
                            let one: f32 = (0..5).map(|p| a1[i * 5 + p] * b1[p * ld + j]).sum();
                            let two: f32 =
                                (0..n).filter(|&p| there(i, p)).map(|p| a2[i * n + p] * b2[p * ld + j]).sum();
                            let want = 2.0 * before[i * ld + j] + factor[i] * one + two;
                            assert_eq!(c[i * ld + j], want, "{half:?} {level:?} {i} {j}");
                        }
                    }
                }
                for wanted in [Half::Lower, Half::Upper] {
                    let mut c = vec![f32::NAN; rows * ld];
                    let first = Operands { a: a1.as_ptr(), row: 5, col: 1, b: b1.as_ptr(), ldb: ld, n: 5 };
                    let product =
                        Product { wanted, ..Product::new(first, c.as_mut_ptr(), ld, rows, columns) };
                    // SAFETY: the sizes are those of the buffers.
                    unsafe { product.run() };
                    for i in 0..rows {
                        for j in 0..columns {
                            if (wanted == Half::Lower && j <= i) || (wanted == Half::Upper && j >= i) {
                                let want: f32 = (0..5).map(|p| a1[i * 5 + p] * b1[p * ld + j]).sum();
                                assert_eq!(c[i * ld + j], want);
                            }
                        }
                    }
                }
            }
        }
        isa::set_level(Level::Avx512);
    }
}
