//! The small matrix products of a mini-batch: tens of rows, all operands in cache.
//!
//! `C = start + A B` with an element of `A` broadcast, a row of `B` loaded, and a tile of `C` in registers. Rows of
//! `B` and `C` are padded to whole vectors. `A` has any strides, so that a product with a transposed left operand
//! costs the same; a transposed right operand is turned first, or, for few rows, summed along the lanes.
//! A causal product reads only the lower triangle of `A`, and of `B` only the rows up to the row of `C`: what comes
//! later in a mini-batch, a NaN included, does not reach what came before.

use sensorium_core::{Float, Kernel, MAX_LANES, Simd};

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// Nothing.
    Zero,
    /// What the output holds.
    Add,
    /// This row, in every row.
    Row(&'a [T]),
}

/// A left operand: element `(i, p)` is `data[i * row + p * col]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'a, T> {
    data: &'a [T],
    row: usize,
    col: usize,
}

impl<'a, T> Left<'a, T> {
    /// Rows of `ld` elements.
    pub(super) const fn rows(data: &'a [T], ld: usize) -> Self {
        Self { data, row: ld, col: 1 }
    }
    /// Its transpose.
    pub(super) const fn turned(data: &'a [T], ld: usize) -> Self {
        Self { data, row: 1, col: ld }
    }
}

/// `C (rows, width) = start + A (rows, inner) B (inner, width)`.
pub(super) struct Product<'a, T> {
    pub(super) a: Left<'a, T>,
    pub(super) b: &'a [T],
    pub(super) c: &'a mut [T],
    pub(super) rows: usize,
    pub(super) inner: usize,
    /// Elements of a row of `b` and of `c`: whole lines.
    pub(super) width: usize,
    pub(super) start: Start<'a, T>,
    /// Whether row `i` sums only `p <= i`.
    pub(super) causal: bool,
}

/// `c = start + a b` for rows of `width`.
pub(super) fn multiply<T: Float>(
    (rows, inner, width): (usize, usize, usize),
    a: Left<'_, T>,
    b: &[T],
    start: Start<'_, T>,
    c: &mut [T],
) {
    T::dispatch(Product { a, b, c, rows, inner, width, start, causal: false });
}

/// `c += a b` where `a` is lower triangular.
pub(super) fn multiply_causal<T: Float>(rows: usize, width: usize, a: Left<'_, T>, b: &[T], c: &mut [T]) {
    T::dispatch(Product { a, b, c, rows, inner: rows, width, start: Start::Add, causal: true });
}

impl<T: Float> Kernel<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        let Self { rows, inner, width, .. } = self;
        if rows == 0 || width == 0 {
            return;
        }
        assert!(
            width.is_multiple_of(S::LANES) && self.c.len() >= rows * width && self.b.len() >= inner * width
        );
        assert!(inner == 0 || (rows - 1) * self.a.row + (inner - 1) * self.a.col < self.a.data.len());
        assert!(!self.causal || inner == rows);
        if let Start::Row(row) = self.start {
            assert!(row.len() >= width);
        }
        // SAFETY: all rows and vectors are within the operands, whose extents were just checked.
        unsafe {
            if self.causal {
                self.all::<S, true>(s);
            } else {
                self.all::<S, false>(s);
            }
        }
    }
}

