//! Matrix products of whole numbers, whose sums are exact: any order, plan and instruction set must agree. And of
//! random ones in any layout, within the bound of their roundings, with nothing read or written outside.
#![allow(clippy::float_cmp)]

use sensorium_core::gemm::{Dims, MatRef, PackB, Plan, gemm, gemm_by, gemm_with};
use sensorium_core::threads::{num_threads, set_local_num_threads};
use sensorium_core::{Float, Level, isa};
use std::sync::{Mutex, PoisonError};

/// Calls `f` at each level. The level is the process's, so one test at a time.
fn at_every_level(f: impl Fn(Level)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for level in Level::available() {
        assert_eq!(isa::set_level(level), level);
        f(level);
    }
}

const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (8, 48, 5),
    (13, 100, 300),
    (70, 150, 600),
    (3, 17, 9),
    (130, 49, 3),
    (0, 3, 2),
    (2, 0, 3),
    (3, 2, 0),
];

fn whole_numbers(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|i| (i * step % 17) as f32 - 8.0).collect()
}

fn expected(Dims { m, n, k }: Dims, a: MatRef<'_, f32>, b: MatRef<'_, f32>, beta: f32, old: f32) -> Vec<f32> {
    let at = |x: MatRef<'_, f32>, i: usize, j: usize| x.data[i * x.row_stride + j * x.col_stride];
    let element = |i: usize, j: usize| beta * old + (0..k).map(|p| at(a, i, p) * at(b, p, j)).sum::<f32>();
    (0..m * n).map(|e| element(e / n, e % n)).collect()
}

/// Calls `f` with every size, and `A` and `B` as they are and transposed, at every level.
fn every_case(f: impl Fn(Dims, MatRef<'_, f32>, MatRef<'_, f32>, Level)) {
    at_every_level(|level| {
        for (m, n, k) in SIZES {
            let (a, b) = (whole_numbers(m * k, 7), whole_numbers(n * k, 5));
            for a in [MatRef::rows(&a, k), MatRef::rows(&a, m).t()] {
                for b in [MatRef::rows(&b, n), MatRef::rows(&b, k).t()] {
                    f(Dims { m, n, k }, a, b, level);
                }
            }
        }
    });
}

#[test]
fn every_plan_gives_the_product() {
    every_case(|dims, a, b, level| {
        for pack_a in [false, true] {
            for pack_b in [PackB::Never, PackB::Local, PackB::Shared] {
                if pack_b == PackB::Never && b.col_stride != 1 {
                    continue;
                }
                let plan = Plan { depth: 256, block_rows: 16, block_panels: 1, pack_a, pack_b };
                let mut out = vec![3.0; dims.m * dims.n];
                gemm_by(dims, a, b, 2.0, &mut out, plan).unwrap();
                assert_eq!(out, expected(dims, a, b, 2.0, 3.0), "{dims:?} {plan:?} {level:?}");
            }
        }
        let mut out = vec![f32::NAN; dims.m * dims.n];
        gemm(dims, a, b, 0.0, &mut out).unwrap();
        assert_eq!(out, expected(dims, a, b, 0.0, 0.0), "{dims:?} {level:?}");
    });
}

#[test]
fn the_epilogue_sees_every_row_once_and_finished() {
    every_case(|dims, a, b, level| {
        let mut out = vec![0.0; dims.m * dims.n];
        gemm_with(dims, a, b, 0.0, &mut out, |rows, elements| {
            for (i, row) in rows.zip(elements.chunks_exact_mut(dims.n)) {
                for x in row {
                    *x = *x * 2.0 + i as f32;
                }
            }
        })
        .unwrap();
        let mut want = expected(dims, a, b, 0.0, 0.0);
        for (e, x) in want.iter_mut().enumerate() {
            *x = *x * 2.0 + (e / dims.n) as f32;
        }
        assert_eq!(out, want, "{dims:?} {level:?}");
    });
}

/// Whole numbers without pattern (Steele, Lea and Flood 2014).
struct Draw(u64);
impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
    fn size(&mut self) -> usize {
        // Around the edges of tiles, panels, blocks and groups, and anything small.
        match self.below(3) {
            0 => self.below(12),
            1 => self.below(160),
            _ => [127, 129, 255, 288, 511, 513, 577][self.below(7)],
        }
    }
    fn unit(&mut self) -> f64 {
        self.below(1 << 24) as f64 / f64::from(1 << 23) - 1.0
    }
}

/// A matrix with gaps between its elements that hold NaN, so that reading one shows in the result.
struct Gapped<T> {
    data: Vec<T>,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl<T: Float> Gapped<T> {
    fn draw(draw: &mut Draw, rows: usize, cols: usize, scale: f64) -> Self {
        let (gap, by) = (draw.below(3), 1 + draw.below(2) * draw.below(3));
        let strides = if draw.below(2) == 0 { (cols * by + gap, by) } else { (by, rows * by + gap) };
        let len = if rows * cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        let mut data = vec![T::from_f64(f64::NAN); len];
        for e in 0..rows * cols {
            data[e / cols * strides.0 + e % cols * strides.1] = T::from_f64(scale * draw.unit());
        }
        Self { data, rows, cols, strides }
    }
    fn view(&self) -> MatRef<'_, T> {
        MatRef { data: &self.data, row_stride: self.strides.0, col_stride: self.strides.1 }
    }
    fn at(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.rows && j < self.cols);
        self.data[i * self.strides.0 + j * self.strides.1].to_f64()
    }
}

