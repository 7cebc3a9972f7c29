//! What a band of new queries sees of the cached keys: a few key ranges, found without looking at the rest of the
//! layout. One query costs a search over the segments and a copy of its ranges.

use super::Tokens;
use crate::layout::Layout;
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
    match layout {
        None => {
            let bands = count.div_ceil(BLOCK);
            let band = |i| {
                let queries = count * i / bands..count * (i + 1) / bands;
                let pieces = vec![causal(start + queries.start..start + queries.end)];
                (queries, pieces)
            };
            (0..bands).map(band).collect()
        }
        Some(layout) if count == 1 => vec![(0..1, of_one(layout, start as u32, length as u32))],
        Some(layout) => {
            let plan = Plan::window(layout, start as u32..(start + count) as u32, 0..length as u32);
            let band = |block: &Block| {
                let queries = block.queries.start as usize..block.queries.end as usize;
                let of = |visit: &Visit| piece(visit.keys.clone(), plan.mask(visit), queries.len());
                let pieces = plan.visits(block).iter().map(of).collect();
                (queries, pieces)
            };
            plan.blocks().iter().map(band).collect()
        }
    }
}

/// What one query sees of the first `length` keys: no masks.
fn of_one(layout: &Layout, query: u32, length: u32) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let s = layout.segment_of(query);
    let (own, ranges) = (layout.own(s, query), layout.ranges(s));
    let before = ranges.partition_point(|r| r.start < own.start);
    for range in ranges[..before].iter().chain([&own]).chain(&ranges[before..]) {
        let keys = range.start.min(length)..range.end.min(length);
        match out.last_mut() {
            _ if keys.is_empty() => {}
            Some(last) if last.keys.end == keys.start => {
                last.keys.end = keys.end;
                last.whole.end = keys.end;
            }
            _ => out.push(piece(keys, None, 1)),
        }
    }
    out
}

/// What `queries` see where each sees itself and what comes before it.
fn causal(queries: Range<usize>) -> Piece {
    let mut mask = Mask { lo: [0; BLOCK], hi: [0; BLOCK] };
    for (hi, query) in mask.hi.iter_mut().zip(queries.clone()) {
        *hi = query as u32 + 1;
    }
    piece(0..queries.end as u32, (queries.len() > 1).then_some(&mask), queries.len())
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
