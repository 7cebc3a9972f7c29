//! A layout cut into blocks of queries, each with the key ranges that any of its queries sees.
//!
//! A plan may be of a window: some consecutive queries against some consecutive keys. Its blocks and visits count from
//! the starts of the two. Making one costs what its queries see, however long the layout is.
//!
//! Where all queries of a block see a range whole, the visit needs no mask. Elsewhere each query sees one interval
//! of the visit, so that a mask is two numbers a query, not one a pair. Blocks are cut where the work is least: many
//! short segments share one block, and a block does not straddle two samples where that costs more than it saves.

use crate::layout::{Inner, Layout};
use std::ops::Range;

/// Most queries in a block: three vectors of 16 `f32`, and a multiple of three vectors at every narrower width.
pub(crate) const BLOCK: usize = 48;
/// Cuts within a long segment fall on multiples of this: a vector of `f32` at AVX-512.
pub(crate) const QUANTUM: usize = 16;
/// Candidates for a cut are at least this far apart, or `QUANTUM` in rows longer than `LONG`.
const NEAREST: usize = 4;
/// Above this the search for cuts looks at fewer candidates.
const LONG: usize = 1 << 14;
/// Cost of a key for one, two and three vectors of queries: narrow tiles reuse less of what they load.
const KEY_COST: [f64; 3] = [1.5, 2.2, 3.0];
/// Keys that would cost as much as starting and ending a block.
const BLOCK_KEYS: f64 = 24.0;
/// A range seen by all queries that is shorter than this joins a masked neighbour.
const SHORT: u32 = 32;

/// Which keys of a visit each query of a block sees: `lo <= j < hi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) lo: [u32; BLOCK],
    pub(crate) hi: [u32; BLOCK],
}

/// A key range that some query of a block sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visit {
    pub(crate) keys: Range<u32>,
    /// Which of `Plan::masks`; none where every query sees every key.
    pub(crate) mask: Option<u32>,
}

/// Queries that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) queries: Range<u32>,
    visits: Range<usize>,
}

/// What a kernel needs to know of a layout; made once, used by every call.
#[derive(Debug, Clone)]
pub struct Plan {
    queries: usize,
    keys: usize,
    /// Positions in the row of the first query and of the first key.
    first: [u32; 2],
    blocks: Vec<Block>,
    visits: Vec<Visit>,
    masks: Vec<Mask>,
    /// Work before each block, and the whole: queries times visited keys.
    work: Vec<u64>,
}

impl Plan {
    /// Cuts `layout` into blocks.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let row = 0..layout.len() as u32;
        Self::window(layout, row.clone(), row)
    }

    /// Cuts the `queries` of a layout into blocks, which see no keys but `keys`. Queries past the end of the layout see
    /// nothing, keys past it are not seen.
    ///
    /// # Panics
    /// Where a range ends before it starts.
    #[must_use]
    pub fn window(layout: &Layout, queries: Range<u32>, keys: Range<u32>) -> Self {
        assert!(queries.start <= queries.end && keys.start <= keys.end, "ranges that end before they start");
        let mut plan = Self {
            queries: queries.len(),
            keys: keys.len(),
            first: [queries.start, keys.start],
            blocks: Vec::new(),
            visits: Vec::new(),
            masks: Vec::new(),
            work: vec![0],
        };
        let window = Window { layout, first_query: queries.start, keys };
        let end = queries.end.min((layout.len() as u32).max(queries.start));
        for block in window.cut(queries.start..end).windows(2) {
            plan.push(&window, block[0]..block[1]);
        }
        for start in (end..queries.end).step_by(BLOCK) {
            plan.push(&window, start..queries.end.min(start + BLOCK as u32));
        }
        plan
    }

    /// Appends the block of `queries`, counted in the row.
    fn push(&mut self, window: &Window<'_>, queries: Range<u32>) {
        let first = self.visits.len();
        for (keys, lanes) in window.visits(&queries) {
            let start = window.keys.start;
            let mask = lanes.map(|mut lanes| {
                for i in 0..BLOCK {
                    // Lanes that see nothing hold 0 and 0.
                    lanes.lo[i] = lanes.lo[i].saturating_sub(start);
                    lanes.hi[i] = lanes.hi[i].saturating_sub(start);
                }
                self.masks.push(*lanes);
                self.masks.len() as u32 - 1
            });
            self.visits.push(Visit { keys: keys.start - start..keys.end - start, mask });
        }
        let keys: u64 = self.visits[first..].iter().map(|v| u64::from(v.keys.end - v.keys.start)).sum();
        // A block that sees nothing still writes its rows.
        self.work.push(self.work[self.work.len() - 1] + (keys + 1) * queries.len() as u64);
        let queries = queries.start - window.first_query..queries.end - window.first_query;
        self.blocks.push(Block { queries, visits: first..self.visits.len() });
    }

    /// Queries of the window, `N_q`.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// Keys of the window, `N_k`.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Position in the row of query 0, less that of key 0.
    #[must_use]
    pub fn ahead(&self) -> i64 {
        i64::from(self.first[0]) - i64::from(self.first[1])
    }

    /// Positions in the row of a query and a key of the window.
    pub(crate) fn positions(&self, query: usize, key: usize) -> [usize; 2] {
        [self.first[0] as usize + query, self.first[1] as usize + key]
    }

    /// Pairs that the kernels compute, masked ones included.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.work[self.blocks.len()]
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn visits(&self, block: &Block) -> &[Visit] {
        &self.visits[block.visits.clone()]
    }

    pub(crate) fn mask(&self, visit: &Visit) -> Option<&Mask> {
        visit.mask.map(|m| &self.masks[m as usize])
    }

    /// Blocks of part `part` of `parts`: consecutive, of about the same work, the same on every machine.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Range<usize> {
        let at = |p: usize| {
            let target = u128::from(self.work()) * p as u128 / parts as u128;
            self.work[..self.blocks.len()].partition_point(|&w| u128::from(w) < target)
        };
        at(part)..if part + 1 == parts { self.blocks.len() } else { at(part + 1) }
    }
}

