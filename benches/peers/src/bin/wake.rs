//! What a parallel call of two threads costs: rayon's scope against the pool in `sensorium_core::threads`.
use sensorium_core::threads::{MIN_PARALLEL_WORK, for_each, set_num_threads};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// About `n` nanoseconds of arithmetic.
fn busy(n: usize) {
    let mut x = 1.0f64;
    for _ in 0..n { x = black_box(x * 1.000_000_1); }
}

fn quantiles(mut t: Vec<f64>) -> String {
    t.sort_by(f64::total_cmp);
    format!("min {:7.2} 10% {:7.2} median {:7.2} 90% {:7.2} us", t[0] * 1e6, t[t.len() / 10] * 1e6, t[t.len() / 2] * 1e6, t[t.len() * 9 / 10] * 1e6)
}

fn main() {
    set_num_threads(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let rayon_for = |tasks: usize, f: &(dyn Fn(usize) + Sync)| {
        let next = AtomicUsize::new(0);
        let drain = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks { break; }
            f(i);
        };
        pool.in_place_scope(|s| { s.spawn(|_| drain()); drain(); });
    };
    for work in [0, 20_000, 200_000] {
        for rest in [0, 10, 50, 1000] {
            let mut t = [vec![], vec![], vec![]];
            for _ in 0..(if rest == 1000 { 300 } else { 1000 }) {
                for who in 0..3 {
                    for warm in 0..2 {
                        let until = Instant::now() + Duration::from_micros(rest);
                        if rest >= 1000 { std::thread::sleep(Duration::from_micros(rest)); }
                        while Instant::now() < until { std::hint::spin_loop(); }
                        let start = Instant::now();
                        match who {
                            0 => rayon_for(8, &|_| busy(work / 8)),
                            1 => for_each(8, MIN_PARALLEL_WORK, |_| busy(work / 8)),
                            _ => (0..8).for_each(|_| busy(work / 8)),
                        }
                        if warm == 1 { t[who].push(start.elapsed().as_secs_f64()); }
                    }
                }
            }
            let [a, b, c] = t;
            println!("work {work:>6} ns, rest {rest:>4} us: rayon {} | pool {} | one thread {}", quantiles(a), quantiles(b), quantiles(c));
        }
    }
}
