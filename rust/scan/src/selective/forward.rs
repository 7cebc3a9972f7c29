//! The scan forward: a task takes some blocks of channels through the tiles of a span.

use super::coefficients::{Source, begin, channel_vector, load_run, store_states};
use super::recurrence::{Block, scan};
use super::stage::{Ahead, gather, scatter};
use super::tiles::{TILE, Tile, Tiles};
use super::view::ViewMut;
use super::{Dims, Inputs, Run, runs};
use crate::Sequences;
use crate::scratch::Scratch;
use sensorium_core::error::{check_len, product};
use sensorium_core::math::{sigmoid, softplus};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Float, Kernel, Result, Simd};

/// What a scan writes; what is `None` is not wanted.
#[derive(Debug, Default)]
pub struct Outputs<'a, T> {
    /// `(batch, 1, token, channel)`.
    pub y: Option<ViewMut<'a, T>>,
    /// `(states, D, S)`, the last state of each sequence that keeps one.
    pub last: Option<&'a mut [T]>,
    /// States within sequences for the backward, [`checkpoints`] times `(S, D)`.
    pub checkpoints: Option<&'a mut [T]>,
}

/// Number of states that a backward needs.
#[must_use]
pub fn checkpoints(sequences: &Sequences) -> usize {
    Tiles::new(sequences).checkpoints
}

/// Runs the scan.
///
/// # Errors
/// Where a size does not fit `dims`.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    inputs: &Inputs<'_, T>,
    outputs: Outputs<'_, T>,
) -> Result<()> {
    inputs.check(&dims, sequences)?;
    let tiles = Tiles::new(sequences);
    let Outputs { y, last, checkpoints } = outputs;
    y.as_ref().map_or(Ok(()), |y| y.check_shape("y", dims.inputs()))?;
    let state = dims.channels * dims.states;
    let sizes = |arg, count, slice: &Option<&mut [T]>| {
        let want = product(arg, &[count, state])?;
        slice.as_ref().map_or(Ok(()), |slice| check_len(arg, slice, want))
    };
    sizes("last_state", sequences.states(), &last)?;
    sizes("checkpoints", tiles.checkpoints, &checkpoints)?;
    let runs = runs(&dims, tiles.spans.len(), TASKS, MOST_UNITS);
    let (last, checkpoints) = (last.map(Disjoint::new), checkpoints.map(Disjoint::new));
    let work = tiles.longest() * runs.first().map_or(0, |run| run.count) * (dims.states + 1) * WORK;
    for_each(tiles.spans.len() * runs.len(), work, |task| {
        let (span, run) = (task / runs.len(), runs[task % runs.len()]);
        let tiles = &tiles.list[tiles.spans[span].clone()];
        let (y, last, checkpoints) = (y.as_ref(), last.as_ref(), checkpoints.as_ref());
        T::dispatch(Task { dims, inputs, tiles, run, y, last, checkpoints });
    });
    Ok(())
}

/// Tasks that are enough for any number of threads.
const TASKS: usize = 32;
/// Most units of a task: the transposition of `B` and `C` is then 3 % of the work.
const MOST_UNITS: usize = 4;
/// Work of a token, channel and state, in floating-point operations.
const WORK: usize = 20;

struct Task<'a, T> {
    dims: Dims,
    inputs: &'a Inputs<'a, T>,
    tiles: &'a [Tile],
    run: Run,
    y: Option<&'a ViewMut<'a, T>>,
    last: Option<&'a Disjoint<'a, T>>,
    checkpoints: Option<&'a Disjoint<'a, T>>,
}

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        if self.inputs.shared() { self.of::<S, true>(s) } else { self.of::<S, false>(s) }
    }
}

/// Tiles `[token][lane]` of a block.
#[derive(Clone, Copy)]
struct Stage<T> {
    u: *mut T,
    delta: *mut T,
    input: *mut T,
    z: *mut T,
    y: *mut T,
}

