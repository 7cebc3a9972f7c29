//! Memory of one task: buffers aligned to cache lines, whose rows are padded to whole lines.
//!
//! Rows that are whole lines hold whole vectors at every level, so that no loop has a tail. What pads them is zero
//! wherever a sum runs over it.

use sensorium_core::Float;
use std::cell::Cell;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Most memory that a thread keeps between tasks, in lines: 16 MB. A backward of heads of 64 takes 3 MB.
const KEPT: usize = 1 << 18;

thread_local! {
    /// Memory of the last task of this thread: fresh pages cost more than what is done with them.
    static LAST: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Elements of a row of `n`, padded to whole lines.
pub(super) const fn padded<T>(n: usize) -> usize {
    n.next_multiple_of(64 / size_of::<T>())
}

/// Memory for buffers of a task, given back to its thread when dropped.
pub(super) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// The last task's memory, or new.
    pub(super) fn take() -> Self {
        Self { lines: LAST.take() }
    }

    /// Zeros for buffers of `len` elements in all, to be cut.
    pub(super) fn zeros<T: Float>(&mut self, len: usize) -> Cut<'_, T> {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if self.lines.len() < lines {
            self.lines.clear();
            self.lines.resize(lines, Line([0; 64]));
        } else {
            self.lines[..lines].fill(Line([0; 64]));
        }
        // SAFETY: large enough, aligned, and every pattern of bits is a float.
        Cut { rest: unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) } }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.lines.len() <= KEPT {
            LAST.set(std::mem::take(&mut self.lines));
        }
    }
}

/// What is left of a piece of memory.
pub(super) struct Cut<'a, T> {
    rest: &'a mut [T],
}

impl<'a, T> Cut<'a, T> {
    /// The next `n` elements; whole lines keep what follows aligned.
    ///
    /// # Panics
    /// Where there are not so many.
    pub(super) fn next(&mut self, n: usize) -> &'a mut [T] {
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut(n);
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero_again_when_reused() {
        assert_eq!((padded::<f32>(1), padded::<f32>(16), padded::<f64>(9)), (16, 16, 16));
        let mut scratch = Scratch::take();
        let mut cut = scratch.zeros::<f32>(48);
        let (a, b) = (cut.next(16), cut.next(32));
        a.fill(1.0);
        b.fill(2.0);
        assert_eq!((a.as_ptr() as usize % 64, b.as_ptr() as usize % 64), (0, 0));
        drop(scratch);
        let mut scratch = Scratch::take();
        assert!(scratch.zeros::<f64>(24).next(24).iter().all(|&x| x == 0.0));
    }
}
