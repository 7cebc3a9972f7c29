//! Memory for packed panels, kept by each thread between calls: a fresh mapping costs more than the packing.

use crate::Float;
use std::cell::Cell;

/// A cache line: vectors of a panel never straddle two.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Line([u8; 64]);

thread_local! {
    /// Buffers not in use, one for each depth of nesting.
    static FREE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) };
}

/// An aligned buffer, given back to its thread's store when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// Takes a buffer from the store of the calling thread, or starts one.
    pub(super) fn take() -> Self {
        let mut free = FREE.take();
        let lines = free.pop().unwrap_or_default();
        FREE.set(free);
        Self { lines }
    }

    /// Its first `len` elements, with whatever they held before.
    pub(super) fn get<T: Float>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.clear();
            self.lines.resize(lines, Line([0; 64]));
        }
        // SAFETY: large enough, aligned, and every pattern of bits is a float.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread that is going away has no store any more; the buffer goes with it.
        let _ = FREE.try_with(|store| {
            let mut free = store.take();
            free.push(std::mem::take(&mut self.lines));
            store.set(free);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_nest() {
        let mut outer = Scratch::take();
        let first = outer.get::<f32>(1000).as_ptr() as usize;
        assert_eq!(first % 64, 0);
        let mut inner = Scratch::take();
        assert_ne!(inner.get::<f64>(10).as_ptr() as usize, first);
        drop(inner);
        drop(outer);
        assert_eq!(Scratch::take().get::<f64>(500).as_ptr() as usize, first);
    }
}