impl<T: Float> Task<'_, T> {
    #[inline(always)]
    fn of<S: Simd<T>, const SHARED: bool>(self, s: S) {
        let Self { dims, inputs, tiles, run, .. } = self;
        let (states, lanes) = (dims.states, S::LANES);
        let blocks = run.count.div_ceil(lanes);
        let of_block = states * lanes;
        let kept = blocks * of_block;
        let size = |of| Source::size(of, states, lanes, blocks, SHARED);
        let sizes = [kept, kept, size(&inputs.b), size(&inputs.c)];
        let mut scratch = Scratch::new::<T>(&[&sizes[..], &[TILE * lanes; 5]].concat());
        let [a, h, b, c] = sizes.map(|size| scratch.take::<T>(size));
        let [u, delta, input, z, y] = [TILE * lanes; 5].map(|size| scratch.take::<T>(size));
        let stage = Stage { u, delta, input, z, y };
        // SAFETY: buffers are as large as their sizes say, views and slices were checked against `dims`, and every
        // task has channels and tokens of its own.
        unsafe {
            load_run(s, inputs.a, run, states, T::LOG2_E, a);
            let b = Source::new(s, inputs.b, run, states, b);
            let c = Source::new(s, inputs.c, run, states, c);
            for (i, tile) in tiles.iter().enumerate() {
                let next = tiles.get(i + 1).unwrap_or(tile);
                let over_b = b.over::<S, SHARED>(s, tile, run.group, states);
                let over_c = c.over::<S, SHARED>(s, tile, run.group, states);
                for block in 0..blocks {
                    let (first, channels) = run.block(block, lanes);
                    let at = block * of_block;
                    let h = h.add(at);
                    self.enter(s, tile, first, channels, h);
                    gather_inputs(s, inputs, tile, first, channels, &stage);
                    let block = Block {
                        a: a.add(at),
                        h,
                        delta,
                        input,
                        b: b.of_block(over_b, at),
                        c: c.of_block(over_c, at),
                        y,
                        ahead: self.ahead(next, first),
                    };
                    scan::<T, S, SHARED>(s, &block, states, tile.tokens);
                    self.leave(s, tile, first, channels, h, &stage);
                }
            }
        }
    }

    /// Where a block's tensors are in a tile.
    #[inline(always)]
    fn ahead(&self, tile: &Tile, first: usize) -> [Ahead<T>; 4] {
        let (inputs, row, start) = (self.inputs, tile.sequence.row, tile.start);
        let u = Ahead::new(inputs.u.at(row, 0, start, first), inputs.u.strides().step());
        let delta = Ahead::new(inputs.delta.at(row, 0, start, first), inputs.delta.strides().step());
        let z = match &inputs.z {
            Some(z) => Ahead::new(z.at(row, 0, start, first), z.strides().step()),
            None => u,
        };
        let y = match self.y {
            Some(y) => Ahead::new(y.at(row, 0, start, first).cast_const(), y.strides().step()),
            None => u,
        };
        [u, delta, z, y]
    }

    /// The states before a tile: as they are, and kept, or those that a sequence begins with.
    ///
    /// # Safety
    /// `h` has `states * LANES` elements; no other task has these channels and this tile.
    #[inline(always)]
    unsafe fn enter<S: Simd<T>>(&self, s: S, tile: &Tile, first: usize, channels: usize, h: *mut T) {
        let (all, states) = (self.dims.channels, self.dims.states);
        // SAFETY: as the caller vouches.
        unsafe {
            match (tile.checkpoint, self.checkpoints) {
                (None, _) => begin(s, self.inputs, tile, (all, first, channels), states, h),
                (Some(index), Some(kept)) => {
                    save(s, h, states, channels, kept, index * states * all + first, all);
                }
                (Some(_), None) => {}
            }
        }
    }

    /// Writes the results of a tile, and the states after a sequence.
    ///
    /// # Safety
    /// As for [`enter`](Self::enter); tiles have `TILE * LANES` elements.
    #[inline(always)]
    unsafe fn leave<S: Simd<T>>(
        &self,
        s: S,
        tile: &Tile,
        first: usize,
        channels: usize,
        h: *const T,
        stage: &Stage<T>,
    ) {
        let (row, start, tokens, states) = (tile.sequence.row, tile.start, tile.tokens, self.dims.states);
        // SAFETY: as the caller vouches.
        unsafe {
            if let Some(y) = self.y {
                pass_by(s, self.inputs.d, first, channels, stage.u, stage.y, tokens);
                if let Some(z) = &self.inputs.z {
                    gather(s, z.at(row, 0, start, first), z.strides().step(), tokens, channels, stage.z);
                    apply_gate(s, stage.z, stage.y, tokens);
                }
                scatter(s, stage.y, tokens, channels, y.at(row, 0, start, first), y.strides().step());
            }
            if let (true, Some(last), Some(index)) = (tile.ends(), self.last, tile.sequence.last) {
                let from = (index * self.dims.channels + first) * states;
                store_states(h, states, channels, S::LANES, last.slice(from..from + channels * states));
            }
        }
    }
}