/// A layout of which only some keys are there.
struct Window<'a> {
    layout: &'a Layout,
    first_query: u32,
    keys: Range<u32>,
}

impl Window<'_> {
    /// Where to cut: a shortest path over candidate positions.
    fn cut(&self, queries: Range<u32>) -> Vec<u32> {
        let candidates = self.candidates(queries);
        let mut best = vec![(0.0_f64, 0_usize); candidates.len()];
        for i in 1..candidates.len() {
            best[i].0 = f64::INFINITY;
            for j in (0..i).rev() {
                let queries = candidates[j]..candidates[i];
                if queries.len() > BLOCK {
                    break;
                }
                let cost = best[j].0 + self.cost(&queries);
                if cost < best[i].0 {
                    best[i] = (cost, j);
                }
            }
        }
        let mut cuts = Vec::new();
        let mut i = candidates.len() - 1;
        while i > 0 {
            cuts.push(candidates[i]);
            i = best[i].1;
        }
        cuts.push(candidates[0]);
        cuts.reverse();
        cuts
    }

    /// Positions from the first of `queries` to their end, at most `BLOCK` apart: segment starts, and multiples of
    /// `QUANTUM` within segments.
    fn candidates(&self, queries: Range<u32>) -> Vec<u32> {
        let nearest = if queries.len() > LONG { QUANTUM } else { NEAREST };
        let mut out = vec![queries.start];
        for s in self.segments(&queries) {
            let span = self.layout.span(s);
            for at in (span.start.max(queries.start)..span.end.min(queries.end)).step_by(QUANTUM) {
                if (at - out[out.len() - 1]) as usize >= nearest {
                    out.push(at);
                }
            }
        }
        if !queries.is_empty() {
            out.push(queries.end);
        }
        out
    }

    /// Segments that hold `queries`.
    fn segments(&self, queries: &Range<u32>) -> Range<usize> {
        if queries.is_empty() || queries.start as usize >= self.layout.len() {
            return 0..0;
        }
        self.layout.segment_of(queries.start)..self.layout.segment_of(queries.end - 1) + 1
    }

    /// Those of `keys` that are there; its ends are within the window even where it is empty.
    fn clip(&self, keys: Range<u32>) -> Range<u32> {
        let [start, end] = [keys.start, keys.end].map(|x| x.clamp(self.keys.start, self.keys.end));
        start..end
    }

    /// Keys of its own segment that any of `queries` in segment `s` sees.
    fn zone(&self, s: usize, queries: &Range<u32>) -> Range<u32> {
        let span = self.layout.span(s);
        let first = self.layout.own(s, queries.start.max(span.start));
        let last = self.layout.own(s, (queries.end - 1).min(span.end - 1));
        self.clip(first.start..last.end)
    }

    /// Keys outside segment `s` that its queries see.
    fn ranges(&self, s: usize) -> impl Iterator<Item = Range<u32>> {
        self.layout.ranges(s).iter().map(|r| self.clip(r.clone())).filter(|r| !r.is_empty())
    }

    fn cost(&self, queries: &Range<u32>) -> f64 {
        let segments = self.segments(queries);
        let mut keys = 0_u64;
        if segments.len() == 1 {
            let s = segments.start;
            keys += self.zone(s, queries).len() as u64;
            keys += self.ranges(s).map(|r| r.len() as u64).sum::<u64>();
        } else {
            let mut ranges: Vec<Range<u32>> =
                segments.clone().flat_map(|s| self.ranges(s).chain([self.zone(s, queries)])).collect();
            ranges.sort_unstable_by_key(|r| r.start);
            let mut end = 0;
            for r in ranges {
                let fresh = r.start.max(end)..r.end.max(end);
                keys += u64::from(fresh.end - fresh.start);
                end = fresh.end;
            }
        }
        KEY_COST[queries.len().div_ceil(QUANTUM) - 1] * (keys as f64 + BLOCK_KEYS)
    }

    /// Key ranges that some of `queries` see, ascending; each query sees one interval of each.
    fn visits(&self, queries: &Range<u32>) -> Vec<(Range<u32>, Lanes)> {
        let segments = self.segments(queries);
        let mut ends: Vec<u32> = segments
            .clone()
            .flat_map(|s| self.ranges(s).chain([self.zone(s, queries)]))
            .flat_map(|r| [r.start, r.end])
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut out: Vec<(Range<u32>, Lanes)> = Vec::new();
        for pair in ends.windows(2) {
            let keys = pair[0]..pair[1];
            let mask = self.lanes(queries, segments.clone(), &keys);
            let seen = (0..queries.len()).any(|i| mask.lo[i] < mask.hi[i]);
            if !seen {
                continue;
            }
            let full = (0..queries.len()).all(|i| mask.lo[i] == keys.start && mask.hi[i] == keys.end);
            push_visit(&mut out, keys, mask, full, queries.len());
        }
        out
    }

    /// What each query sees of `keys`, which no end of any range or zone divides.
    fn lanes(&self, queries: &Range<u32>, segments: Range<usize>, keys: &Range<u32>) -> Box<Mask> {
        let layout = self.layout;
        let mut mask = Box::new(Mask { lo: [0; BLOCK], hi: [0; BLOCK] });
        for s in segments {
            let span = layout.span(s);
            let ranges = layout.ranges(s);
            let at = ranges.partition_point(|r| r.end <= keys.start);
            let whole = ranges.get(at).is_some_and(|r| r.start <= keys.start);
            for i in span.start.max(queries.start)..span.end.min(queries.end) {
                let own = layout.own(s, i);
                let seen = if whole {
                    keys.clone()
                } else if layout.inner(s) == Inner::None {
                    0..0
                } else {
                    own.start.max(keys.start)..own.end.min(keys.end)
                };
                let lane = (i - queries.start) as usize;
                if seen.start < seen.end {
                    (mask.lo[lane], mask.hi[lane]) = (seen.start, seen.end);
                }
            }
        }
        mask
    }
}

