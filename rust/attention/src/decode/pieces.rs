//! What a band of new queries sees of the cached keys: a few key ranges, found without looking at the rest of the
//! layout. Queries of one segment cost a search over the segments and a copy of its ranges.

use super::Tokens;
use crate::layout::{Inner, Layout};
use crate::plan::{BLOCK, Block, Mask, Plan, Visit};
use sensorium_core::Float;
use std::ops::Range;

/// Consecutive keys that some query of the band sees.
#[derive(Debug)]
pub(super) struct Piece {
    keys: Range<u32>,
    /// What each query sees; none where every query sees every key.
    mask: Option<Box<Mask>>,
    /// What every query sees.
    whole: Range<u32>,
}

/// Queries of a sample in bands of at most [`BLOCK`], and the pieces that each band sees, ascending.
pub(super) fn bands(tokens: &Tokens<'_>) -> Vec<(Range<usize>, Vec<Piece>)> {
    let &Tokens { layout, start, count, length } = tokens;
    let even = |of: &dyn Fn(Range<u32>) -> Vec<Piece>| {
        let bands = count.div_ceil(BLOCK);
        let band = |i| {
            let queries = count * i / bands..count * (i + 1) / bands;
            let pieces = of((start + queries.start) as u32..(start + queries.end) as u32);
            (queries, pieces)
        };
        (0..bands).map(band).collect()
    };
    let Some(layout) = layout else { return even(&|queries| vec![causal(&queries, 0)]) };
    if count == 0 {
        return Vec::new();
    }
    let s = layout.segment_of(start as u32);
    if s == layout.segment_of((start + count - 1) as u32) {
        return even(&|queries| of_segment(layout, s, &queries, length as u32));
    }
    let plan = Plan::window(layout, start as u32..(start + count) as u32, 0..length as u32);
    let band = |block: &Block| {
        let queries = block.queries.start as usize..block.queries.end as usize;
        let of = |visit: &Visit| piece(visit.keys.clone(), plan.mask(visit), queries.len());
        let pieces = plan.visits(block).iter().map(of).collect();
        (queries, pieces)
    };
    plan.blocks().iter().map(band).collect()
}

/// What `queries` of segment `s` see of the first `length` keys: only their own segment needs a mask.
fn of_segment(layout: &Layout, s: usize, queries: &Range<u32>, length: u32) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let zone = layout.own(s, queries.start).start..layout.own(s, queries.end - 1).end.min(length);
    let ranges = layout.ranges(s);
    let before = ranges.partition_point(|r| r.start < zone.start);
    for range in &ranges[..before] {
        push(&mut out, range.start..range.end.min(length));
    }
    match layout.inner(s) {
        Inner::Causal if queries.len() > 1 => {
            // What lies right before the segment joins it: a short piece costs as much as a chunk.
            let joins = out.last().is_some_and(|last| last.keys.end == zone.start);
            let start = if joins { out.pop().map_or(zone.start, |last| last.keys.start) } else { zone.start };
            out.push(causal(queries, start));
        }
        Inner::Diagonal if queries.len() > 1 => {
            let mut mask = Mask { lo: [0; BLOCK], hi: [0; BLOCK] };
            for (i, query) in queries.clone().enumerate() {
                (mask.lo[i], mask.hi[i]) = (query, query + 1);
            }
            out.push(piece(zone, Some(&mask), queries.len()));
        }
        _ => push(&mut out, zone),
    }
    for range in &ranges[before..] {
        push(&mut out, range.start..range.end.min(length));
    }
    out
}

/// Appends keys that every query sees.
fn push(out: &mut Vec<Piece>, keys: Range<u32>) {
    match out.last_mut() {
        _ if keys.is_empty() => {}
        Some(last) if last.mask.is_none() && last.keys.end == keys.start => {
            last.keys.end = keys.end;
            last.whole.end = keys.end;
        }
        _ => out.push(piece(keys, None, 1)),
    }
}

/// What `queries` see of the keys from `start` on where each sees itself and what comes before it.
fn causal(queries: &Range<u32>, start: u32) -> Piece {
    let mut mask = Mask { lo: [0; BLOCK], hi: [0; BLOCK] };
    for (i, query) in queries.clone().enumerate() {
        (mask.lo[i], mask.hi[i]) = (start, query + 1);
    }
    piece(start..queries.end, (queries.len() > 1).then_some(&mask), queries.len())
}

fn piece(keys: Range<u32>, mask: Option<&Mask>, queries: usize) -> Piece {
    let mut whole = keys.clone();
    if let Some(mask) = mask {
        for i in 0..queries {
            whole = whole.start.max(mask.lo[i])..whole.end.min(mask.hi[i]);
        }
    }
    Piece { keys, mask: mask.cloned().map(Box::new), whole }
}

/// Keys of all pieces.
pub(super) fn count(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| p.keys.len()).sum()
}

/// Consecutive keys.
pub(super) struct Chunk<T> {
    pub(super) start: usize,
    pub(super) keys: usize,
    /// Whether some query does not see some key.
    pub(super) masked: bool,
    /// Query `i` sees key `start + j` where `lo[i] <= j < hi[i]`; only where masked.
    pub(super) lo: [T; BLOCK],
    pub(super) hi: [T; BLOCK],
}

