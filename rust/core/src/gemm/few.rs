//! Products with few rows on the left, as in decoding: bound by reading the matrix on the right, once, as it is stored.
//!
//! Where rows of the transpose are contiguous, `(n, k)` as checkpoints store weights, every output is a dot product.
//! For one row on the left the matrix is read in one stream: eight rows at a time were eight streams too short for the
//! processor to follow. Where columns are, `(k, n)`, blocks of columns take in eight rows
//! after each other. Half precision is widened in registers.
//!
//! An output is summed in an order that depends on the layout, the instruction set, and whether there is one row on the
//! left, not on threads or storage.

// An index counts rows of several arrays at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

use super::Dims;
use crate::error::{check_len, product};
use crate::threads::{Disjoint, for_each};
use crate::{Float, Kernel, Result, Simd, Storage};
use std::ops::Range;

/// Most rows that are few: beyond, packing the matrix for the other products pays.
pub const FEW_ROWS: usize = 8;
/// Rows of the transpose to a task: with 768 columns of half precision 100 kB.
const ROWS: usize = 64;
/// Sums of a dot product under way at a time, so that multiply-adds need not wait for each other.
const CHAINS: usize = 4;
/// Columns to a task: their sums stay in the first-level cache.
const COLUMNS: usize = 256;
/// Rows of the matrix that a pass over sums takes in.
const STEPS: usize = 8;

/// `out (m, n) = A B` for contiguous `a (m, k)`, and `B (k, n)`, or its transpose `(n, k)` where `transposed`.
///
/// # Errors
/// [`Error::Len`](crate::Error::Len) where a slice does not fit its sizes.
pub(crate) fn few_rows<T: Float, E: Storage<Float = T>>(
    dims: Dims,
    a: &[T],
    b: &[E],
    transposed: bool,
    out: &mut [T],
) -> Result<()> {
    let Dims { m, n, k } = dims;
    check_len("a", a, product("a", &[m, k])?)?;
    check_len("b", b, product("b", &[k, n])?)?;
    check_len("out", out, product("out", &[m, n])?)?;
    let out = Disjoint::new(out);
    let block = if transposed { ROWS } else { COLUMNS };
    // Reading an element of the matrix takes as long as several operations.
    let work = block.min(n).saturating_mul(k).saturating_mul(2 * m + 4);
    for_each(n.div_ceil(block), work, |i| {
        let cols = i * block..((i + 1) * block).min(n);
        let few = Few { dims, a, b, cols, out: &out };
        if transposed {
            T::dispatch(Dots(few));
        } else {
            T::dispatch(Sums(few));
        }
    });
    Ok(())
}

/// Some columns of the output.
struct Few<'a, T, E> {
    dims: Dims,
    a: &'a [T],
    b: &'a [E],
    cols: Range<usize>,
    out: &'a Disjoint<'a, T>,
}

/// By rows of the transpose.
struct Dots<'a, T, E>(Few<'a, T, E>);

impl<T: Float, E: Storage<Float = T>> Kernel<T> for Dots<'_, T, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let (cols, m) = (self.0.cols.clone(), self.0.dims.m);
        if m == 1 {
            for j in cols {
                self.0.dots::<S, 1, 1, CHAINS>(s, 0, j);
            }
            return;
        }
        let mut j = cols.start;
        while j < cols.end {
            // Rows of `a` in turn find these rows of the transpose in the cache.
            let four = j + 4 <= cols.end;
            let mut i = 0;
            while i < m {
                let most = if S::REGISTERS >= 32 { 4 } else { 2 };
                let rows = most.min(m - i);
                match (four, rows) {
                    (true, 4) => self.0.dots::<S, 4, 4, 1>(s, i, j),
                    (true, 2 | 3) => self.0.dots::<S, 4, 2, 1>(s, i, j),
                    (true, _) => self.0.dots::<S, 4, 1, 1>(s, i, j),
                    (false, 4) => self.0.dots::<S, 1, 4, 1>(s, i, j),
                    (false, 2 | 3) => self.0.dots::<S, 1, 2, 1>(s, i, j),
                    (false, _) => self.0.dots::<S, 1, 1, 1>(s, i, j),
                }
                i += if rows == 3 { 2 } else { rows };
            }
            j += if four { 4 } else { 1 };
        }
    }
}

