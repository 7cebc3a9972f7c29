//! Forward: `y`, and the states that the sequences leave.
//!
//! Chunks are taken in windows. First the squares `C B^T` of a window are computed, one for each group and chunk; then
//! a task is a head of a row and goes through the chunks of the window with its state, kept as `(S, P)`.

use super::chunks::{Chunk, Chunks};
use super::decay::Decays;
use super::rows::{Matrix, Rows, pack, padded, transpose};
use super::scratch::{Scratch, Shared};
use super::tile::{Half, Operands, Product, Start};
use super::{Dims, Inputs, states_len};
use crate::Sequences;
use sensorium_core::isa::part::{load_first, store_first};
use sensorium_core::math::sigmoid;
use sensorium_core::{Float, Kernel, MAX_LANES, Result, Simd, error::check_len, error::product, threads};

/// Elements of the squares `C B^T` that are held at a time: 8 MB of `f32`.
const SQUARES: usize = 1 << 21;

/// Elements that [`ssd_forward`](crate::ScanKernels::ssd_forward) writes to `checkpoints`: a state `(S, P)` in padded rows for each window, row and head.
///
/// # Errors
/// [`Error::Overflow`](sensorium_core::Error::Overflow) where there are too many.
pub fn checkpoints(dims: Dims, sequences: &Sequences, chunk: usize) -> Result<usize> {
    let windows = Chunks::new(sequences, chunk).windows;
    product("chunk_size", &[windows, dims.batch, dims.heads, dims.state, padded(dims.width)])
}

/// The scan. `last (states, H, P, S)` takes the states that sequences leave; `checkpoints` those at the begin of each
/// window, for backward.
///
/// # Errors
/// [`Error`](sensorium_core::Error) naming the argument that does not fit.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    chunk: usize,
    inputs: &Inputs<'_, T>,
    y: &mut [T],
    last: Option<&mut [T]>,
    checkpoints: Option<&mut [T]>,
) -> Result<()> {
    inputs.check(dims, sequences)?;
    check_len("out", y, product("out", &dims.tokens())?)?;
    if let Some(last) = &last {
        check_len("final_states", last, states_len(dims, sequences, "final_states")?)?;
    }
    let chunks = Chunks::new(sequences, chunk);
    if let Some(checkpoints) = &checkpoints {
        let want = chunks.windows * dims.batch * dims.heads * dims.state * padded(dims.width);
        check_len("checkpoints", checkpoints, want)?;
    }
    let last = last.map(|last| {
        empty_sequences(dims, sequences, inputs.initial, last);
        Shared(last.as_mut_ptr())
    });
    let checkpoints = checkpoints.map(|c| Shared(c.as_mut_ptr()));
    walk(dims, &chunks, inputs, Some(Shared(y.as_mut_ptr())), last, checkpoints);
    Ok(())
}

/// Goes through all chunks, and writes what is asked for.
pub(super) fn walk<T: Float>(
    dims: Dims,
    chunks: &Chunks,
    inputs: &Inputs<'_, T>,
    y: Option<Shared<T>>,
    last: Option<Shared<T>>,
    checkpoints: Option<Shared<T>>,
) {
    let Dims { batch, heads, width, groups, state, .. } = dims;
    let state_size = state * padded(width);
    if batch * heads * width == 0 {
        return;
    }
    let square = chunks.longest * padded(chunks.longest);
    let slots = batch * groups * chunks.window;
    let span = (SQUARES / (square * slots)).clamp(1, chunks.windows.max(1));
    let carried = if span < chunks.windows { batch * heads * state_size } else { 0 };
    let sizes = [slots * span * square, carried];
    let mut scratch = Scratch::new::<T>(&sizes);
    let squares = Shared(scratch.take::<T>(sizes[0]));
    let carried = (carried > 0).then(|| Shared(scratch.take::<T>(sizes[1])));
    for from in (0..chunks.windows).step_by(span) {
        let windows = from..(from + span).min(chunks.windows);
        let most = span * chunks.window;
        let places = Squares { dims, data: squares, square, most, first: 0, rows: batch };
        if y.is_some() {
            places.fill(chunks, windows.clone(), (&inputs.c, &inputs.b), Half::Lower);
        }
        let tokens = most * chunks.longest;
        let work = tokens * width * (2 * state + chunks.longest / 2);
        threads::for_each(batch * heads, work, |task| {
            let (row, head) = (task / heads, task % heads);
            T::dispatch(Walk {
                dims,
                chunks,
                windows: windows.clone(),
                inputs,
                row,
                head,
                squares: places,
                carried: carried.map(|carried| carried.at(task * state_size)),
                y: y.map(|y| y.at((row * dims.length * heads + head) * width)),
                last,
                checkpoints,
            });
        });
    }
}

