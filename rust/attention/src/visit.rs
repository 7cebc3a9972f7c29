//! A visit in chunks of keys.

use crate::plan::{BLOCK, Mask, Visit};
use sensorium_core::Float;
use std::ops::Range;

/// Keys of a chunk: its scores (12 kB at 48 `f32` lanes) stay in the first-level cache between the two products.
pub(crate) const CHUNK: usize = 64;

/// Consecutive keys, and for each lane of a block what it sees of them.
pub(crate) struct Chunk<T> {
    pub(crate) start: usize,
    pub(crate) keys: usize,
    /// Whether some lane does not see some key.
    pub(crate) masked: bool,
    /// Lane `i` sees key `start + j` where `lo[i] <= j < hi[i]`; only where masked.
    pub(crate) lo: [T; BLOCK],
    pub(crate) hi: [T; BLOCK],
}

/// The chunks of a visit.
///
/// No iterator and no closure: those would be compiled for the baseline, and the kernel in them with it.
pub(crate) struct Chunks<'a> {
    mask: Option<&'a Mask>,
    at: u32,
    end: u32,
    /// What every lane sees.
    whole: Range<u32>,
}

impl<'a> Chunks<'a> {
    #[inline(always)]
    pub(crate) fn new(visit: &Visit, mask: Option<&'a Mask>, lanes: usize) -> Self {
        let (at, end) = (visit.keys.start, visit.keys.end);
        let mut whole = at..end;
        if let Some(mask) = mask {
            for i in 0..lanes {
                whole = whole.start.max(mask.lo[i])..whole.end.min(mask.hi[i]);
            }
        }
        Self { mask, at, end, whole }
    }

    /// Writes the next chunk; false where there is none.
    #[inline(always)]
    pub(crate) fn next<T: Float>(&mut self, chunk: &mut Chunk<T>) -> bool {
        if self.at >= self.end {
            return false;
        }
        let (at, next) = (self.at, self.end.min(self.at + CHUNK as u32));
        chunk.start = at as usize;
        chunk.keys = (next - at) as usize;
        chunk.masked = self.mask.is_some() && !(self.whole.start <= at && next <= self.whole.end);
        if let Some(mask) = self.mask
            && chunk.masked
        {
            // Lanes without a query see nothing: both ends are 0 in the mask.
            for i in 0..BLOCK {
                chunk.lo[i] = relative(mask.lo[i], at);
                chunk.hi[i] = relative(mask.hi[i], at);
            }
        }
        self.at = next;
        true
    }
}

impl<T: Float> Chunk<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { start: 0, keys: 0, masked: false, lo: [T::ZERO; BLOCK], hi: [T::ZERO; BLOCK] }
    }
}

/// Position `x` counted from `at`, as far as a chunk reaches.
#[inline(always)]
fn relative<T: Float>(x: u32, at: u32) -> T {
    T::from_f64(f64::from(x.saturating_sub(at).min(CHUNK as u32)))
}