type Lanes = Option<Box<Mask>>;

/// Joins `keys` to the last visit where each query still sees one interval and no long range gains a mask.
fn push_visit(
    out: &mut Vec<(Range<u32>, Lanes)>,
    keys: Range<u32>,
    mask: Box<Mask>,
    full: bool,
    queries: usize,
) {
    if let Some((last, last_mask)) = out.last_mut()
        && last.end == keys.start
    {
        if full && last_mask.is_none() {
            last.end = keys.end;
            return;
        }
        let long = |full: bool, r: &Range<u32>| full && r.end - r.start >= SHORT;
        if !long(full, &keys) && !long(last_mask.is_none(), last) {
            let mut joined = last_mask
                .clone()
                .unwrap_or_else(|| Box::new(Mask { lo: [last.start; BLOCK], hi: [last.end; BLOCK] }));
            if (0..queries).all(|i| join(&mut joined, i, mask.lo[i], mask.hi[i])) {
                joined.lo[queries..].fill(0);
                joined.hi[queries..].fill(0);
                last.end = keys.end;
                *last_mask = Some(joined);
                return;
            }
        }
    }
    out.push((keys, (!full).then_some(mask)));
}

/// Appends `lo..hi` to the interval of query `i`; false where there would be a gap.
fn join(mask: &mut Mask, i: usize, lo: u32, hi: u32) -> bool {
    if lo >= hi {
        return true;
    }
    if mask.lo[i] >= mask.hi[i] {
        (mask.lo[i], mask.hi[i]) = (lo, hi);
        return true;
    }
    let touches = mask.hi[i] == lo;
    mask.hi[i] = hi;
    touches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Sample, Segment};

    /// Every layout of up to three segments from a few shapes, against the dense mask.
    #[test]
    fn visits_say_what_the_dense_mask_says() {
        let kinds = [Inner::None, Inner::Diagonal, Inner::Causal, Inner::Full];
        let lengths = [1, 5, 16, 50, 3, 100];
        for code in 0..4 * 4 * 4 * 6 * 4 {
            let segments: Vec<Segment> = (0..3)
                .map(|s| Segment {
                    inner: kinds[code >> (2 * s) & 3],
                    length: lengths[(code / 64 + s * (1 + code % 5)) % 6],
                    hidden: (code / 384) % 2 == 1 && s == 1,
                    anchor: s == 0,
                })
                .collect();
            let window = (code / 768 == 1).then_some(1);
            let sample = Sample { segments: &segments, window, visible: None };
            check(&Layout::new(&[sample, sample]).unwrap());
        }
    }

    fn check(layout: &Layout) {
        let n = layout.len();
        let mut want = vec![false; n * n];
        layout.dense(&mut want).unwrap();
        let plan = Plan::new(layout);
        let mut got = vec![false; n * n];
        let mut next = 0;
        for block in plan.blocks() {
            assert_eq!(block.queries.start, next);
            assert!(block.queries.len() <= BLOCK);
            next = block.queries.end;
            for visit in plan.visits(block) {
                for (lane, i) in block.queries.clone().enumerate() {
                    let (lo, hi) = plan
                        .mask(visit)
                        .map_or((visit.keys.start, visit.keys.end), |m| (m.lo[lane], m.hi[lane]));
                    if lo < hi {
                        assert!(visit.keys.start <= lo && hi <= visit.keys.end);
                    }
                    for j in lo..hi {
                        let at = i as usize * n + j as usize;
                        assert!(!got[at], "pair ({i}, {j}) is visited twice");
                        got[at] = true;
                    }
                }
            }
        }
        assert_eq!(next as usize, n);
        assert!(got == want, "{layout:?}");
    }

    #[test]
    fn parts_cover_all_blocks_in_order() {
        let segment = Segment { inner: Inner::Causal, length: 1000, hidden: false, anchor: false };
        let layout = Layout::new(&[Sample { segments: &[segment], window: None, visible: None }]).unwrap();
        let plan = Plan::new(&layout);
        for parts in [1, 2, 7, 100] {
            let mut next = 0;
            for part in 0..parts {
                let blocks = plan.part(part, parts);
                assert_eq!(blocks.start.min(blocks.end), next.min(blocks.end));
                assert!(blocks.start == next || blocks.is_empty());
                next = next.max(blocks.end);
            }
            assert_eq!(next, plan.blocks().len());
        }
    }

    #[test]
    fn blocks_of_short_samples_fill_their_vectors() {
        let one = |inner, length| Segment { inner, length, hidden: false, anchor: false };
        let segments = [one(Inner::Causal, 6), one(Inner::Full, 16), one(Inner::Full, 16)];
        let sample = Sample { segments: &segments, window: None, visible: None };
        let plan = Plan::new(&Layout::new(&[sample; 4]).unwrap());
        let starts: Vec<u32> = plan.blocks().iter().map(|b| b.queries.start).collect();
        // Samples of 38: the text of the next sample fills the third vector, its images are two whole vectors.
        assert_eq!(starts, [0, 44, 76, 120]);
    }

    #[test]
    fn an_empty_layout_has_no_blocks() {
        let plan = Plan::new(&Layout::new(&[]).unwrap());
        assert!(plan.blocks().is_empty() && plan.work() == 0 && plan.part(0, 1).is_empty());
    }
}