/// The states that empty sequences leave: those that they begin from.
pub(super) fn empty_sequences<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    initial: Option<&[T]>,
    last: &mut [T],
) {
    let size = dims.heads * dims.width * dims.state;
    for sequence in sequences.list().iter().filter(|s| s.start == s.end) {
        let Some(kept) = sequence.last else { continue };
        let to = &mut last[kept * size..(kept + 1) * size];
        match (initial, sequence.initial) {
            (Some(initial), Some(from)) => to.copy_from_slice(&initial[from * size..(from + 1) * size]),
            _ => to.fill(T::ZERO),
        }
    }
}

/// Where the squares `C B^T` of some windows are.
#[derive(Clone, Copy)]
pub(super) struct Squares<T> {
    pub(super) dims: Dims,
    pub(super) data: Shared<T>,
    /// Elements of a square.
    pub(super) square: usize,
    /// Most chunks of a row.
    pub(super) most: usize,
    /// Rows that have some, from the first on.
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl<T: Float> Squares<T> {
    /// The square of a group and of the chunk `slot` of those windows; rows are [`padded`].
    #[inline(always)]
    pub(super) fn of(&self, row: usize, group: usize, slot: usize) -> *mut T {
        self.data.at((((row - self.first) * self.dims.groups + group) * self.most + slot) * self.square)
    }

    /// Computes one half of them: products of rows of `left` and `right`.
    pub(super) fn fill(
        &self,
        chunks: &Chunks,
        windows: std::ops::Range<usize>,
        (left, right): (&Rows<'_, T>, &Rows<'_, T>),
        wanted: Half,
    ) {
        let Dims { groups, state, .. } = self.dims;
        let work = chunks.longest * chunks.longest * state;
        threads::for_each(self.rows * groups * self.most, work, |task| {
            let (row, group, slot) =
                (self.first + task / (groups * self.most), task / self.most % groups, task % self.most);
            if let Some(chunk) = chunks.of_windows(row, windows.start, windows.end).get(slot) {
                T::dispatch(Square {
                    left: matrix(left, row, chunk, group),
                    right: matrix(right, row, chunk, group),
                    len: chunk.len,
                    state,
                    wanted,
                    out: self.of(row, group, slot),
                });
            }
        });
    }
}

/// The rows of a chunk.
#[inline(always)]
pub(super) fn matrix<T: Float>(rows: &Rows<'_, T>, row: usize, chunk: &Chunk, head: usize) -> Matrix<T> {
    Matrix { data: rows.row(row, chunk.start, head), stride: rows.token() }
}

/// Products of the rows of two matrices.
struct Square<T> {
    left: Matrix<T>,
    right: Matrix<T>,
    len: usize,
    state: usize,
    wanted: Half,
    out: *mut T,
}

impl<T: Float> Kernel<T> for Square<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let (len, ld) = (self.len, padded(self.len));
        let mut scratch = Scratch::new::<T>(&[self.state * ld]);
        let turned = scratch.take::<T>(self.state * ld);
        // SAFETY: the chunk's rows exist, and the buffers have room for them.
        unsafe {
            for s in 0..self.state {
                for i in len..ld {
                    *turned.add(s * ld + i) = T::ZERO;
                }
            }
            transpose(self.right, len, self.state, turned, ld);
            let Matrix { data, stride } = self.left;
            let operands = Operands { a: data, row: stride, col: 1, b: turned, ldb: ld, n: self.state };
            Product { wanted: self.wanted, ..Product::new(operands, self.out, ld, len, len) }.run();
        }
    }
}

/// A head of a row, over the chunks of some windows.
struct Walk<'a, T> {
    dims: Dims,
    chunks: &'a Chunks,
    windows: std::ops::Range<usize>,
    inputs: &'a Inputs<'a, T>,
    row: usize,
    head: usize,
    squares: Squares<T>,
    /// Where the state is left for the next windows.
    carried: Option<*mut T>,
    /// The row of the first token; only states are wanted where there is none.
    y: Option<*mut T>,
    last: Option<Shared<T>>,
    checkpoints: Option<Shared<T>>,
}

/// Scratch of a head.
struct Buffers<T> {
    decays: Decays<T>,
    /// `(S, P)`: the state.
    state: *mut T,
    /// `(Q, Q)`: products times decays and step sizes.
    weights: *mut T,
    /// `(Q, P)`: `x` in padded rows, where it is not in memory.
    x: *mut T,
    /// `(Q, P)`: `x` times what is left of it at the end of the chunk.
    left: *mut T,
    /// `(Q, P)`: results before the skip and the gate.
    y: *mut T,
    /// `(P,)`: the skip's factors.
    skip: *mut T,
}