impl<T: Float> Chunk<T> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { start: 0, keys: 0, masked: false, lo: [T::ZERO; BLOCK], hi: [T::ZERO; BLOCK] }
    }
}

/// Some of the keys of pieces, in chunks.
pub(super) struct Walk<'a> {
    pieces: &'a [Piece],
    /// Keys of the first piece that lie behind.
    skip: usize,
    /// Keys ahead.
    left: usize,
    /// Most keys of a chunk.
    size: usize,
}

impl<'a> Walk<'a> {
    /// Over the keys `range`, counted over all pieces.
    #[inline(always)]
    pub(super) fn new(pieces: &'a [Piece], range: &Range<usize>, size: usize) -> Self {
        let mut walk = Self { pieces, skip: range.start, left: range.len(), size };
        while let Some(piece) = walk.pieces.first()
            && walk.skip >= piece.keys.len()
        {
            walk.skip -= piece.keys.len();
            walk.pieces = &walk.pieces[1..];
        }
        walk
    }

    /// Writes the next chunk; false where there is none.
    #[inline(always)]
    pub(super) fn next<T: Float>(&mut self, chunk: &mut Chunk<T>) -> bool {
        let Some(piece) = self.pieces.first() else { return false };
        if self.left == 0 {
            return false;
        }
        let start = piece.keys.start + self.skip as u32;
        let keys = self.size.min(self.left).min((piece.keys.end - start) as usize);
        let end = start + keys as u32;
        chunk.start = start as usize;
        chunk.keys = keys;
        chunk.masked = false;
        if let Some(mask) = &piece.mask
            && !(piece.whole.start <= start && end <= piece.whole.end)
        {
            chunk.masked = true;
            for i in 0..BLOCK {
                chunk.lo[i] = relative(mask.lo[i], start, keys);
                chunk.hi[i] = relative(mask.hi[i], start, keys);
            }
        }
        self.left -= keys;
        self.skip += keys;
        if end == piece.keys.end {
            self.pieces = &self.pieces[1..];
            self.skip = 0;
        }
        true
    }
}

/// Position `x` counted from `at`, as far as a chunk of `keys` reaches.
#[inline(always)]
fn relative<T: Float>(x: u32, at: u32, keys: usize) -> T {
    T::from_usize((x.saturating_sub(at) as usize).min(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Sample, Segment};

    /// Pairs that the bands of some queries cover, `(count, length)`; each may be covered once.
    fn seen(tokens: &Tokens<'_>) -> Vec<bool> {
        let mut out = vec![false; tokens.count * tokens.length];
        for (queries, pieces) in bands(tokens) {
            assert!(pieces.windows(2).all(|p| p[0].keys.end <= p[1].keys.start));
            for (i, query) in queries.enumerate() {
                for Piece { keys, mask, whole } in &pieces {
                    assert!(!keys.is_empty());
                    let own = mask.as_ref().map_or(keys.clone(), |mask| mask.lo[i]..mask.hi[i]);
                    assert!(whole.is_empty() || own.start <= whole.start && whole.end <= own.end);
                    for key in own {
                        assert!(keys.contains(&key));
                        let at = query * tokens.length + key as usize;
                        assert!(!out[at]);
                        out[at] = true;
                    }
                }
            }
        }
        out
    }

    /// Layouts of three segments of every kind; queries within a segment and across.
    #[test]
    fn bands_see_what_the_dense_mask_says() {
        let kinds = [Inner::None, Inner::Diagonal, Inner::Causal, Inner::Full];
        for code in 0..64 * 6 {
            let segment = |s: usize| Segment {
                inner: kinds[code >> (2 * s) & 3],
                length: [7, 60, 13][(s + code / 64) % 3],
                hidden: code / 64 == 3 && s == 1,
                anchor: false,
            };
            let segments = [segment(0), segment(1), segment(2)];
            let forward = [false, true, true, true, false, true, false, true, false];
            let visible = (code / 64 > 3).then_some(&forward[..]);
            let layout = Layout::new(&[Sample { segments: &segments, window: None, visible }]).unwrap();
            let n = layout.len();
            let mut dense = vec![false; n * n];
            layout.dense(&mut dense).unwrap();
            for (start, count, length) in
                [(0, n, n), (n - 1, 1, n), (3, 4, 40), (10, 55, 66), (30, 2, n), (5, 0, 9)]
            {
                let tokens = Tokens { layout: Some(&layout), start, count, length };
                let row = |i: usize| dense[(start + i) * n..][..length].to_vec();
                let want: Vec<bool> = (0..count).flat_map(row).collect();
                assert!(seen(&tokens) == want, "{layout:?} {start} {count} {length}");
                let causal: Vec<bool> =
                    (0..count).flat_map(|i| (0..length).map(move |j| j <= start + i)).collect();
                assert!(seen(&Tokens { layout: None, ..tokens }) == causal);
            }
        }
    }
}
