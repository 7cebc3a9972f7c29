//! The thread pool: blocks of fixed size, taken in any order, reduced in index order.
//!
//! The caller works too: `n` threads are the caller and `n - 1` helpers. One thread means no pool at all.
//! How work is cut never depends on the number of threads, so results do not either. A pool belongs to the
//! process that made it: after `fork` the child makes its own, without taking any lock.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 256;

/// Work (about one floating-point operation a unit) below which a call stays on one thread: waking a helper
/// costs 5 to 50 microseconds, in which one core does about a million operations.
pub const MIN_PARALLEL_WORK: usize = 1 << 20;

struct Pool {
    process: u32,
    helpers: rayon::ThreadPool,
}

/// Pools by number of helpers, made when first used and kept: switching the count costs nothing.
static POOLS: [AtomicPtr<Pool>; MAX_THREADS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_THREADS];
/// Threads for the whole process; 0 until set.
static GLOBAL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Threads for calls from this thread; 0 where the global number holds.
    static LOCAL: Cell<usize> = const { Cell::new(0) };
}

fn default_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    *DEFAULT.get_or_init(|| {
        std::env::var("SENSORIUM_NUM_THREADS")
            .ok()
            .and_then(|value| value.trim().parse().ok())
            .filter(|&n| n > 0)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .min(MAX_THREADS)
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

fn pool(helpers: usize) -> Option<&'static rayon::ThreadPool> {
    let slot = &POOLS[helpers];
    let current = slot.load(Ordering::Acquire);
    // SAFETY: a slot holds null or a leaked box, which nothing frees.
    if let Some(pool) = unsafe { current.as_ref() }
        && pool.process == std::process::id()
    {
        return Some(&pool.helpers);
    }
    // First use, or the first in a child process, whose parent's helpers do not exist here.
    let built =
        rayon::ThreadPoolBuilder::new().num_threads(helpers).thread_name(|i| format!("sensorium-{i}"));
    let fresh = Box::into_raw(Box::new(Pool { process: std::process::id(), helpers: built.build().ok()? }));
    let kept = match slot.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other) => {
            // SAFETY: `fresh` was not published; it is ours to free.
            drop(unsafe { Box::from_raw(fresh) });
            other
        }
    };
    // SAFETY: as above, and never null: it is ours, or another thread's of this process.
    unsafe { kept.as_ref() }.map(|pool| &pool.helpers)
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
    let Some(pool) = pool(num_threads() - 1) else {
        // No thread can be made (a limit of the system): one still can.
        (0..tasks).for_each(f);
        return;
    };
    let next = AtomicUsize::new(0);
    let drain = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            f(task);
        }
    };
    pool.in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| drain());
        }
        drain();
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

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let before = set_local_num_threads(2);
        let caught =
            std::panic::catch_unwind(|| for_each(8, MIN_PARALLEL_WORK, |i| assert!(i != 5, "task five")));
        assert!(caught.is_err());
        set_local_num_threads(before);
    }
}