impl<T: Float> Product<'_, T> {
    /// # Safety
    /// As for [`tile`](Self::tile), for all rows and columns.
    #[inline(always)]
    unsafe fn all<S: Simd<T>, const CAUSAL: bool>(&mut self, s: S) {
        let mut j = 0;
        while j < self.width {
            let left = (self.width - j) / S::LANES;
            // Of 32 registers, 24 accumulate: eight rows by three vectors; of 16, eight do.
            // SAFETY: as the caller vouches.
            unsafe {
                if const { S::REGISTERS >= 32 } && left >= 3 && left != 4 {
                    self.columns::<S, 3, CAUSAL>(s, j);
                    j += 3 * S::LANES;
                } else if left >= 2 {
                    self.columns::<S, 2, CAUSAL>(s, j);
                    j += 2 * S::LANES;
                } else {
                    self.columns::<S, 1, CAUSAL>(s, j);
                    j += S::LANES;
                }
            }
        }
    }

    /// # Safety
    /// As for [`tile`](Self::tile), for all rows.
    #[inline(always)]
    unsafe fn columns<S: Simd<T>, const V: usize, const CAUSAL: bool>(&mut self, s: S, j: usize) {
        let mut i = 0;
        // SAFETY: as the caller vouches.
        unsafe {
            if const { S::REGISTERS >= 32 } {
                while i + 8 <= self.rows {
                    self.tile::<S, 8, V, CAUSAL>(s, i, j);
                    i += 8;
                }
            }
            while i + 4 <= self.rows {
                self.tile::<S, 4, V, CAUSAL>(s, i, j);
                i += 4;
            }
            while i < self.rows {
                self.tile::<S, 1, V, CAUSAL>(s, i, j);
                i += 1;
            }
        }
    }

    /// Rows `i..i + R`, vectors from column `j` on.
    ///
    /// # Safety
    /// They are within `c`, and `a` and `b` hold what they are summed from.
    #[inline(always)]
    unsafe fn tile<S: Simd<T>, const R: usize, const V: usize, const CAUSAL: bool>(
        &mut self,
        s: S,
        i: usize,
        j: usize,
    ) {
        let mut sum = [[s.splat(T::ZERO); V]; R];
        let (row, col, ldb) = (self.a.row, self.a.col, self.width);
        // SAFETY: as the caller vouches.
        unsafe {
            let c = self.c.as_mut_ptr().add(i * self.width + j);
            match self.start {
                Start::Zero => {}
                Start::Add => {
                    for r in 0..R {
                        for v in 0..V {
                            sum[r][v] = s.load_ptr(c.add(r * self.width + v * S::LANES));
                        }
                    }
                }
                Start::Row(start) => {
                    for v in 0..V {
                        let x = s.load_ptr(start.as_ptr().add(j + v * S::LANES));
                        for r in 0..R {
                            sum[r][v] = x;
                        }
                    }
                }
            }
            let (mut a, mut b) =
                (self.a.data.as_ptr().wrapping_add(i * row), self.b.as_ptr().wrapping_add(j));
            for _ in 0..if CAUSAL { i } else { self.inner } {
                let mut x = [s.splat(T::ZERO); V];
                for v in 0..V {
                    x[v] = s.load_ptr(b.add(v * S::LANES));
                }
                for r in 0..R {
                    let y = s.splat(*a.add(r * row));
                    for v in 0..V {
                        sum[r][v] = s.mul_add(y, x[v], sum[r][v]);
                    }
                }
                a = a.wrapping_add(col);
                b = b.wrapping_add(ldb);
            }
            if CAUSAL {
                // Row by row, so that sums keep their registers: one indexed by a variable is kept in memory, and so
                // are the others, in the loop above too.
                for r in 0..R {
                    for p in 0..=r {
                        let y = s.splat(*a.add(r * row + p * col));
                        for v in 0..V {
                            sum[r][v] = s.mul_add(y, s.load_ptr(b.add(p * ldb + v * S::LANES)), sum[r][v]);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    s.store_ptr(c.add(r * self.width + v * S::LANES), sum[r][v]);
                }
            }
        }
    }
}

/// Rows below which a product with a transposed right operand is summed along the lanes.
pub(super) const FEW: usize = 4;

/// A matrix `(rows, ld)` of which products with the transpose are wanted, and room for it.
pub(super) struct Turned<'a, T> {
    data: &'a [T],
    ld: usize,
    rows: usize,
    cols: usize,
    room: Option<&'a [T]>,
}

impl<'a, T: Float> Turned<'a, T> {
    /// `data` has `rows` rows of `cols` elements, padded to `ld`; `room` holds `cols` rows of `rows`, padded.
    /// Products with it will have `uses` rows, all of them so many or few alike.
    pub(super) fn new(data: &'a [T], (rows, cols): (usize, usize), room: &'a mut [T], uses: usize) -> Self {
        let (ld, to) = (super::scratch::padded::<T>(cols), super::scratch::padded::<T>(rows));
        let few = uses < FEW;
        if !few {
            T::dispatch(Turn { from: data, ld, rows, cols, to: room, width: to });
        }
        Self { data, ld, rows, cols, room: (!few).then_some(room) }
    }

    /// `c (n, rows) = start + a (n, cols) data^T`.
    pub(super) fn multiply(&self, n: usize, a: &[T], start: Start<'_, T>, c: &mut [T]) {
        let width = super::scratch::padded::<T>(self.rows);
        match self.room {
            Some(room) => multiply((n, self.cols, width), Left::rows(a, self.ld), room, start, c),
            None => T::dispatch(Dots { a, b: self.data, ld: self.ld, n, rows: self.rows, start, c, width }),
        }
    }
}

/// `c[i][j] = start + sum over p of a[i][p] b[j][p]`, vectors along `p`, whose padding is zero.
struct Dots<'a, T> {
    a: &'a [T],
    b: &'a [T],
    ld: usize,
    n: usize,
    rows: usize,
    start: Start<'a, T>,
    c: &'a mut [T],
    width: usize,
}

