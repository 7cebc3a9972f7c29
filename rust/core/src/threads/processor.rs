//! Which processor a thread runs on, and how a helper gets away from its caller's.
//!
//! On a busy machine the system may wake a helper on the processor of the thread that woke it, every time: the
//! two then take turns, and two threads are no faster than one. (Measured: 430 microseconds for a product that
//! takes 220 on two processors, a thousand times in a row.) So a helper that finds itself there excludes that
//! processor from those it may run on, which moves it at once.

/// The processor that this thread runs on; negative where the system does not tell.
pub(super) fn current() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: no arguments, no effects.
    return unsafe { libc::sched_getcpu() };
    #[cfg(not(target_os = "linux"))]
    return -1;
}

/// The processors that a helper may run on.
pub(super) struct Seat {
    #[cfg(target_os = "linux")]
    allowed: Option<libc::cpu_set_t>,
}

#[cfg(target_os = "linux")]
impl Seat {
    /// Those of the calling thread, as it was started.
    pub(super) fn new() -> Self {
        // SAFETY: a set of processors is plain bits, and the call writes no more than its size.
        let (set, result) = unsafe {
            let mut set = std::mem::zeroed::<libc::cpu_set_t>();
            let result = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
            (set, result)
        };
        Self { allowed: (result == 0).then_some(set) }
    }

    /// Moves the calling thread away from processor `caller` where it runs there and another is allowed.
    pub(super) fn leave(&self, caller: i32) {
        if current() != caller {
            return;
        }
        let (Some(mut others), Ok(caller)) = (self.allowed, usize::try_from(caller)) else { return };
        if caller >= libc::CPU_SETSIZE as usize {
            return;
        }
        // SAFETY: the number is within the set, and the call reads the set alone. It fails where no other
        // processor is left, and then changes nothing.
        unsafe {
            libc::CPU_CLR(caller, &mut others);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const others);
        }
    }
}

/// Where the system does not say which processor a thread runs on, it places threads by itself.
#[cfg(not(target_os = "linux"))]
impl Seat {
    pub(super) const fn new() -> Self {
        Self {}
    }
    #[allow(clippy::unused_self)]
    pub(super) const fn leave(&self, _caller: i32) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_the_processor_that_it_shares() {
        std::thread::spawn(|| {
            let seat = Seat::new();
            // SAFETY: counts bits.
            let allowed = unsafe { libc::CPU_COUNT(&seat.allowed.unwrap()) };
            for _ in 0..20 {
                let here = current();
                seat.leave(here);
                // With one processor there is nowhere to go.
                assert_eq!(current() == here, allowed == 1);
            }
        })
        .join()
        .unwrap();
    }
}
