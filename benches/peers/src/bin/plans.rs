//! Plans of our own product and the `gemm` crate, interleaved in one process.
use sensorium_core::gemm::{Dims, MatRef, PackB, Plan, gemm, gemm_by};
use sensorium_core::threads;

/// Seconds: of this thread's processor time where it is alone, else on the wall.
fn now(alone: bool) -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if alone { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    unsafe { libc::clock_gettime(clock, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}


fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads_n: usize = args.get(1).map_or(2, |x| x.parse().unwrap());
    threads::set_num_threads(threads_n);
    // (m, n, k, layout)
    let shapes: &[(usize, usize, usize, &str)] = &[
        (2500, 288, 96, "nn"), (2500, 96, 96, "nn"), (2500, 384, 96, "nn"), (2500, 96, 384, "nn"),
        (2500, 96, 288, "nt"), (2500, 96, 384, "nt"), (96, 288, 2500, "tn"), (96, 384, 2500, "tn"), (384, 96, 2500, "tn"), (96, 96, 2500, "tn"),
        (2000, 512, 512, "nn"), (2000, 512, 512, "nt"), (512, 512, 2000, "tn"),
        (512, 512, 512, "nn"), (1024, 1024, 1024, "nn"), (2048, 2048, 2048, "nn"),
    ];
    let mut plans: Vec<(String, Box<dyn Fn(usize, usize, usize) -> Option<Plan>>)> = vec![];
    for a in [false, true] {
        for b in [PackB::Never, PackB::Local, PackB::Shared] {
            for (rows, panels) in [(64, usize::MAX), (128, usize::MAX), (48, 3)] {
                for depth in [256] {
                    plans.push((format!("a{} {:?} {}x{} k{}", a as u8, b, rows, if panels > 99 { 0 } else { panels }, depth),
                        Box::new(move |_, _, _| Some(Plan { depth, block_rows: rows, block_panels: panels, pack_a: a, pack_b: b }))));
                }
            }
        }
    }
    for &(m, n, k, layout) in shapes {
        if args.len() > 2 && !args[2..].iter().any(|f| *f == format!("{m}x{n}x{k}{layout}")) { continue; }
        let a: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
        let mut c = vec![0f32; m * n];
        let (ta, tb) = (layout.starts_with('t'), layout.ends_with('t'));
        let am = if ta { MatRef::rows(&a, m).t() } else { MatRef::rows(&a, k) };
        let bm = if tb { MatRef::rows(&b, k).t() } else { MatRef::rows(&b, n) };
        let dims = Dims { m, n, k };
        let mut names: Vec<String> = vec!["gemm crate".into(), "default".into()];
        names.extend(plans.iter().map(|p| p.0.clone()));
        let mut best = vec![f64::INFINITY; names.len()];
        let reps = ((2e9 / (2.0 * (m * n * k) as f64)) as usize).clamp(3, 40);
        for _ in 0..reps {
            for i in 0..names.len() {
                if i >= 2 && tb && names[i].contains("Never") { continue; }
                let t = now(threads_n == 1);
                match i {
                    0 => {
                        let par = if threads_n == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads_n) };
                        unsafe { gemm::gemm(m, n, k, c.as_mut_ptr(), 1, n as isize, false,
                            am.data.as_ptr(), am.col_stride as isize, am.row_stride as isize,
                            bm.data.as_ptr(), bm.col_stride as isize, bm.row_stride as isize,
                            0.0, 1.0, false, false, false, par) }
                    }
                    1 => gemm(dims, am, bm, 0.0, &mut c).unwrap(),
                    _ => gemm_by(dims, am, bm, 0.0, &mut c, plans[i - 2].1(m, n, k).unwrap()).unwrap(),
                }
                best[i] = best[i].min(now(threads_n == 1) - t);
            }
        }
        println!("== {m}x{n}x{k}{layout}");
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|&i, &j| best[i].total_cmp(&best[j]));
        for i in order { if best[i].is_finite() { println!("  {:8.1} us {:6.1} GF  {}", best[i] * 1e6, 2e-9 * (m * n * k) as f64 / best[i], names[i]); } }
    }
}
