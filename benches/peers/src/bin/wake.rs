//! What a parallel call on two threads costs: rayon's scope against the pool in `sensorium_core::threads`, both
//! with eight tasks of equal work, after some rest. Microseconds.

use sensorium_core::threads::{MIN_PARALLEL_WORK, for_each, set_num_threads};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TASKS: usize = 8;

fn main() {
    set_num_threads(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let rayon = |f: &(dyn Fn(usize) + Sync)| {
        let next = AtomicUsize::new(0);
        let drain = || {
            while let task @ ..TASKS = next.fetch_add(1, Ordering::Relaxed) {
                f(task);
            }
        };
        pool.in_place_scope(|scope| {
            scope.spawn(|_| drain());
            drain();
        });
    };
    println!("{:>8} {:>8}  {:^27}  {:^27}  {:^27}", "work", "rest", "rayon", "pool", "one thread");
    for steps in [0, 2_500, 25_000] {
        for rest in [0, 10, 50, 1000].map(Duration::from_micros) {
            let mut times = [const { Vec::new() }; 3];
            for _ in 0..300 {
                for (who, times) in times.iter_mut().enumerate() {
                    // The first of two calls wakes what slept while the others had their turn.
                    for call in 0..2 {
                        wait(rest);
                        let start = Instant::now();
                        match who {
                            0 => rayon(&|_| work(steps)),
                            1 => for_each(TASKS, MIN_PARALLEL_WORK, |_| work(steps)),
                            _ => (0..TASKS).for_each(|_| work(steps)),
                        }
                        if call == 1 {
                            times.push(start.elapsed().as_secs_f64() * 1e6);
                        }
                    }
                }
            }
            let [a, b, c] = times.map(quantiles);
            println!("{:>8} {:>8}  {a}  {b}  {c}", steps * TASKS, rest.as_micros());
        }
    }
}

/// A chain of `steps` multiplications.
fn work(steps: usize) {
    let mut x = 1.0_f64;
    for _ in 0..steps {
        x = black_box(x * 1.000_000_1);
    }
}

/// A millisecond asleep, less than that awake.
fn wait(rest: Duration) {
    let until = Instant::now() + rest;
    if rest >= Duration::from_millis(1) {
        std::thread::sleep(rest);
    }
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// 10 %, median, 90 %.
fn quantiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let [low, middle, high] = [1, 5, 9].map(|tenths| times[times.len() * tenths / 10]);
    format!("{low:8.2} {middle:8.2} {high:9.2}")
}
