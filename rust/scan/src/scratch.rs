//! Memory for one task, aligned to cache lines: a 512-bit load across two lines costs two.

use sensorium_core::Float;
use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Most memory that a thread keeps between tasks, in lines: 4 MB.
const KEPT: usize = 1 << 16;

thread_local! {
    /// Memory of the last task of this thread: short tasks would spend their time on clearing their own.
    static LAST: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Buffers of `T` cut from one allocation; what they hold at first is unspecified.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    used: usize,
}

impl Scratch {
    /// Room for buffers of the given numbers of elements.
    pub(crate) fn new<T: Float>(sizes: &[usize]) -> Self {
        let wanted = sizes.iter().map(|&n| Self::lines::<T>(n)).sum::<usize>();
        let mut lines = LAST.take();
        if lines.len() < wanted {
            lines = vec![Line([0; 64]); wanted];
        }
        Self { lines, used: 0 }
    }

    fn lines<T: Float>(n: usize) -> usize {
        (n * size_of::<T>()).div_ceil(64)
    }

    /// The next buffer of `n` elements. It must not outlive the scratch.
    ///
    /// # Panics
    /// Where `new` was not told of it.
    pub(crate) fn take<T: Float>(&mut self, n: usize) -> *mut T {
        let at = self.used;
        self.used += Self::lines::<T>(n);
        assert!(self.used <= self.lines.len(), "scratch was sized for less");
        // Derived anew from the vector each time, within it, and never turned into a reference here.
        self.lines.as_mut_ptr().wrapping_add(at).cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.lines.len() <= KEPT {
            LAST.set(std::mem::take(&mut self.lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_apart() {
        let mut scratch = Scratch::new::<f32>(&[3, 40, 0, 16]);
        let starts: Vec<usize> = [3, 40, 0, 16].map(|n| scratch.take::<f32>(n) as usize).to_vec();
        assert!(starts.iter().all(|start| start % 64 == 0));
        assert_eq!(starts.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>(), [64, 192, 0]);
    }
}