impl<T: Float, E: Storage<Float = T>> Few<'_, T, E> {
    /// `M` rows of `a` from `i` on by `R` rows of the transpose from `j` on, in `U` chains of sums.
    #[inline(always)]
    fn dots<S: Simd<T>, const R: usize, const M: usize, const U: usize>(&self, s: S, i: usize, j: usize) {
        let Dims { n, k, .. } = self.dims;
        let (a, b) = (&self.a[i * k..(i + M) * k], &self.b[j * k..(j + R) * k]);
        let mut sum = [[[s.splat(T::ZERO); M]; R]; U];
        let (step, mut p) = (U * S::LANES, 0);
        while p + step <= k {
            for u in 0..U {
                let at = p + u * S::LANES;
                let mut x = [s.splat(T::ZERO); M];
                for m in 0..M {
                    // SAFETY: a whole vector of row `m`.
                    x[m] = unsafe { s.load_ptr(a.as_ptr().add(m * k + at)) };
                }
                for r in 0..R {
                    // SAFETY: a whole vector of row `r`.
                    let w = unsafe { E::load_ptr(s, b.as_ptr().add(r * k + at)) };
                    for m in 0..M {
                        sum[u][r][m] = s.mul_add(w, x[m], sum[u][r][m]);
                    }
                }
            }
            p += step;
        }
        while p < k {
            let rest = (k - p).min(S::LANES);
            for r in 0..R {
                // SAFETY: what is left of row `r`, at most a vector.
                let w = unsafe { E::load_head_ptr(s, b.as_ptr().add(r * k + p), rest) };
                for m in 0..M {
                    let x = s.load_head(&a[m * k + p..m * k + p + rest], T::ZERO);
                    sum[0][r][m] = s.mul_add(w, x, sum[0][r][m]);
                }
            }
            p += S::LANES;
        }
        for r in 0..R {
            for m in 0..M {
                let mut total = sum[0][r][m];
                for u in 1..U {
                    total = s.add(total, sum[u][r][m]);
                }
                let at = (i + m) * n + j + r;
                // SAFETY: this task alone writes these columns.
                unsafe { self.out.start_of(at..at + 1).write(s.reduce_sum(total)) };
            }
        }
    }
}

/// By rows of the matrix itself.
struct Sums<'a, T, E>(Few<'a, T, E>);

impl<T: Float, E: Storage<Float = T>> Kernel<T> for Sums<'_, T, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Few { dims: Dims { m, n, k }, a, b, cols, out } = self.0;
        for i in 0..m {
            // SAFETY: this task alone writes these columns.
            unsafe { out.slice(i * n + cols.start..i * n + cols.end) }.fill(T::ZERO);
        }
        let mut p = 0;
        while p < k {
            let steps = STEPS.min(k - p);
            for i in 0..m {
                // SAFETY: as above.
                let sums = unsafe { out.slice(i * n + cols.start..i * n + cols.end) };
                let b = &b[p * n + cols.start..(p + steps - 1) * n + cols.end];
                if steps == STEPS {
                    add_rows::<T, S, E, STEPS>(s, &a[i * k + p..], b, n, sums);
                } else {
                    for q in 0..steps {
                        add_rows::<T, S, E, 1>(s, &a[i * k + p + q..], &b[q * n..], n, sums);
                    }
                }
            }
            p += steps;
        }
    }
}

/// `sums += sum_q a_q b_q` for `Q` rows of `b`, `stride` apart.
#[inline(always)]
fn add_rows<T: Float, S: Simd<T>, E: Storage<Float = T>, const Q: usize>(
    s: S,
    a: &[T],
    b: &[E],
    stride: usize,
    sums: &mut [T],
) {
    assert!(b.len() >= (Q - 1) * stride + sums.len(), "rows of one length");
    let mut x = [s.splat(T::ZERO); Q];
    for q in 0..Q {
        x[q] = s.splat(a[q]);
    }
    let whole = sums.len() - sums.len() % S::LANES;
    for c in (0..whole).step_by(S::LANES) {
        let mut sum = s.load(&sums[c..]);
        for q in 0..Q {
            // SAFETY: a whole vector of row `q`.
            sum = s.mul_add(x[q], unsafe { E::load_ptr(s, b.as_ptr().add(q * stride + c)) }, sum);
        }
        s.store(&mut sums[c..], sum);
    }
    if whole < sums.len() {
        let n = sums.len() - whole;
        let mut sum = s.load_head(&sums[whole..], T::ZERO);
        for q in 0..Q {
            // SAFETY: the rest of row `q`.
            let w = unsafe { E::load_head_ptr(s, b.as_ptr().add(q * stride + whole), n) };
            sum = s.mul_add(x[q], w, sum);
        }
        s.store_head(&mut sums[whole..], sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bf16, F16};

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 101) as f32 / 64.0 - 0.75).collect()
    }

    fn check<E: Storage<Float = f32>>() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 77, 33),
            (1, 9, 200),
            (2, 8, 16),
            (3, 300, 40),
            (8, 65, 100),
            (1, 5, 0),
            (2, 0, 3),
        ] {
            let (a, wide) = (numbers(m * k), numbers(n * k));
            let narrow: Vec<E> = wide.iter().map(|&x| E::narrow(x)).collect();
            for transposed in [false, true] {
                let mut out = vec![7.0; m * n];
                few_rows(Dims { m, n, k }, &a, &narrow, transposed, &mut out).unwrap();
                for i in 0..m {
                    for j in 0..n {
                        let at = |p: usize| if transposed { j * k + p } else { p * n + j };
                        let want: f64 =
                            (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(narrow[at(p)].widen())).sum();
                        assert!((f64::from(out[i * n + j]) - want).abs() < 1e-4, "{m} {n} {k} {transposed}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_agree_with_sums_in_double_precision_whatever_is_stored() {
        check::<f32>();
        check::<Bf16>();
        check::<F16>();
        assert!(
            few_rows(Dims { m: 1, n: 2, k: 2 }, &[1.0_f32; 2], &[1.0_f32; 3], true, &mut [0.0; 2]).is_err()
        );
    }
}
