//! The helpers: threads that sleep until a caller has work, and join it if they come in time.
//!
//! One word says all: which job is open, how many helpers may still join it, how many are at work. A caller
//! publishes a job, works on it too, closes it, and waits for those that joined; it never waits for a helper
//! that did not wake in time, as happens where another process holds the other cores. A helper without work
//! looks for it for [`SPIN`], in which the next call of a training step often comes, and then sleeps.
//!
//! Eight tasks on two threads, microseconds, on a machine whose cores other work shared (median; 90 %):
//!
//! | | empty | 65 us of work | 65 us after 50 us of rest | 650 us |
//! |---|---|---|---|---|
//! | one thread | 0.0 | 65 | 65 | 650; 677 |
//! | rayon's `in_place_scope` | 11 | 76 | 76 | 662; 684 |
//! | this pool, helpers that yield while they look | 0.2 | 65 | 65 | 650; 677 |
//! | this pool, helpers that stay where they are woken | 6.5 | 68 | 68 | 665; 714 |
//! | this pool, helpers that leave the caller's processor | 0.2; 0.5 | 34; 65 | 51; 65 | 350; 662 |

use super::{MAX_THREADS, processor};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long a thread looks for work, or for the end of it, before it sleeps: about what waking it would cost.
const SPIN: Duration = Duration::from_micros(20);
/// Looks between two glances at the clock: about half a microsecond.
const LOOKS: usize = 32;
/// Time between two glances that shows that another thread had the processor.
const PREEMPTED: Duration = Duration::from_micros(5);

thread_local! {
    /// Whether this thread is inside a job: what it calls then runs on it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// `job << 32 | OPEN | slots << 16 | active`.
const OPEN: u64 = 1 << 31;
const SLOT: u64 = 1 << 16;
const SLOTS: u64 = OPEN - SLOT;
const ACTIVE: u64 = SLOT - 1;

struct Helper {
    thread: Thread,
    sleeping: AtomicBool,
}

pub(super) struct Pool {
    process: u32,
    /// Held by the caller whose job it is.
    busy: AtomicBool,
    state: AtomicU64,
    /// The open job; written by the holder of `busy`, read by helpers that joined.
    job: UnsafeCell<Option<&'static (dyn Fn() + Sync)>>,
    helpers: [AtomicPtr<Helper>; MAX_THREADS],
    count: AtomicUsize,
    /// Where the caller runs: a helper on the same processor would only take turns with it.
    caller: AtomicI32,
    finished: (Mutex<Option<Box<dyn Any + Send>>>, Condvar),
}

// SAFETY: `job` is written only while no helper is active and read only by active helpers; the rest is `Sync`.
unsafe impl Sync for Pool {}

/// The pool of this process: a child of `fork` makes its own, without taking any lock.
fn pool() -> &'static Pool {
    static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());
    let current = POOL.load(Ordering::Acquire);
    // SAFETY: null or a leaked box, which nothing frees.
    if let Some(pool) = unsafe { current.as_ref() }
        && pool.process == std::process::id()
    {
        return pool;
    }
    let fresh = Box::into_raw(Box::new(Pool {
        process: std::process::id(),
        busy: AtomicBool::new(false),
        state: AtomicU64::new(0),
        job: UnsafeCell::new(None),
        helpers: [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_THREADS],
        count: AtomicUsize::new(0),
        caller: AtomicI32::new(-1),
        finished: (Mutex::new(None), Condvar::new()),
    }));
    let kept = match POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other) => {
            // SAFETY: `fresh` was not published; it is ours to free.
            drop(unsafe { Box::from_raw(fresh) });
            other
        }
    };
    // SAFETY: ours, or another thread's of this process; published, so never freed.
    unsafe { &*kept }
}

/// Runs `job` on this thread and on up to `helpers` more at once. Where this thread is inside a job already, or
/// another thread's job has the helpers, `job` runs on this thread alone.
///
/// A panic in any of them comes out here, after all have stopped.
pub(super) fn run(helpers: usize, job: &(dyn Fn() + Sync)) {
    let pool = pool();
    if INSIDE.get() || pool.busy.swap(true, Ordering::Acquire) {
        return job();
    }
    pool.grow(helpers);
    // SAFETY: the helpers that see the job are waited for below, before it goes out of scope.
    let forever = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(job) };
    // SAFETY: `busy` is ours and no helper is active.
    unsafe { *pool.job.get() = Some(forever) };
    pool.caller.store(processor::current(), Ordering::Relaxed);
    let number = (pool.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
    pool.state.store((number << 32) | OPEN | (helpers as u64 * SLOT), Ordering::SeqCst);
    pool.wake_two();
    INSIDE.set(true);
    let own = catch_unwind(AssertUnwindSafe(job));
    INSIDE.set(false);
    let theirs = pool.close();
    pool.busy.store(false, Ordering::Release);
    if let Some(panic) = own.err().or(theirs) {
        resume_unwind(panic);
    }
}

