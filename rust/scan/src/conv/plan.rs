//! How the work is cut: sequences into pieces of fixed length, pieces into groups, channels into blocks.

use super::Dims;
use crate::{Sequence, Sequences};
use sensorium_core::threads;
use std::ops::Range;

/// Tokens of a piece where channels are rows of tokens: 16 kB of `f32`, so that a row's buffers stay in the first-level
/// cache.
const ALONG: usize = 4096;
/// Tokens of a piece where tokens are rows of channels.
const ACROSS: usize = 256;
/// Channels of a block where tokens are rows of channels: whole lines of memory, and still enough blocks for threads
/// where there are few tokens.
const CHANNELS: usize = 512;
/// Elements of a task where channels are rows of tokens.
const TASK: usize = 1 << 15;
/// Work of an element, in the units of [`threads::for_each`]: as much as its memory traffic takes.
const ELEMENT_WORK: usize = 16;

/// Part of a sequence.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The sequence it is of.
    pub(super) sequence: Sequence,
    /// Its tokens. Unless it is the first of its sequence, at least `K - 1` precede it.
    pub(super) tokens: Range<usize>,
}

impl Piece {
    /// Whether the sequence begins with it.
    pub(super) fn is_first(&self) -> bool {
        self.tokens.start == self.sequence.start
    }
}

/// All pieces, in order; each sequence has one at least.
#[derive(Debug)]
pub(super) struct Plan {
    pieces: Vec<Piece>,
    /// Pieces that one task takes, as ranges of `pieces`.
    groups: Vec<Range<usize>>,
    width: usize,
    /// Channels that one task takes.
    block: usize,
    work: usize,
}

impl Plan {
    /// Depends on sizes alone, not on the number of threads.
    pub(super) fn new(dims: Dims, sequences: &Sequences) -> Self {
        let most = if dims.channels_last { ACROSS } else { ALONG }.max(dims.before());
        let mut pieces = Vec::with_capacity(sequences.list().len());
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut room = 0;
        for &sequence in sequences.list() {
            let mut start = sequence.start;
            loop {
                let tokens = start..sequence.end.min(start + most);
                start = tokens.end;
                match groups.last_mut() {
                    Some(group) if tokens.len() <= room => group.end += 1,
                    _ => {
                        groups.push(pieces.len()..pieces.len() + 1);
                        room = most;
                    }
                }
                // An empty sequence takes room too, so that groups end.
                room = room.saturating_sub(tokens.len().max(1));
                pieces.push(Piece { sequence, tokens });
                if start == sequence.end {
                    break;
                }
            }
        }
        let tokens = most.min(dims.batch * dims.length).max(1);
        let block = if dims.channels_last { CHANNELS } else { (TASK / tokens).max(1) };
        let work = tokens * block.min(dims.width) * ELEMENT_WORK;
        Self { pieces, groups, width: dims.width, block, work }
    }

    /// Groups of pieces.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Calls `f` with the index of a group, its pieces and a block of channels, for all of them, on several threads.
    pub(super) fn for_each(&self, f: impl Fn(usize, &[Piece], Range<usize>) + Sync) {
        let blocks = self.width.div_ceil(self.block);
        threads::for_each(self.groups.len() * blocks, self.work, |task| {
            let (group, start) = (task / blocks, task % blocks * self.block);
            let pieces = &self.pieces[self.groups[group].clone()];
            f(group, pieces, start..(start + self.block).min(self.width));
        });
    }
}
