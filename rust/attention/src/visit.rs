//! A visit in chunks of keys, and a masked chunk in bands of keys and lanes.
//!
//! Within a chunk on the diagonal of a causal segment the first lanes of a block see the first keys alone. So the
//! chunk is cut into bands: consecutive keys, and the groups of lanes any of which sees one of them. What no band
//! covers is neither computed nor read. One core of a Zen 4, GFLOP/s of visible pairs, forward / with backward:
//!
//! | | whole chunks | bands |
//! |---|---|---|
//! | causal, D 64, N 64 | 53 / 54 | 58 / 60 |
//! | N 128 | 66 / 69 | 75 / 79 |
//! | N 512 | 91 / 91 | 94 / 97 |
//! | N 2048 | 97 / 100 | 97 / 101 |
//! | four samples of 38 in a row, D 32 | 43 / 45 | 47 / 51 |

use crate::plan::{BLOCK, Mask, QUANTUM, Visit};
use sensorium_core::Float;
use std::ops::Range;

/// Keys of a chunk: its scores (12 kB at 48 `f32` lanes) stay in the first-level cache between the two products.
pub(crate) const CHUNK: usize = 64;

/// Groups of `QUANTUM` lanes in a block.
const GROUPS: usize = BLOCK / QUANTUM;
/// Bands start and end at multiples of this within a chunk: the rows of a tile.
const STEP: usize = 8;
/// Pairs that would cost as much as a band of its own: each product loads and stores its sums once more. Twice as many
/// keep whole chunks in rows of short samples, which then take a tenth longer.
const BAND_PAIRS: usize = 2 * BLOCK;

/// Keys of a chunk, and lanes of a block of which each group sees some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Band {
    /// Counted from the first of the chunk.
    pub(crate) key: usize,
    pub(crate) keys: usize,
    pub(crate) lane: usize,
    pub(crate) lanes: usize,
}

/// Consecutive keys, and for each lane of a block what it sees of them.
pub(crate) struct Chunk<T> {
    pub(crate) start: usize,
    pub(crate) keys: usize,
    /// Whether some lane does not see some key.
    pub(crate) masked: bool,
    /// Lane `i` sees key `start + j` where `lo[i] <= j < hi[i]`; only where masked.
    pub(crate) lo: [T; BLOCK],
    pub(crate) hi: [T; BLOCK],
    /// Lanes of the block, in whole vectors.
    width: usize,
    bands: [Band; 2 * GROUPS],
    count: usize,
    /// Keys of the bands that each group of lanes is in.
    seen: [[usize; 2]; GROUPS],
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
            chunk.cut(mask, at);
        } else {
            chunk.whole();
        }
        self.at = next;
        true
    }
}

impl<T: Float> Chunk<T> {
    #[inline(always)]
    pub(crate) fn new(width: usize) -> Self {
        Self {
            start: 0,
            keys: 0,
            masked: false,
            lo: [T::ZERO; BLOCK],
            hi: [T::ZERO; BLOCK],
            width,
            bands: [Band { key: 0, keys: 0, lane: 0, lanes: 0 }; 2 * GROUPS],
            count: 0,
            seen: [[0; 2]; GROUPS],
        }
    }

    /// What products are to cover.
    #[inline(always)]
    pub(crate) fn bands(&self) -> &[Band] {
        &self.bands[..self.count]
    }

    /// The first key of the bands that lanes from `lane` are in, and the one after the last.
    #[inline(always)]
    pub(crate) fn seen(&self, lane: usize) -> [usize; 2] {
        self.seen[lane / QUANTUM]
    }

    /// One band of everything.
    #[inline(always)]
    fn whole(&mut self) {
        self.bands[0] = Band { key: 0, keys: self.keys, lane: 0, lanes: self.width };
        self.count = 1;
        self.seen = [[0, self.keys]; GROUPS];
    }