impl Pool {
    /// Makes sure of `helpers` threads, or of as many as the system allows. The caller holds `busy`.
    fn grow(&'static self, helpers: usize) {
        for i in self.count.load(Ordering::Relaxed)..helpers {
            let started =
                std::thread::Builder::new().name(format!("sensorium-{i}")).spawn(move || self.help(i));
            let Ok(handle) = started else { return };
            let helper = Helper { thread: handle.thread().clone(), sleeping: AtomicBool::new(false) };
            self.helpers[i].store(Box::into_raw(Box::new(helper)), Ordering::Release);
            self.count.store(i + 1, Ordering::Release);
        }
    }

    /// Wakes up to two sleepers; those that join wake two more each.
    fn wake_two(&self) {
        let mut left = 2;
        for helper in &self.helpers[..self.count.load(Ordering::Acquire)] {
            // SAFETY: helpers below `count` are leaked boxes.
            let helper = unsafe { &*helper.load(Ordering::Acquire) };
            if left > 0 && helper.sleeping.swap(false, Ordering::SeqCst) {
                helper.thread.unpark();
                left -= 1;
            }
        }
    }

    /// Closes the job and waits until no helper is active; returns what a helper panicked with.
    fn close(&self) -> Option<Box<dyn Any + Send>> {
        let idle = |state: u64| state & ACTIVE == 0;
        if !idle(self.state.fetch_and(!OPEN, Ordering::AcqRel)) {
            spin_until(|| idle(self.state.load(Ordering::Acquire)));
        }
        let mut panic = self.finished.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !idle(self.state.load(Ordering::Acquire)) {
            panic = self.finished.1.wait(panic).unwrap_or_else(PoisonError::into_inner);
        }
        panic.take()
    }

    /// A helper's life.
    fn help(&self, index: usize) {
        INSIDE.set(true);
        while self.helpers[index].load(Ordering::Acquire).is_null() {
            std::hint::spin_loop();
        }
        // SAFETY: not null, so a leaked box.
        let me = unsafe { &*self.helpers[index].load(Ordering::Acquire) };
        let mut done = 0;
        let seat = processor::Seat::new();
        loop {
            let joinable = |state: u64| state & OPEN != 0 && state & SLOTS != 0 && state >> 32 != done;
            let look = || joinable(self.state.load(Ordering::SeqCst));
            seat.leave(self.caller.load(Ordering::Relaxed));
            if !spin_until(look) {
                me.sleeping.store(true, Ordering::SeqCst);
                while !look() && me.sleeping.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                me.sleeping.store(false, Ordering::SeqCst);
                seat.leave(self.caller.load(Ordering::Relaxed));
            }
            let state = self.state.load(Ordering::Relaxed);
            let joined = state.wrapping_sub(SLOT) + 1;
            if joinable(state)
                && self.state.compare_exchange(state, joined, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                done = state >> 32;
                if joined & SLOTS != 0 {
                    self.wake_two();
                }
                self.work();
            }
        }
    }

    /// Runs the job that this helper joined, and says so to the caller.
    fn work(&self) {
        // SAFETY: this helper is active: the caller wrote the job before and waits for it now.
        let job = unsafe { *self.job.get() }.expect("an open job");
        let result = catch_unwind(AssertUnwindSafe(job));
        if let Err(panic) = result {
            *self.finished.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & OPEN == 0 && before & ACTIVE == 1 {
            // The lock orders this with the caller's look at the state: it sees no one active, or this.
            drop(self.finished.0.lock().unwrap_or_else(PoisonError::into_inner));
            self.finished.1.notify_one();
        }
    }
}

/// Whether `done` became true within [`SPIN`]; gives up at once where another thread took the processor meanwhile:
/// a sleeper that is woken gets it back sooner than one that used up its share by looking.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    let mut last = start;
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now - start > SPIN || now - last > PREEMPTED {
            return false;
        }
        last = now;
    }
}