impl<T: Float> Kernel<T> for Walk<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Dims { width, state, .. } = self.dims;
        let (most, wide) = (self.chunks.longest, padded(width));
        let (tokens, weights) = (most * wide, most * padded(most));
        let whole = width.is_multiple_of(MAX_LANES);
        let own = if self.carried.is_some() { 0 } else { state * wide };
        let x = if whole { 0 } else { tokens };
        let mut sizes = [padded(most); 6 + Decays::<f32>::BUFFERS];
        sizes[..6].copy_from_slice(&[own, weights, x, tokens, tokens, wide]);
        let mut scratch = Scratch::new::<T>(&sizes);
        let own = scratch.take(own);
        let mut buffers = Buffers {
            state: self.carried.unwrap_or(own),
            weights: scratch.take(weights),
            x: scratch.take(x),
            left: scratch.take(tokens),
            y: scratch.take(tokens),
            skip: scratch.take(wide),
            decays: Decays::new(&mut scratch, most),
        };
        // SAFETY: the buffers have room for the longest chunk; the rows of every chunk exist, since sizes were
        // checked; the elements written belong to this head alone.
        unsafe {
            skip_factors(self.inputs.skip, self.dims, self.head, buffers.skip);
            let chunks = self.chunks.of_windows(self.row, self.windows.start, self.windows.end);
            for slot in 0..chunks.len() {
                self.chunk(s, &mut buffers, slot, &chunks[slot]);
            }
        }
    }
}

/// Writes the skip's factors of a head in a padded row.
///
/// # Safety
/// `to` has room for it.
#[inline(always)]
pub(super) unsafe fn skip_factors<T: Float>(skip: Option<&[T]>, dims: Dims, head: usize, to: *mut T) {
    let width = dims.width;
    for p in 0..padded(width) {
        let value = match skip {
            Some(skip) if skip.len() == dims.heads && p < width => skip[head],
            Some(skip) if p < width => skip[head * width + p],
            _ => T::ZERO,
        };
        // SAFETY: as the caller vouches.
        unsafe { *to.add(p) = value };
    }
}

impl<T: Float> Walk<'_, T> {
    #[inline(always)]
    unsafe fn chunk<S: Simd<T>>(&self, s: S, buffers: &mut Buffers<T>, slot: usize, chunk: &Chunk) {
        let Dims { length, heads, width, state, .. } = self.dims;
        let (len, wide) = (chunk.len, padded(width));
        let group = self.head / self.dims.heads_of_group();
        let inputs = self.inputs;
        // SAFETY: as the caller vouches.
        unsafe {
            let mut some = true;
            if chunk.first {
                some = begin(self.dims, inputs.initial, chunk.initial, self.head, buffers.state);
            }
            if let Some(checkpoints) = self.checkpoints
                && slot.is_multiple_of(self.chunks.window)
            {
                let window = self.windows.start + slot / self.chunks.window;
                let place = (window * self.dims.batch + self.row) * heads + self.head;
                let to = checkpoints.at(place * state * wide);
                std::ptr::copy_nonoverlapping(buffers.state, to, state * wide);
            }
            let place = (self.row * length + chunk.start, heads, self.head);
            buffers.decays.fill(s, &inputs.steps, place, len, inputs.a[self.head]);
            let mut x = matrix(&inputs.x, self.row, chunk, self.head);
            if !width.is_multiple_of(MAX_LANES) {
                pack(x, len, width, buffers.x);
                x = Matrix { data: buffers.x, stride: wide };
            }
            let (b, c) =
                (matrix(&inputs.b, self.row, chunk, group), matrix(&inputs.c, self.row, chunk, group));
            if let Some(y) = self.y {
                self.read(s, buffers, (slot, chunk), (x, c), some);
                self.finish(s, buffers, x, chunk, y);
            }
            let kept = self.last.and_then(|last| Some((last, chunk.kept?)));
            if chunk.last && kept.is_none() {
                return;
            }
            scale_rows(s, x, &buffers.decays, len, wide, buffers.left);
            let added = Operands { a: b.data, row: 1, col: b.stride, b: buffers.left, ldb: wide, n: len };
            let start = if some { Start::Scaled(buffers.decays.whole, buffers.state) } else { Start::Zero };
            Product { start, ..Product::new(added, buffers.state, wide, state, width) }.run();
            if let Some((last, kept)) = kept {
                let to = last.at((kept * heads + self.head) * width * state);
                turn_state(Matrix { data: buffers.state, stride: wide }, state, width, to);
            }
        }
    }

    /// What the state before the chunk and the chunk itself give.
    #[inline(always)]
    unsafe fn read<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        (slot, chunk): (usize, &Chunk),
        (x, c): (Matrix<T>, Matrix<T>),
        some: bool,
    ) {
        let (len, wide) = (chunk.len, padded(self.dims.width));
        let group = self.head / self.dims.heads_of_group();
        let n = if some { self.dims.state } else { 0 };
        // SAFETY: as the caller vouches.
        unsafe {
            weigh(s, self.squares.of(self.row, group, slot), &buffers.decays, len, buffers.weights);
            let read = Operands { a: c.data, row: c.stride, col: 1, b: buffers.state, ldb: wide, n };
            let (a, row) = (buffers.weights, padded(len));
            Product {
                factor: buffers.decays.before,
                second: Operands { a, row, col: 1, b: x.data, ldb: x.stride, n: len },
                half: Half::Lower,
                ..Product::new(read, buffers.y, wide, len, self.dims.width)
            }
            .run();
        }
    }

    /// `(y + D x) silu(z)`.
    #[inline(always)]
    unsafe fn finish<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, x: Matrix<T>, chunk: &Chunk, y: *mut T) {
        let Dims { heads, width, .. } = self.dims;
        let wide = padded(width);
        let gate = match &self.inputs.gate {
            Some(gate) => matrix(gate, self.row, chunk, self.head),
            None => Matrix { data: std::ptr::null(), stride: 0 },
        };
        let skip = self.inputs.skip.is_some();
        for i in 0..chunk.len {
            // SAFETY: as the caller vouches.
            unsafe {
                let to = y.add((chunk.start + i) * heads * width);
                let mut j = 0;
                while j < width {
                    let n = S::LANES.min(width - j);
                    let mut value = s.load_ptr(buffers.y.add(i * wide + j));
                    if skip {
                        let (d, x) = (buffers.skip.add(j), x.data.add(i * x.stride + j));
                        value = s.mul_add(s.load_ptr(d), s.load_ptr(x), value);
                    }
                    if !gate.data.is_null() {
                        let z = load_first(s, gate.data.add(i * gate.stride + j), n);
                        value = s.mul(value, s.mul(z, sigmoid(s, z)));
                    }
                    store_first(s, to.add(j), n, value);
                    j += S::LANES;
                }
            }
        }
    }
}

