//! The part of a visit that one group of lanes sees, in chunks of keys.

use crate::plan::{BLOCK, Mask, Visit};
use sensorium_core::Float;

/// Keys of a chunk: its scores (12 kB at 48 `f32` lanes) stay in the first-level cache between the two products.
pub(crate) const CHUNK: usize = 64;

/// Consecutive keys, and for each lane of a group what it sees of them.
pub(crate) struct Chunk<T> {
    pub(crate) start: usize,
    pub(crate) keys: usize,
    /// Whether some lane does not see some key.
    pub(crate) masked: bool,
    /// Lane `i` sees key `start + j` where `lo[i] <= j < hi[i]`; only where masked.
    pub(crate) lo: [T; BLOCK],
    pub(crate) hi: [T; BLOCK],
}

/// Calls `f` for each chunk of `visit` that some lane in `first..first + lanes` of its block sees.
///
/// `width` is the number of lanes with the padding, which sees nothing.
#[inline(always)]
pub(crate) fn for_chunks<T: Float>(
    visit: &Visit,
    mask: Option<&Mask>,
    first: usize,
    lanes: usize,
    width: usize,
    mut f: impl FnMut(&Chunk<T>),
) {
    let (mut start, mut end) = (visit.keys.start, visit.keys.end);
    // Where every lane of the group sees everything between these, there is no mask.
    let (mut whole_start, mut whole_end) = (start, end);
    if let Some(mask) = mask {
        (start, end) = (u32::MAX, 0);
        for i in first..first + lanes {
            let (lo, hi) = (mask.lo[i], mask.hi[i]);
            if lo < hi {
                start = start.min(lo);
                end = end.max(hi);
            }
            whole_start = whole_start.max(lo);
            whole_end = whole_end.min(hi);
        }
    }
    let mut chunk = Chunk { start: 0, keys: 0, masked: false, lo: [T::ZERO; BLOCK], hi: [T::ZERO; BLOCK] };
    let mut at = start;
    while at < end {
        let next = end.min(at + CHUNK as u32);
        chunk.start = at as usize;
        chunk.keys = (next - at) as usize;
        chunk.masked = mask.is_some() && !(whole_start <= at && next <= whole_end);
        if let Some(mask) = mask
            && chunk.masked
        {
            let relative = |x: u32| T::from_f64(f64::from(x.saturating_sub(at).min(CHUNK as u32)));
            for i in 0..width.min(BLOCK - first) {
                chunk.lo[i] = relative(mask.lo[first + i]);
                chunk.hi[i] = relative(mask.hi[first + i]);
            }
        }
        f(&chunk);
        at = next;
    }
}