impl<T: Float> Kernel<T> for Dots<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { a, b, ld, n, rows, start, c, width } = self;
        assert!(ld.is_multiple_of(S::LANES) && a.len() >= n * ld && b.len() >= rows * ld);
        for i in 0..n {
            let a = &a[i * ld..(i + 1) * ld];
            let c = &mut c[i * width..i * width + rows];
            for j in (0..rows).step_by(S::LANES) {
                let mut sums = [s.splat(T::ZERO); MAX_LANES];
                for p in (0..ld).step_by(S::LANES) {
                    let x = s.load(&a[p..]);
                    for l in 0..S::LANES {
                        // SAFETY: within `b`, whose length was checked; rows past the last read the last again.
                        let y = unsafe { s.load_ptr(b.as_ptr().add((j + l).min(rows - 1) * ld + p)) };
                        sums[l] = s.mul_add(x, y, sums[l]);
                    }
                }
                let mut sum = s.reduce_sums(sums);
                let c = &mut c[j..];
                match start {
                    Start::Zero => {}
                    Start::Add => sum = s.add(sum, s.load_head(c, T::ZERO)),
                    Start::Row(row) => sum = s.add(sum, s.load_head(&row[j..rows], T::ZERO)),
                }
                s.store_head(c, sum);
            }
        }
    }
}

/// Side of the squares that a transposition moves at once.
const SQUARE: usize = 4;
/// Rows that are turned together, so that lines are written whole: a column at a time, they would be fetched and
/// evicted four times where rows of `to` are a power of two apart.
const TOGETHER: usize = 4 * SQUARE;

/// `to[c][r] = from[r][c]`, padded with zeros.
struct Turn<'a, T> {
    from: &'a [T],
    ld: usize,
    rows: usize,
    cols: usize,
    to: &'a mut [T],
    width: usize,
}

impl<T: Float> Kernel<T> for Turn<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let Self { from, ld, rows, cols, to, width } = self;
        assert!(cols <= ld && rows <= width && from.len() >= rows * ld && to.len() >= cols * width);
        let (whole_rows, whole_cols) = (rows - rows % SQUARE, cols - cols % SQUARE);
        for first in (0..whole_rows).step_by(TOGETHER) {
            for j in (0..whole_cols).step_by(SQUARE) {
                for i in (first..whole_rows.min(first + TOGETHER)).step_by(SQUARE) {
                    // SAFETY: four rows from `i` and four columns from `j` are within both, as was just checked.
                    unsafe {
                        square(from.as_ptr().add(i * ld + j), ld, to.as_mut_ptr().add(j * width + i), width);
                    }
                }
            }
        }
        for i in 0..rows {
            for j in if i < whole_rows { whole_cols } else { 0 }..cols {
                to[j * width + i] = from[i * ld + j];
            }
        }
        if rows < width {
            for j in 0..cols {
                to[j * width + rows..(j + 1) * width].fill(T::ZERO);
            }
        }
    }
}

/// `dst[c * to + r] = src[r * from + c]` for four rows and four columns.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
unsafe fn square<T: Float>(src: *const T, from: usize, dst: *mut T, to: usize) {
    #[cfg(target_arch = "x86_64")]
    if const { size_of::<T>() == size_of::<f32>() } {
        // SAFETY: `T` is `f32`, the only float of its size; the caller vouches for the elements.
        unsafe { square_f32(src.cast(), from, dst.cast(), to) };
        return;
    }
    // SAFETY: as the caller vouches.
    unsafe {
        let mut rows = [[T::ZERO; SQUARE]; SQUARE];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = src.add(r * from).cast::<[T; SQUARE]>().read_unaligned();
        }
        for c in 0..SQUARE {
            let column = [rows[0][c], rows[1][c], rows[2][c], rows[3][c]];
            dst.add(c * to).cast::<[T; SQUARE]>().write_unaligned(column);
        }
    }
}

