//! Memory of a call or a task, aligned to cache lines: a 512-bit load across two lines costs two.
//!
//! A thread keeps what it had: a page that is touched for the first time can cost as much as the work on it.

use sensorium_core::Float;
use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Largest buffer that is kept, in lines: 32 MB.
const KEPT: usize = 1 << 19;

thread_local! {
    /// Buffers not in use, one for each depth of nesting.
    static FREE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) };
}

/// Buffers of `T` cut from one allocation; what they hold at first is unspecified.
pub(super) struct Scratch {
    lines: Vec<Line>,
    used: usize,
}

impl Scratch {
    /// Room for buffers of the given numbers of elements.
    pub(super) fn new<T: Float>(sizes: &[usize]) -> Self {
        let wanted = sizes.iter().map(|&n| Self::lines::<T>(n)).sum::<usize>();
        let mut free = FREE.take();
        // The smallest that is large enough, so that the buffer of a call is left to calls.
        let best = (0..free.len()).filter(|&i| free[i].len() >= wanted).min_by_key(|&i| free[i].len());
        let lines = if let Some(i) = best {
            free.swap_remove(i)
        } else {
            if let Some(least) = (0..free.len()).min_by_key(|&i| free[i].len()) {
                free.swap_remove(least);
            }
            vec![Line([0; 64]); wanted]
        };
        FREE.set(free);
        Self { lines, used: 0 }
    }

    fn lines<T: Float>(n: usize) -> usize {
        (n * size_of::<T>()).div_ceil(size_of::<Line>())
    }

    /// The next buffer of `n` elements. It must not outlive the scratch.
    ///
    /// # Panics
    /// Where `new` was not told of it.
    pub(super) fn take<T: Float>(&mut self, n: usize) -> *mut T {
        let at = self.used;
        self.used += Self::lines::<T>(n);
        assert!(self.used <= self.lines.len(), "scratch was sized for less");
        // Derived anew from the vector each time, within it, and never turned into a reference here.
        self.lines.as_mut_ptr().wrapping_add(at).cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.lines.len() > KEPT {
            return;
        }
        // A thread that is going away has no store any more; the buffer goes with it.
        let _ = FREE.try_with(|store| {
            let mut free = store.take();
            free.push(std::mem::take(&mut self.lines));
            store.set(free);
        });
    }
}

/// A pointer that tasks share, each reading and writing its own part of what it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: whoever dereferences it vouches that parts written by different tasks do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer `n` elements further.
    #[inline(always)]
    pub(super) fn at(self, n: usize) -> *mut T {
        self.0.wrapping_add(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_nest() {
        let mut outer = Scratch::new::<f32>(&[1000, 3]);
        let first = outer.take::<f32>(1000) as usize;
        let second = outer.take::<f32>(3) as usize;
        assert_eq!((first % 64, second % 64), (0, 0));
        assert!(second >= first + 4000);
        let mut inner = Scratch::new::<f64>(&[10]);
        assert_ne!(inner.take::<f64>(10) as usize, first);
        drop(inner);
        drop(outer);
        assert_eq!(Scratch::new::<f64>(&[400]).take::<f64>(400) as usize, first);
    }
}
