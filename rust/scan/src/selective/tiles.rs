//! A batch cut into tiles of tokens, none of which holds a sequence's beginning but at its own.
//!
//! The state is kept where a tile begins inside a sequence: a checkpoint from which the backward computes the states
//! within. Consecutive sequences are gathered into spans, the parts of the time axis that run in parallel.

use crate::{Sequence, Sequences};
use std::ops::Range;

/// Tokens of a tile: inputs, result and coefficients of a block of channels stay in the first-level cache (20 kB).
pub(super) const TILE: usize = 64;
/// Tokens from which a span ends with the sequence at hand.
const SPAN: usize = 1024;

/// Tokens `start..start + tokens` of a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) sequence: Sequence,
    pub(super) start: usize,
    pub(super) tokens: usize,
    /// Where the state before the first token is kept; `None` where that is the sequence's initial state.
    pub(super) checkpoint: Option<usize>,
}

impl Tile {
    /// Whether the last token is the sequence's last.
    pub(super) fn ends(&self) -> bool {
        self.start + self.tokens == self.sequence.end
    }
}

/// All tiles of a batch, in order.
#[derive(Debug)]
pub(super) struct Tiles {
    pub(super) list: Vec<Tile>,
    /// Tiles of each span.
    pub(super) spans: Vec<Range<usize>>,
    pub(super) checkpoints: usize,
}

impl Tiles {
    pub(super) fn new(sequences: &Sequences) -> Self {
        let mut tiles = Self { list: Vec::new(), spans: Vec::new(), checkpoints: 0 };
        let (mut first, mut tokens) = (0, 0);
        let mut row = 0;
        for &sequence in sequences.list() {
            if sequence.row != row || tokens >= SPAN {
                tiles.end_span(&mut first);
                (row, tokens) = (sequence.row, 0);
            }
            tokens += sequence.end - sequence.start;
            tiles.cut(sequence);
        }
        tiles.end_span(&mut first);
        tiles
    }

    fn end_span(&mut self, first: &mut usize) {
        if *first < self.list.len() {
            self.spans.push(*first..self.list.len());
        }
        *first = self.list.len();
    }

    fn cut(&mut self, sequence: Sequence) {
        let mut start = sequence.start;
        loop {
            let tokens = TILE.min(sequence.end - start);
            let checkpoint = (start > sequence.start).then_some(self.checkpoints);
            self.checkpoints += usize::from(checkpoint.is_some());
            self.list.push(Tile { sequence, start, tokens, checkpoint });
            start += tokens;
            if start == sequence.end {
                break;
            }
        }
    }

    /// Most tokens of a span.
    pub(super) fn longest(&self) -> usize {
        self.spans
            .iter()
            .map(|span| self.list[span.clone()].iter().map(|t| t.tokens).sum())
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_token_once_and_begin_with_sequences() {
        let sequences = Sequences::from_offsets(3000, &[0, 5, 5, 1200, 1300, 3000]).unwrap();
        let tiles = Tiles::new(&sequences);
        let mut at = 0;
        let mut kept = 0;
        for tile in &tiles.list {
            assert_eq!(tile.start, at);
            at += tile.tokens;
            assert!(tile.tokens <= TILE && at <= tile.sequence.end);
            assert_eq!(tile.checkpoint.is_none(), tile.start == tile.sequence.start);
            if let Some(index) = tile.checkpoint {
                assert_eq!(index, kept);
                kept += 1;
            }
        }
        assert_eq!((at, kept), (3000, tiles.checkpoints));
        assert_eq!(tiles.spans.len(), 2);
        assert_eq!(tiles.list[tiles.spans[1].start].start, 1200);
        assert_eq!(tiles.longest(), 1800);
        // An empty sequence has a tile, which hands its state on.
        assert!(tiles.list.iter().any(|t| t.tokens == 0 && t.ends()));
        assert!(Tiles::new(&Sequences::whole(0, 7)).list.is_empty());
    }
}
