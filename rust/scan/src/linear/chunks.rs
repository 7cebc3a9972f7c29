//! How the work is cut, and how states pass from chunk to chunk.

use super::{Dims, Piece, Run, Scan};
use crate::{Sequence, Sequences};
use sensorium_core::Float;
use sensorium_core::threads::{Disjoint, for_each};
use std::ops::Range;

/// Tokens of a chunk, where sequences are cut.
pub const CHUNK: usize = 4096;
/// Channels of a task where tokens are rows of channels: four vectors of `f32` at the widest.
const ACROSS: usize = 64;
/// Channels of a task where channels are rows of tokens.
const ALONG: usize = 16;
/// Tasks below which sequences are cut.
const FEW: usize = 4;
/// Work of an element, in the units of [`for_each`]: as much as its memory traffic takes.
const ELEMENT_WORK: usize = 16;

/// Blocks of channels, and pieces of sequences where these are cut.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    dims: Dims,
    sequences: &'a [Sequence],
    block: usize,
    cut: bool,
}

impl<'a> Plan<'a> {
    /// Depends on sizes alone, not on the number of threads.
    pub(super) fn new(dims: Dims, sequences: &'a Sequences) -> Self {
        let sequences = sequences.list();
        let block = if dims.channels_last { ACROSS } else { ALONG };
        let few = sequences.len() * dims.width.div_ceil(block) < FEW;
        let cut = few && sequences.iter().any(|s| s.end - s.start >= 2 * CHUNK);
        Self { dims, sequences, block, cut }
    }

    /// Scans everything: `start` writes the state before a sequence, `end` takes the one after it.
    pub(super) fn run<T: Float>(
        &self,
        scan: &Scan<'_, T>,
        backward: bool,
        start: impl Fn(&Sequence, Range<usize>, &mut [T]) + Sync,
        end: impl Fn(&Sequence, Range<usize>, &[T]) + Sync,
    ) {
        let width = self.dims.width;
        if self.cut {
            for sequence in self.sequences {
                let mut state = vec![T::ZERO; width];
                start(sequence, 0..width, &mut state);
                self.run_cut(scan, backward, sequence, &mut state);
                end(sequence, 0..width, &state);
            }
            return;
        }
        let blocks = width.div_ceil(self.block);
        let tokens = (self.dims.batch * self.dims.length).checked_div(self.sequences.len()).unwrap_or(0);
        let work = (tokens + 1) * self.block.min(width) * ELEMENT_WORK;
        for_each(self.sequences.len() * blocks, work, |task| {
            let (sequence, channels) = (self.sequences[task / blocks], self.channels(task % blocks));
            let mut state = vec![T::ZERO; channels.len()];
            start(&sequence, channels.clone(), &mut state);
            let piece = Piece { sequence, tokens: sequence.start..sequence.end };
            let state = &mut state[..];
            T::dispatch(Run {
                scan,
                piece: &piece,
                channels: channels.clone(),
                state,
                product: &mut [],
                backward,
            });
            end(&sequence, channels, state);
        });
    }

    fn channels(&self, block: usize) -> Range<usize> {
        block * self.block..((block + 1) * self.block).min(self.dims.width)
    }

    /// One sequence in chunks; `state` is the one before it, and then the one after it.
    fn run_cut<T: Float>(&self, scan: &Scan<'_, T>, backward: bool, sequence: &Sequence, state: &mut [T]) {
        let width = self.dims.width;
        // In the order that they are scanned in.
        let mut pieces: Vec<Piece> = (sequence.start..sequence.end)
            .step_by(CHUNK)
            .map(|t| Piece { sequence: *sequence, tokens: t..(t + CHUNK).min(sequence.end) })
            .collect();
        if self.dims.reverse != backward {
            pieces.reverse();
        }
        let blocks = width.div_ceil(self.block);
        let work = CHUNK * self.block.min(width) * ELEMENT_WORK;
        let (mut ends, mut products) =
            (vec![T::ZERO; pieces.len() * width], vec![T::ONE; pieces.len() * width]);
        let (shared_ends, shared_products) = (Disjoint::new(&mut ends), Disjoint::new(&mut products));
        let each = |from_zero: bool| {
            for_each(pieces.len() * blocks, work, |task| {
                let (i, channels) = (task / blocks, self.channels(task % blocks));
                let part = i * width + channels.start..i * width + channels.end;
                // SAFETY: each task has its own piece and channels.
                let state = unsafe { shared_ends.slice(part.clone()) };
                // SAFETY: as above.
                let product = if from_zero { unsafe { shared_products.slice(part) } } else { &mut [] };
                T::dispatch(Run { scan, piece: &pieces[i], channels, state, product, backward });
            });
        };
        each(true);
        for (i, piece) in pieces.iter().enumerate() {
            for d in 0..width {
                // SAFETY: no task is running.
                let (end, product) = unsafe {
                    let at = i * width + d..i * width + d + 1;
                    (&mut shared_ends.slice(at.clone())[0], shared_products.slice(at)[0])
                };
                let before = state[d];
                if end.is_finite() && product.is_finite() && before.is_finite() {
                    state[d] = product * before + *end;
                } else {
                    // What is written now is written again by the second pass.
                    let state = &mut state[d..=d];
                    T::dispatch(Run { scan, piece, channels: d..d + 1, state, product: &mut [], backward });
                }
                // What the second pass begins from.
                *end = before;
            }
        }
        each(false);
    }
}
