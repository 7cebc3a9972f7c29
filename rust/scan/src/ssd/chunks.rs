//! Sequences cut into chunks, and chunks taken in windows.
//!
//! A chunk never reaches into a second sequence, so that nothing of one gets into another.

use crate::Sequences;

/// Longest chunk: its square of decays, 256 kB of `f32`, stays in the second-level cache.
pub(super) const LONGEST: usize = 256;

/// Tokens of a window: so far apart are the states that backward starts over from.
const WINDOW: usize = 512;

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) start: usize,
    pub(super) len: usize,
    /// Whether it begins a sequence, and the initial state of it.
    pub(super) first: bool,
    pub(super) initial: Option<usize>,
    /// Whether it ends a sequence, and the last state that is kept of it.
    pub(super) last: bool,
    pub(super) kept: Option<usize>,
}

/// Chunks of every row.
pub(super) struct Chunks {
    rows: Vec<Vec<Chunk>>,
    /// Most tokens of a chunk.
    pub(super) longest: usize,
    /// Chunks of a window.
    pub(super) window: usize,
    /// Windows of the row that has the most.
    pub(super) windows: usize,
}

impl Chunks {
    pub(super) fn new(sequences: &Sequences, size: usize) -> Self {
        let size = size.clamp(1, LONGEST);
        let mut rows: Vec<Vec<Chunk>> = (0..sequences.batch()).map(|_| Vec::new()).collect();
        let mut longest = 1;
        for sequence in sequences.list() {
            let mut start = sequence.start;
            while start < sequence.end {
                let len = size.min(sequence.end - start);
                let (first, last) = (start == sequence.start, start + len == sequence.end);
                rows[sequence.row].push(Chunk {
                    start,
                    len,
                    first,
                    initial: sequence.initial.filter(|_| first),
                    last,
                    kept: sequence.last.filter(|_| last),
                });
                longest = longest.max(len);
                start += len;
            }
        }
        let window = (WINDOW / size).max(1);
        let windows = rows.iter().map(Vec::len).max().unwrap_or(0).div_ceil(window);
        Self { rows, longest, window, windows }
    }

    /// Chunks of a row.
    pub(super) fn row(&self, row: usize) -> &[Chunk] {
        &self.rows[row]
    }

    /// Those of them that are in windows `from..to`.
    pub(super) fn of_windows(&self, row: usize, from: usize, to: usize) -> &[Chunk] {
        let chunks = self.row(row);
        let end = |window: usize| (window * self.window).min(chunks.len());
        &chunks[end(from)..end(to)]
    }
}