/// Writes the state that a sequence begins from; false where it is zero.
///
/// # Safety
/// `to` has room for `(S, P)` in padded rows.
#[inline(always)]
pub(super) unsafe fn begin<T: Float>(
    dims: Dims,
    initial: Option<&[T]>,
    from: Option<usize>,
    head: usize,
    to: *mut T,
) -> bool {
    let Dims { heads, width, state, .. } = dims;
    let wide = padded(width);
    // SAFETY: as the caller vouches; initial states were checked.
    unsafe {
        std::slice::from_raw_parts_mut(to, state * wide).fill(T::ZERO);
        let (Some(initial), Some(from)) = (initial, from) else { return false };
        let data = initial.as_ptr().add((from * heads + head) * width * state);
        transpose(Matrix { data, stride: state }, width, state, to, wide);
    }
    true
}

/// Writes a state `(S, P)` as `(P, S)`.
///
/// # Safety
/// `to` has room for it.
#[inline(always)]
pub(super) unsafe fn turn_state<T: Float>(from: Matrix<T>, state: usize, width: usize, to: *mut T) {
    // SAFETY: as the caller vouches.
    unsafe { transpose(from, state, width, to, state) };
}

/// `out[i][j] = square[i][j] E_ij dt_j`, up to the diagonal.
#[inline(always)]
unsafe fn weigh<T: Float, S: Simd<T>>(s: S, square: *const T, decays: &Decays<T>, len: usize, out: *mut T) {
    let ld = padded(len);
    for i in 0..len {
        // SAFETY: as the caller vouches.
        unsafe {
            let (high, low) = (s.splat(*decays.high.add(i)), s.splat(*decays.low.add(i)));
            let mut j = 0;
            while j <= i {
                let decay = s.mul(decays.between(s, high, low, j), s.load_ptr(decays.dt.add(j)));
                s.store_ptr(out.add(i * ld + j), s.mul(decay, s.load_ptr(square.add(i * ld + j))));
                j += S::LANES;
            }
        }
    }
}

/// `out_j = x_j dt_j exp(s_last - s_j)`.
///
/// # Safety
/// Both have the rows of the chunk, padded.
#[inline(always)]
pub(super) unsafe fn scale_rows<T: Float, S: Simd<T>>(
    s: S,
    x: Matrix<T>,
    decays: &Decays<T>,
    len: usize,
    wide: usize,
    out: *mut T,
) {
    for i in 0..len {
        // SAFETY: as the caller vouches.
        unsafe {
            let factor = s.splat(*decays.after.add(i) * *decays.dt.add(i));
            let mut j = 0;
            while j < wide {
                let value = s.load_ptr(x.data.add(i * x.stride + j));
                s.store_ptr(out.add(i * wide + j), s.mul(value, factor));
                j += S::LANES;
            }
        }
    }
}
