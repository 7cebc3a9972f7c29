//! The thread pool: blocks of fixed size, taken in any order, reduced in index order.
//!
//! The caller works too: `n` threads are the caller and `n - 1` helpers. One thread means no pool at all.
//! How work is cut never changes a result, so the number of threads does not either. A pool belongs to the
//! process that made it: after `fork` the child makes its own, without taking any lock. A call from inside a
//! task, or while another thread's call has the helpers, runs on the thread that made it.

mod pool;
mod processor;

use crate::{Error, Result};
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 256;

/// Work (about one floating-point operation a unit) below which a call stays on one thread: waking a helper that
/// sleeps costs 3 to 10 microseconds, in which one core does about half a million operations.
pub const MIN_PARALLEL_WORK: usize = 1 << 20;

/// Threads for the whole process; 0 until set.
static GLOBAL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Threads for calls from this thread; 0 where the global number holds.
    static LOCAL: Cell<usize> = const { Cell::new(0) };
}

/// The number that `SENSORIUM_NUM_THREADS` asks for; `None` where it is unset or empty.
///
/// # Errors
/// [`Error::Value`] for anything but a whole number from 1 to [`MAX_THREADS`].
pub fn from_environment() -> Result<Option<usize>> {
    let arg = "SENSORIUM_NUM_THREADS";
    let Some(value) = std::env::var_os(arg).filter(|value| !value.is_empty()) else { return Ok(None) };
    let value = value.to_string_lossy();
    let number = value.trim().parse().ok();
    let number = number.filter(|n| (1..=MAX_THREADS).contains(n));
    let what = || format!("must be a whole number from 1 to {MAX_THREADS}, not {value:?}");
    number.map(Some).ok_or_else(|| Error::Value { arg, what: what() })
}

fn default_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    *DEFAULT.get_or_init(|| {
        let asked_for = from_environment().ok().flatten();
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        asked_for.unwrap_or_else(processors).min(MAX_THREADS)
    })
}

/// Threads that a call from this thread may use.
#[must_use]
pub fn num_threads() -> usize {
    match (LOCAL.get(), GLOBAL.load(Ordering::Relaxed)) {
        (0, 0) => default_threads(),
        (0, global) => global,
        (local, _) => local,
    }
}

/// Sets the number of threads for the process, 1 to [`MAX_THREADS`]; 0 goes back to the default.
pub fn set_num_threads(n: usize) {
    GLOBAL.store(n.min(MAX_THREADS), Ordering::Relaxed);
}

/// Sets the number for calls from this thread alone; 0 goes back to the process's. Returns what was set before.
#[allow(clippy::must_use_candidate)] // A caller that never restores the number has no use for the old one.
pub fn set_local_num_threads(n: usize) -> usize {
    LOCAL.replace(n.min(MAX_THREADS))
}

/// Calls `f` for each index in `0..tasks`, on several threads where `tasks * work_per_task` is worth it.
///
/// Tasks start in index order and may run in any; each must write where no other does.
pub fn for_each(tasks: usize, work_per_task: usize, f: impl Fn(usize) + Sync) {
    let threads = num_threads().min(tasks);
    if threads <= 1 || tasks.saturating_mul(work_per_task) < MIN_PARALLEL_WORK {
        (0..tasks).for_each(f);
        return;
    }
    let next = AtomicUsize::new(0);
    pool::run(threads - 1, &|| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            f(task);
        }
    });
}

/// Like [`for_each`], handing each task its block of `out`: `block` elements, fewer in the last.
pub fn for_each_block<T: Send>(
    out: &mut [T],
    block: usize,
    work_per_task: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = out.len();
    let shared = Disjoint::new(out);
    for_each(len.div_ceil(block.max(1)), work_per_task, |i| {
        let range = i * block..((i + 1) * block).min(len);
        // SAFETY: the ranges of different tasks do not overlap, and each task runs once.
        f(i, unsafe { shared.slice(range) });
    });
}