fn hold_to_the_bound<T: Float>(seed: u64, level: Level) {
    let mut draw = Draw(seed);
    let (m, n, k) = (draw.size(), draw.size(), draw.size());
    let scale = [1.0, 1e-30, 1e15][draw.below(3)];
    let a = Gapped::<T>::draw(&mut draw, m, k, scale);
    let b = Gapped::<T>::draw(&mut draw, k, n, 1.0);
    let beta = [0.0, 1.0, -0.5][draw.below(3)];
    let old = scale * draw.unit();
    let mut results = Vec::new();
    for threads in [1, 3] {
        let before = set_local_num_threads(threads);
        assert_eq!(num_threads(), threads);
        let mut out = vec![T::from_f64(if beta == 0.0 { f64::NAN } else { old }); m * n];
        gemm(Dims { m, n, k }, a.view(), b.view(), T::from_f64(beta), &mut out).unwrap();
        set_local_num_threads(before);
        results.push(out);
    }
    assert!(results[0] == results[1], "threads change the result of seed {seed}");
    let old = if beta == 0.0 { 0.0 } else { T::from_f64(old).to_f64() };
    // Each addition and each product round once, the sums of parts and beta a few times more (Higham 2002, 3.1).
    // A sum that leaves the normal numbers has an absolute error, of a denormal's step each.
    let roundings = (k + k / 256 + 4) as f64 * 0.5;
    let (unit, step) = (T::EPSILON.to_f64(), T::MIN_POSITIVE.to_f64() * T::EPSILON.to_f64());
    // The reference rounds too: in f64 as often as the result.
    let unit = unit + f64::EPSILON;
    for (e, &got) in results[0].iter().enumerate() {
        let (i, j) = (e / n, e % n);
        let (mut want, mut size) = (beta * old, (beta * old).abs());
        for p in 0..k {
            let term = a.at(i, p) * b.at(p, j);
            want += term;
            size += term.abs();
        }
        let bound = roundings * (unit * 1.01 * size + 2.0 * step);
        let error = (got.to_f64() - want).abs();
        assert!(error <= bound, "seed {seed} {level:?} ({m}, {n}, {k}) at ({i}, {j}): {error:e} > {bound:e}");
    }
}

#[test]
fn random_products_are_within_the_bound_of_their_roundings() {
    at_every_level(|level| {
        for seed in 0..25 {
            hold_to_the_bound::<f32>(seed, level);
            hold_to_the_bound::<f64>(1000 + seed, level);
        }
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let dims = Dims { m: 2, n: 3, k: 4 };
    let (a, b) = (vec![0.0_f32; 8], vec![0.0_f32; 12]);
    let call = |a: &[f32], b: &[f32], out: usize| {
        gemm(dims, MatRef::rows(a, 4), MatRef::rows(b, 3), 0.0, &mut vec![0.0; out])
            .map_err(|e| e.to_string())
    };
    assert_eq!(call(&a, &b, 6), Ok(()));
    assert_eq!(call(&a[..7], &b, 6), Err("a has 7 elements, expected 8".into()));
    assert_eq!(call(&a, &b[..11], 6), Err("b has 11 elements, expected 12".into()));
    assert_eq!(call(&a, &b, 5), Err("out has 5 elements, expected 6".into()));
    let far = MatRef { data: &a, row_stride: usize::MAX, col_stride: 1 };
    assert!(gemm(dims, far, MatRef::rows(&b, 3), 0.0, &mut [0.0; 6]).is_err());
}

/// Memory that ends, or begins, at a page that may not be touched.
#[cfg(target_os = "linux")]
mod guarded {
    use super::*;

    struct Guarded {
        start: *mut u8,
        pages: usize,
    }
    const PAGE: usize = 4096;

    impl Guarded {
        fn new(bytes: usize) -> Self {
            let pages = bytes.div_ceil(PAGE) + 2;
            let (read_write, private) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping, whose first and last page are then closed.
            let start = unsafe {
                let start = libc::mmap(std::ptr::null_mut(), pages * PAGE, read_write, private, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                assert_eq!(libc::mprotect(start, PAGE, libc::PROT_NONE), 0);
                assert_eq!(libc::mprotect(start.byte_add((pages - 1) * PAGE), PAGE, libc::PROT_NONE), 0);
                start.cast()
            };
            Self { start, pages }
        }
        /// `len` elements right before the last page, or right after the first.
        fn slice(&mut self, len: usize, at_end: bool) -> &mut [f32] {
            let bytes = len * size_of::<f32>();
            let offset = if at_end { (self.pages - 1) * PAGE - bytes } else { PAGE };
            // SAFETY: within the open pages, aligned, and zeroed by the system.
            unsafe { std::slice::from_raw_parts_mut(self.start.add(offset).cast(), len) }
        }
    }
    impl Drop for Guarded {
        fn drop(&mut self) {
            // SAFETY: the mapping made above.
            unsafe { libc::munmap(self.start.cast(), self.pages * PAGE) };
        }
    }

    #[test]
    fn nothing_outside_of_the_slices_is_touched() {
        at_every_level(|_| {
            for (m, n, k) in
                SIZES.into_iter().chain([(1, 64, 7), (9, 63, 65), (5, 33, 2), (600, 700, 2), (7, 5, 513)])
            {
                let [mut a, mut b, mut out] = [m * k, k * n, m * n].map(|len| Guarded::new(4 * len));
                for at_end in [false, true] {
                    let (a, b) = (&*a.slice(m * k, at_end), &*b.slice(k * n, at_end));
                    for a in [MatRef::rows(a, k), MatRef::rows(a, m).t()] {
                        for b in [MatRef::rows(b, n), MatRef::rows(b, k).t()] {
                            gemm(Dims { m, n, k }, a, b, 1.0, out.slice(m * n, at_end)).unwrap();
                        }
                    }
                }
            }
        });
    }
}