    /// Bands of a masked chunk that starts with key `at`, or one of everything where they would save little.
    #[inline(always)]
    fn cut(&mut self, mask: &Mask, at: u32) {
        let mut ends = [0; 2 * GROUPS];
        for g in 0..GROUPS {
            let (mut lo, mut hi) = (self.keys, 0);
            for i in g * QUANTUM..(g + 1) * QUANTUM {
                let first = (mask.lo[i].saturating_sub(at) as usize).min(self.keys);
                let last = (mask.hi[i].saturating_sub(at) as usize).min(self.keys);
                if first < last {
                    lo = lo.min(first);
                    hi = hi.max(last);
                }
            }
            // Nothing seen: an empty range, which ends where it starts.
            lo = lo.min(hi);
            self.seen[g] = [lo - lo % STEP, hi.next_multiple_of(STEP).min(self.keys)];
            ends[2 * g..2 * g + 2].copy_from_slice(&self.seen[g]);
        }
        ends.sort_unstable();
        self.count = 0;
        let mut pairs = 0;
        for pair in 1..ends.len() {
            let (key, end) = (ends[pair - 1], ends[pair]);
            let (mut first, mut last, mut groups) = (GROUPS, 0, 0);
            for g in 0..GROUPS {
                if self.seen[g][0] <= key && end <= self.seen[g][1] {
                    first = first.min(g);
                    last = g + 1;
                    groups += 1;
                }
            }
            if key == end || groups == 0 {
                continue;
            }
            let (lane, last_lane) = (first * QUANTUM, (last * QUANTUM).min(self.width));
            let band = Band { key, keys: end - key, lane, lanes: last_lane - lane };
            pairs += band.keys * band.lanes + BAND_PAIRS;
            // A group between that sees nothing would have to be computed after all.
            if last - first > groups {
                pairs = usize::MAX;
                break;
            }
            self.bands[self.count] = band;
            self.count += 1;
        }
        if pairs >= self.keys * self.width + BAND_PAIRS {
            self.whole();
        }
    }
}

/// Position `x` counted from `at`, as far as a chunk reaches.
#[inline(always)]
fn relative<T: Float>(x: u32, at: u32) -> T {
    T::from_f64(f64::from(x.saturating_sub(at).min(CHUNK as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts the chunk of keys `100..100 + keys` in which lane `i` of a block sees `lo[i]..hi[i]`.
    fn cut(keys: usize, width: usize, see: impl Fn(usize) -> Range<usize>) -> Chunk<f32> {
        let mut mask = Mask { lo: [0; BLOCK], hi: [0; BLOCK] };
        for i in 0..width {
            let seen = see(i);
            if !seen.is_empty() {
                (mask.lo[i], mask.hi[i]) = (100 + seen.start as u32, 100 + seen.end as u32);
            }
        }
        let mut chunk = Chunk::new(width);
        chunk.keys = keys;
        chunk.cut(&mask, 100);
        // Every pair that is seen is computed once, and what a lane reads is what is computed of its group.
        for i in 0..width {
            let [first, last] = chunk.seen(i);
            for key in 0..keys {
                let inside = |b: &&Band| {
                    (b.key..b.key + b.keys).contains(&key) && (b.lane..b.lane + b.lanes).contains(&i)
                };
                let times = chunk.bands().iter().filter(inside).count();
                assert_eq!(times, usize::from((first..last).contains(&key)), "key {key} of lane {i}");
                assert!(times == 1 || !see(i).contains(&key), "key {key} of lane {i} is seen");
            }
        }
        chunk
    }

    #[test]
    fn bands_cover_what_is_seen_once() {
        let mut state = 1_u32;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize % n
        };
        for _ in 0..2000 {
            let keys = 1 + draw(CHUNK);
            let width = 4 * (1 + draw(BLOCK / 4));
            let (slope, start, length) = (draw(3), draw(keys), 1 + draw(keys));
            let holes = draw(4);
            cut(keys, width, |i| {
                let lo = (start * slope / 2 + (slope * i)).min(keys);
                if holes > 0 && i / QUANTUM == holes - 1 { 0..0 } else { lo..(lo + length).min(keys) }
            });
        }
    }

    #[test]
    fn a_diagonal_is_cut_into_stairs() {
        let chunk = cut(48, 48, |i| 0..i + 1);
        let band = |key, lane| Band { key, keys: 16, lane, lanes: 48 - lane };
        assert_eq!(chunk.bands(), [band(0, 0), band(16, 16), band(32, 32)]);
    }

    #[test]
    fn little_to_save_leaves_a_chunk_whole() {
        let chunk = cut(64, 48, |i| 0..60 + i / 12);
        assert_eq!(chunk.bands(), [Band { key: 0, keys: 64, lane: 0, lanes: 48 }]);
    }
}