/// A slice that tasks share, each writing its own part.
#[derive(Debug)]
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `slice`, whose callers vouch that parts do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows `data` for as long as the parts are in use.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), lifetime: std::marker::PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other slice that overlaps `range` is in use.
    ///
    /// # Panics
    /// Where `range` is out of bounds.
    #[must_use]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of bounds");
        // SAFETY: in bounds, and the caller vouches that nothing overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }

    /// Where `range` begins, for parts that are no slices, as some columns of some rows are.
    ///
    /// # Safety
    /// What is written of `range` is in use nowhere else.
    ///
    /// # Panics
    /// Where `range` is out of bounds.
    #[inline(always)]
    #[must_use]
    pub unsafe fn start_of(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "part out of bounds");
        self.data.wrapping_add(range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let before = set_local_num_threads(threads);
            for len in [0, 1, 7, 1000] {
                let mut out = vec![0_u32; len];
                for_each_block(&mut out, 3, MIN_PARALLEL_WORK, |i, part| {
                    for x in part {
                        *x += i as u32 + 1;
                    }
                });
                assert!(out.iter().enumerate().all(|(i, &x)| x == i as u32 / 3 + 1));
            }
            set_local_num_threads(before);
        }
    }

    /// `for_each` with the thread count of the calling thread set to `threads`.
    fn with_threads(threads: usize, tasks: usize, f: impl Fn(usize) + Sync) {
        let before = set_local_num_threads(threads);
        for_each(tasks, MIN_PARALLEL_WORK, f);
        set_local_num_threads(before);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        for round in 0..100 {
            let caught = std::panic::catch_unwind(|| {
                with_threads(3, 8, |i| assert!(i != round % 8, "task {i} of round {round}"));
            });
            let words = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(words, format!("task {} of round {round}", round % 8));
            let sum = AtomicUsize::new(0);
            with_threads(3, 8, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 28);
        }
    }

    #[test]
    fn callers_at_once_and_nested_calls_finish() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let total = &total;
                scope.spawn(move || {
                    for round in 0..200 {
                        with_threads(1 + (caller + round) % 4, 5, |_| {
                            with_threads(2, 3, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 5 * 3);
    }

    #[test]
    fn helpers_do_work_after_they_slept() {
        // Each of two tasks waits for the other: only two threads at once get through.
        for rest in [0, 1, 30] {
            std::thread::sleep(std::time::Duration::from_millis(rest));
            let started = AtomicUsize::new(0);
            // Another test's job may have the helpers: then this one runs alone, gives up, and tries again.
            let together = (0..50).any(|_| {
                started.store(0, Ordering::SeqCst);
                let met = AtomicUsize::new(0);
                with_threads(2, 2, |_| {
                    started.fetch_add(1, Ordering::SeqCst);
                    let until = std::time::Instant::now() + std::time::Duration::from_millis(200);
                    while started.load(Ordering::SeqCst) < 2 && std::time::Instant::now() < until {
                        std::thread::yield_now();
                    }
                    if started.load(Ordering::SeqCst) == 2 && std::time::Instant::now() < until {
                        met.fetch_add(1, Ordering::SeqCst);
                    }
                });
                met.into_inner() == 2
            });
            assert!(together, "after {rest} ms of rest");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_child_process_makes_its_own_pool() {
        with_threads(2, 2, |_| ());
        // SAFETY: the child calls only what this test is about, and leaves without unwinding or destructors.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork failed");
        if child == 0 {
            let sum = AtomicUsize::new(0);
            with_threads(2, 100, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(sum.into_inner() != 4950)) };
        }
        let mut status = 0;
        let ended = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // SAFETY: asks for the child above, without waiting.
            unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) == child }
        });
        if !ended {
            // SAFETY: the child above, which is still there.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        assert!(ended && status == 0, "the child hung, or has the wrong sum");
    }
}
