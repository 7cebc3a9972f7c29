//! Matrix products of whole numbers, whose sums are exact: any order, plan and instruction set must agree.
#![allow(clippy::float_cmp)]

use sensorium_core::gemm::{Dims, MatRef, PackB, Plan, gemm, gemm_by, gemm_with};
use sensorium_core::{Level, isa};

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
    for level in Level::available() {
        isa::set_level(level);
        for (m, n, k) in SIZES {
            let (a, b) = (whole_numbers(m * k, 7), whole_numbers(n * k, 5));
            for a in [MatRef::rows(&a, k), MatRef::rows(&a, m).t()] {
                for b in [MatRef::rows(&b, n), MatRef::rows(&b, k).t()] {
                    f(Dims { m, n, k }, a, b, level);
                }
            }
        }
    }
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