/// The same in registers, which the compiler does not find: it moves elements one by one, three times slower.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn square_f32(src: *const f32, from: usize, dst: *mut f32, to: usize) {
    use std::arch::x86_64::{
        _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
    };
    // SAFETY: SSE is in the baseline of x86-64; the caller vouches for the elements.
    unsafe {
        let (a, b) = (_mm_loadu_ps(src), _mm_loadu_ps(src.add(from)));
        let (c, d) = (_mm_loadu_ps(src.add(2 * from)), _mm_loadu_ps(src.add(3 * from)));
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(dst, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(dst.add(to), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(dst.add(2 * to), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(dst.add(3 * to), _mm_movehl_ps(cd_high, ab_high));
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::padded;
    use super::*;
    use sensorium_core::{Level, isa};

    fn values<T: Float>(n: usize, seed: usize) -> Vec<T> {
        // Small integers, whose products and sums are exact.
        (0..n).map(|i| T::from_f64(((i * 7 + seed * 3) % 11) as f64 - 5.0)).collect()
    }

    fn matrix<T: Float>(rows: usize, cols: usize, seed: usize) -> Vec<T> {
        let (ld, mut out) = (padded::<T>(cols), Vec::new());
        for row in values::<T>(rows * cols, seed).chunks(cols.max(1)) {
            out.extend_from_slice(row);
            out.resize(out.len() + ld - cols, T::ZERO);
        }
        out.resize(rows * ld, T::ZERO);
        out
    }

    fn check<T: Float>() {
        for (n, k, m) in
            [(1, 1, 1), (3, 5, 7), (16, 64, 64), (13, 17, 33), (4, 0, 5), (29, 3, 70), (5, 20, 120)]
        {
            let (lk, lm) = (padded::<T>(k), padded::<T>(m));
            let (a, b, bt) = (matrix::<T>(n, k, 1), matrix::<T>(k, m, 2), matrix::<T>(m, k, 3));
            let (old, row) = (matrix::<T>(n, m, 4), matrix::<T>(1, m, 5));
            let ln = padded::<T>(n);
            let mut at = vec![T::ZERO; k * ln];
            T::dispatch(Turn { from: &a, ld: lk, rows: n, cols: k, to: &mut at, width: ln });
            let want = |i: usize, j: usize, start: usize, by: &dyn Fn(usize, usize) -> T| {
                let first = [T::ZERO, old[i * lm + j], row[j]][start];
                (0..k).map(|p| a[i * lk + p] * by(p, j)).fold(first, |x, y| x + y)
            };
            for (kind, start) in [Start::Zero, Start::Add, Start::Row(&row)].into_iter().enumerate() {
                let (mut c, mut d) = (old.clone(), old.clone());
                multiply((n, k, lm), Left::rows(&a, lk), &b, start, &mut c);
                multiply((n, k, lm), Left::turned(&at, ln), &b, start, &mut d);
                assert!(c == d, "a turned left operand");
                let mut room = vec![T::ONE; k * lm];
                let (mut e, mut f) = (old.clone(), old.clone());
                Turned::new(&bt, (m, k), &mut room, FEW).multiply(n, &a, start, &mut e);
                Turned::new(&bt, (m, k), &mut room, FEW - 1).multiply(n, &a, start, &mut f);
                for i in 0..n {
                    // What pads `old` and `row` is zero, and so is what pads the sums.
                    assert!(e[i * lm + m..(i + 1) * lm].iter().all(|&x| x == T::ZERO));
                    for j in 0..m {
                        assert_eq!(c[i * lm + j], want(i, j, kind, &|p, j| b[p * lm + j]));
                        assert_eq!(e[i * lm + j], want(i, j, kind, &|p, j| bt[j * lk + p]));
                        assert_eq!(e[i * lm + j], f[i * lm + j]);
                    }
                }
            }
        }
    }

    fn check_causal<T: Float>() {
        for n in [1, 2, 7, 8, 16, 21] {
            let (ln, lm) = (padded::<T>(n), padded::<T>(40));
            let (mut a, mut b) = (matrix::<T>(n, n, 1), matrix::<T>(n, 40, 2));
            for i in 0..n {
                a[i * ln + i + 1..(i + 1) * ln].fill(T::ZERO);
            }
            let mut want = matrix::<T>(n, 40, 3);
            let mut got = want.clone();
            multiply((n, n, lm), Left::rows(&a, ln), &b, Start::Add, &mut want);
            multiply_causal(n, lm, Left::rows(&a, ln), &b, &mut got);
            assert!(want == got);
            // The last row of `b` is seen by the last row of `c` alone, whatever it holds.
            b[(n - 1) * lm] = T::from_f64(f64::NAN);
            multiply_causal(n, lm, Left::rows(&a, ln), &b, &mut got);
            assert!(got[(n - 1) * lm].to_f64().is_nan());
            assert!(got[..(n - 1) * lm].iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn products_are_exact_on_integers_at_every_level() {
        for level in Level::available() {
            isa::set_level(level);
            check::<f32>();
            check::<f64>();
            check_causal::<f32>();
            check_causal::<f64>();
        }
        isa::set_level(Level::Avx512);
    }
}
