//! Ways to cut a product, and the `gemm` crate, interleaved in one process: `products [threads [shape ...]]`, a
//! shape being `2500x288x96nn`. On one thread times are of the processor, else of the clock; the best of many.

use sensorium_core::Float;
use sensorium_core::gemm::{Dims, MatRef, PackB, Plan, gemm, gemm_by};
use sensorium_core::threads;

/// Of the quickstart's linear maps, forward and backward, of wider ones, and large.
const SHAPES: [&str; 17] = [
    "2500x288x96nn",
    "2500x96x96nn",
    "2500x384x96nn",
    "2500x96x384nn",
    "2500x96x288nt",
    "2500x96x384nt",
    "96x288x2500tn",
    "96x384x2500tn",
    "384x96x2500tn",
    "96x96x2500tn",
    "2000x512x512nn",
    "2000x512x512nt",
    "512x512x2000tn",
    "64x64x64nn",
    "512x512x512nn",
    "1024x1024x1024nn",
    "2048x2048x2048nn",
];

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(2, |n| n.parse().expect("a number of threads"));
    threads::set_num_threads(threads);
    let mut shapes: Vec<String> = args.collect();
    if shapes.is_empty() {
        shapes = SHAPES.map(str::to_owned).to_vec();
    }
    for shape in &shapes {
        compare::<f32>("f32", shape, threads);
        compare::<f64>("f64", shape, threads);
    }
}

/// Who computes.
#[derive(Debug, Clone, Copy)]
enum Row {
    GemmCrate,
    Default,
    By(Plan),
}

fn rows(b_in_place: bool) -> Vec<Row> {
    let mut rows = vec![Row::GemmCrate, Row::Default];
    for pack_a in [false, true] {
        for pack_b in [PackB::Never, PackB::Local, PackB::Shared] {
            if pack_b != PackB::Never || b_in_place {
                for (depth, block_rows) in [(256, 128), (512, 64), (512, 128)] {
                    rows.push(Row::By(Plan { depth, block_rows, block_panels: 1 << 20, pack_a, pack_b }));
                }
            }
        }
    }
    rows
}

fn compare<T: Float>(name: &str, shape: &str, threads: usize) {
    let (sizes, layout) = shape.split_at(shape.len() - 2);
    let sizes: Vec<usize> = sizes.split('x').map(|n| n.parse().expect("sizes")).collect();
    let &[m, n, k] = &sizes[..] else { panic!("a shape is MxNxK and nn, nt or tn") };
    let (a, b) = (whole_numbers::<T>(m * k, 17), whole_numbers::<T>(n * k, 13));
    let a = if layout == "tn" { MatRef::rows(&a, m).t() } else { MatRef::rows(&a, k) };
    let b = if layout == "nt" { MatRef::rows(&b, k).t() } else { MatRef::rows(&b, n) };
    let (dims, flops) = (Dims { m, n, k }, 2.0 * (m * n * k) as f64);
    let (mut out, mut want) = (vec![T::ZERO; m * n], vec![T::ZERO; m * n]);
    let mut times: Vec<(Row, f64)> =
        rows(layout != "nt").into_iter().map(|row| (row, f64::INFINITY)).collect();
    run(Row::GemmCrate, dims, a, b, threads, &mut want);
    for _ in 0..((2e9 / flops) as usize).clamp(3, 40) {
        for (row, best) in &mut times {
            let start = now(threads == 1);
            run(*row, dims, a, b, threads, &mut out);
            *best = best.min(now(threads == 1) - start);
            assert!(out == want, "{row:?}");
        }
    }
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    println!("{name} {shape}");
    for (row, time) in times {
        println!("  {:10.1} us {:6.1} GFLOP/s  {row:?}", time * 1e6, flops / time * 1e-9);
    }
}

fn run<T: Float>(row: Row, dims: Dims, a: MatRef<'_, T>, b: MatRef<'_, T>, threads: usize, out: &mut [T]) {
    let Dims { m, n, k } = dims;
    match row {
        Row::Default => gemm(dims, a, b, T::ZERO, out).expect("sizes fit"),
        Row::By(plan) => gemm_by(dims, a, b, T::ZERO, out, plan).expect("sizes fit"),
        Row::GemmCrate => {
            let parallelism =
                if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
            let s = |stride: usize| stride as isize;
            let (zero, one) = (T::ZERO, T::ONE);
            // SAFETY: the slices hold the matrices; `gemm` tells the types apart by their identity.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    out.as_mut_ptr(),
                    1,
                    s(n),
                    false,
                    a.data.as_ptr(),
                    s(a.col_stride),
                    s(a.row_stride),
                    b.data.as_ptr(),
                    s(b.col_stride),
                    s(b.row_stride),
                    zero,
                    one,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    }
}

/// Small whole numbers, whose products are exact in any order.
fn whole_numbers<T: Float>(len: usize, modulus: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f64((i % modulus) as f64 - (modulus / 2) as f64)).collect()
}

/// Seconds: of this thread's processor time where it is alone, else on the wall.
fn now(alone: bool) -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if alone { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    // SAFETY: writes the time where it is told to.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