/// Keeps the states as rows of `channels`, from element `at` on.
///
/// # Safety
/// `h` has `states * LANES` elements; no other task writes these.
#[inline(always)]
unsafe fn save<T: Float, S: Simd<T>>(
    s: S,
    h: *const T,
    states: usize,
    width: usize,
    kept: &Disjoint<'_, T>,
    at: usize,
    channels: usize,
) {
    for n in 0..states {
        let at = at + n * channels;
        // SAFETY: as the caller vouches.
        unsafe {
            let v = s.load_ptr(h.add(n * S::LANES));
            let row = kept.slice(at..at + width);
            if width == S::LANES { s.store(row, v) } else { s.store_head(row, v) }
        }
    }
}

/// `u`, the step sizes and their product, over a tile.
///
/// # Safety
/// Tiles have `TILE * LANES` elements.
#[inline(always)]
unsafe fn gather_inputs<T: Float, S: Simd<T>>(
    s: S,
    inputs: &Inputs<'_, T>,
    tile: &Tile,
    first: usize,
    channels: usize,
    stage: &Stage<T>,
) {
    let (row, start, tokens) = (tile.sequence.row, tile.start, tile.tokens);
    // SAFETY: the views have these channels and tokens; the caller vouches for the tiles.
    unsafe {
        for (view, buffer) in [(&inputs.u, stage.u), (&inputs.delta, stage.delta)] {
            gather(s, view.at(row, 0, start, first), view.strides().step(), tokens, channels, buffer);
        }
        let bias = channel_vector(s, inputs.delta_bias, first, channels);
        let Stage { u, delta, input, .. } = *stage;
        step_sizes(s, bias, inputs, delta, delta, tokens);
        for t in 0..tokens {
            let at = t * S::LANES;
            s.store_ptr(input.add(at), s.mul(s.load_ptr(delta.add(at)), s.load_ptr(u.add(at))));
        }
    }
}

/// Step sizes from what they are given as, which `raw` becomes with its bias. The tiles may be the same.
///
/// # Safety
/// They have `tokens * LANES` elements.
#[inline(always)]
pub(super) unsafe fn step_sizes<T: Float, S: Simd<T>>(
    s: S,
    bias: S::V,
    inputs: &Inputs<'_, T>,
    raw: *mut T,
    delta: *mut T,
    tokens: usize,
) {
    for t in 0..tokens {
        let at = t * S::LANES;
        // SAFETY: as the caller vouches.
        unsafe {
            let mut step = s.load_ptr(raw.add(at));
            if inputs.delta_bias.is_some() {
                step = s.add(step, bias);
                s.store_ptr(raw.add(at), step);
            }
            s.store_ptr(delta.add(at), if inputs.softplus { softplus(s, step) } else { step });
        }
    }
}

/// `y += D u` over a tile, where there is a `D`.
///
/// # Safety
/// The tiles have `tokens * LANES` elements.
#[inline(always)]
pub(super) unsafe fn pass_by<T: Float, S: Simd<T>>(
    s: S,
    d: Option<&[T]>,
    first: usize,
    channels: usize,
    u: *const T,
    y: *mut T,
    tokens: usize,
) {
    if d.is_none() {
        return;
    }
    let d = channel_vector(s, d, first, channels);
    for t in 0..tokens {
        let at = t * S::LANES;
        // SAFETY: as the caller vouches.
        unsafe { s.store_ptr(y.add(at), s.mul_add(d, s.load_ptr(u.add(at)), s.load_ptr(y.add(at)))) };
    }
}

/// `y *= silu(z)` over a tile.
///
/// # Safety
/// The tiles have `tokens * LANES` elements.
#[inline(always)]
unsafe fn apply_gate<T: Float, S: Simd<T>>(s: S, z: *const T, y: *mut T, tokens: usize) {
    for t in 0..tokens {
        let at = t * S::LANES;
        // SAFETY: as the caller vouches.
        unsafe {
            let z = s.load_ptr(z.add(at));
            s.store_ptr(y.add(at), s.mul(s.load_ptr(y.add(at)), s.mul(z, sigmoid(s, z))));
        }
    }
}
