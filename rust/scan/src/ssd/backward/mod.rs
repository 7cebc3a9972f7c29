//! Backward: the gradient of every input.
//!
//! With `g` the gradient of `y`, `H` the state before a chunk and `dH` the gradient of the state after it:
//!
//! | | |
//! |---|---|
//! | `u_j = after_j (B dH)_j + sum_{i >= j} (C B^T)_ij E_ij g_i` | `dx_j = dt_j u_j`, and `x_j . u_j` goes to `dt_j` |
//! | `dC_i` | `before_i g_i H^T`, and `sum_{j <= i} K_ij B_j` |
//! | `dB_j` | `after_j dt_j x_j dH^T`, and `sum_{i >= j} K_ij C_i` |
//! | `dH` before the chunk | `whole dH + sum_i before_i C_i g_i^T` |
//!
//! where `K_ij = (g_i . x_j) E_ij dt_j`, summed over the heads of a group before it is multiplied. The gradient of
//! `a_t = dt_t A` is the sum over all pairs `(i, j)` with `j < t <= i` of what `j` gives to `i`. It is summed as such:
//! as a difference of what `y` and `dx` hold it would cancel where decays are strong: at a rate of -10 it was off by
//! 3e-2 of itself in `f32`, and is off by 3e-7.
//!
//! Of the states only those at the begin of each window are kept, and those of the chunks of one window at a time.
//! Windows are taken from the last to the first, and within one a task is some heads of a group, which sum their
//! parts of `dB` and `dC`; the parts are added in order of the heads. Multiply-adds of a token and head:
//! `P (Q + 1) + 5 S P`, states that are computed again included, and `S (Q + 1)` for a group.

mod part;
mod share;

use super::chunks::{Chunk, Chunks};
use super::forward::{Squares, matrix, walk};
use super::rows::{Matrix, pack, padded};
use super::scratch::{Scratch, Shared};
use super::tile::Half;
use super::{Dims, Inputs, Rows, states_len};
use crate::Sequences;
use part::Part;
use sensorium_core::{Float, Result, error::check_len, error::product, threads};
use share::Share;

/// Most heads that sum their gradients of `B` and `C` in one task.
const HEADS: usize = 4;
/// Parts that a group of many heads is cut into at least.
const PARTS: usize = 8;
/// Tasks that are worth starting at a time: rows are taken together up to so many.
const TASKS: usize = 16;

/// Gradients, laid out like what they belong to; contiguous.
#[derive(Debug)]
pub struct Grads<'a, T> {
    /// By `x`.
    pub x: &'a mut [T],
    /// By `dt`.
    pub dt: &'a mut [T],
    /// By `A`.
    pub a: &'a mut [T],
    /// By `B`.
    pub b: &'a mut [T],
    /// By `C`.
    pub c: &'a mut [T],
    /// By `D`.
    pub skip: Option<&'a mut [T]>,
    /// By `z`.
    pub gate: Option<&'a mut [T]>,
    /// By the bias of `dt`.
    pub bias: Option<&'a mut [T]>,
    /// By the initial states.
    pub initial: Option<&'a mut [T]>,
}

/// What comes from behind.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a, T> {
    /// Gradient of `y (B, L, H, P)`.
    pub y: Rows<'a, T>,
    /// Gradient of the last states; zero where there is none.
    pub last: Option<&'a [T]>,
    /// What [`ssd_forward`](crate::ScanKernels::ssd_forward) kept; computed again where there is none.
    pub checkpoints: Option<&'a [T]>,
}

impl<T: Float> Grads<'_, T> {
    fn check(&self, dims: Dims, sequences: &Sequences, inputs: &Inputs<'_, T>) -> Result<()> {
        let tokens = product("x", &dims.tokens())?;
        let inner = product("B", &dims.inner())?;
        check_len("dx", self.x, tokens)?;
        check_len("ddt", self.dt, inputs.steps.dt.len())?;
        check_len("dA", self.a, dims.heads)?;
        check_len("dB", self.b, inner)?;
        check_len("dC", self.c, inner)?;
        if let Some(skip) = &self.skip {
            check_len("dD", skip, inputs.skip.map_or(0, <[T]>::len))?;
        }
        if let Some(gate) = &self.gate {
            check_len("dz", gate, if inputs.gate.is_some() { tokens } else { 0 })?;
        }
        if let Some(bias) = &self.bias {
            check_len("ddt_bias", bias, dims.heads)?;
        }
        if let Some(initial) = &self.initial {
            check_len("dinitial_states", initial, states_len(dims, sequences, "initial_states")?)?;
        }
        Ok(())
    }
}

/// What every task reads.
struct Call<'a, T> {
    dims: Dims,
    chunks: &'a Chunks,
    inputs: &'a Inputs<'a, T>,
    upstream: Upstream<'a, T>,
    checkpoints: Option<*const T>,
    /// Heads of a part, and parts of a group.
    heads: usize,
    parts: usize,
    /// First row in hand.
    row: usize,
    window: usize,
    squares: Squares<T>,
    to: Targets<T>,
}

// SAFETY: tasks read what `checkpoints` points to, and write disjoint parts of the targets.
unsafe impl<T: Float> Sync for Call<'_, T> {}

/// What tasks write.
#[derive(Clone, Copy)]
struct Targets<T> {
    x: Shared<T>,
    dt: Shared<T>,
    b: Shared<T>,
    c: Shared<T>,
    gate: Option<Shared<T>>,
    initial: Option<Shared<T>>,
    /// `(B, H, S, P)` in padded rows: the gradient of the state, from window to window.
    states: Shared<T>,
    /// `(B, H, P)` in padded rows: sums for `D`.
    skip: Shared<T>,
    /// `(B, H)`: sums for `A` and for the bias.
    a: Shared<f64>,
    bias: Shared<f64>,
    /// `(rows, G, parts, tokens of a window, S)` in padded rows: parts of `dB` and `dC`.
    parts_b: Shared<T>,
    parts_c: Shared<T>,
    /// `(rows, G, parts, chunks of a window)` squares: parts of `K`, a row for each `j`.
    parts_k: Shared<T>,
    /// `(rows, G, tokens of a window, S)`: `B` and `C` in padded rows, where they are not so in memory.
    b_rows: Option<Shared<T>>,
    c_rows: Option<Shared<T>>,
}

impl<T: Float> Call<'_, T> {
    /// Tokens of a window, at most.
    fn tokens(&self) -> usize {
        self.chunks.window * self.chunks.longest
    }
    /// Index of a group of a row in hand.
    #[inline(always)]
    fn group(&self, row: usize, group: usize) -> usize {
        (row - self.row) * self.dims.groups + group
    }
    /// Where the padded rows of a chunk begin among those of a group of a window.
    #[inline(always)]
    fn rows_of(&self, index: usize, slot: usize) -> usize {
        (index * self.tokens() + slot * self.chunks.longest) * padded(self.dims.state)
    }
    /// Rows of `B` and `C` of a chunk, whole vectors long.
    #[inline(always)]
    fn inner(&self, row: usize, group: usize, slot: usize, chunk: &Chunk) -> [Matrix<T>; 2] {
        if let (Some(b), Some(c)) = (self.to.b_rows, self.to.c_rows) {
            let at = self.rows_of(self.group(row, group), slot);
            let stride = padded(self.dims.state);
            return [Matrix { data: b.at(at), stride }, Matrix { data: c.at(at), stride }];
        }
        [matrix(&self.inputs.b, row, chunk, group), matrix(&self.inputs.c, row, chunk, group)]
    }
    /// Copies the rows of a chunk.
    ///
    /// # Safety
    /// No other task does.
    unsafe fn copy_rows(&self, row: usize, group: usize, slot: usize, chunk: &Chunk) {
        let (Some(b), Some(c)) = (self.to.b_rows, self.to.c_rows) else { return };
        let at = self.rows_of(self.group(row, group), slot);
        for (from, to) in [(&self.inputs.b, b), (&self.inputs.c, c)] {
            // SAFETY: the rows exist, and the buffers hold the tokens of a window.
            unsafe { pack(matrix(from, row, chunk, group), chunk.len, self.dims.state, to.at(at)) };
        }
    }
}

/// Gradients of the scan.
///
/// # Errors
/// [`Error`](sensorium_core::Error) naming the argument that does not fit.
#[allow(clippy::needless_pass_by_value)] // Gradients are exclusive borrows: the caller gives them away.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    chunk: usize,
    inputs: &Inputs<'_, T>,
    upstream: Upstream<'_, T>,
    mut grads: Grads<'_, T>,
) -> Result<()> {
    inputs.check(dims, sequences)?;
    grads.check(dims, sequences, inputs)?;
    if let Some(last) = upstream.last {
        check_len("grad_final_states", last, states_len(dims, sequences, "grad_final_states")?)?;
    }
    let Dims { batch, heads, width, groups, state, .. } = dims;
    let chunks = Chunks::new(sequences, chunk);
    let (wide, deep) = (padded(width), padded(state));
    if let Some(initial) = &mut grads.initial {
        empty_sequences(dims, sequences, upstream.last, initial);
    }
    if batch * heads * width * dims.length == 0 {
        grads.b.fill(T::ZERO);
        grads.c.fill(T::ZERO);
        grads.dt.fill(T::ZERO);
        grads.a.fill(T::ZERO);
        for sums in [grads.skip, grads.bias].into_iter().flatten() {
            sums.fill(T::ZERO);
        }
        return Ok(());
    }
    let kept = chunks.windows * batch * heads * state * wide;
    if let Some(checkpoints) = upstream.checkpoints {
        check_len("checkpoints", checkpoints, kept)?;
    }
    let again = chunks.windows > 1 && upstream.checkpoints.is_none();
    let of_part = (dims.heads_of_group() / PARTS).clamp(1, HEADS);
    let parts = dims.heads_of_group().div_ceil(of_part);
    let rows = TASKS.max(4 * threads::num_threads()).div_ceil(groups * parts).min(batch);
    let (tokens, square) = (chunks.window * chunks.longest, chunks.longest * padded(chunks.longest));
    let copies = if deep == state { 0 } else { rows * groups * tokens * deep };
    let sizes = [
        if again { kept } else { 0 },
        rows * groups * chunks.window * square,
        batch * heads * state * wide,
        batch * heads * wide,
        rows * groups * parts * tokens * deep,
        rows * groups * parts * tokens * deep,
        rows * groups * parts * chunks.window * square,
        copies,
        copies,
    ];
    let mut scratch = Scratch::new::<T>(&sizes);
    let [states_kept, squares, states, skip, parts_b, parts_c, parts_k, b_rows, c_rows] =
        sizes.map(|n| Shared(scratch.take::<T>(n)));
    if again {
        walk(dims, &chunks, inputs, None, None, Some(states_kept));
    }
    let mut sums = vec![0.0_f64; 2 * batch * heads];
    let (sums_a, sums_bias) = sums.split_at_mut(batch * heads);
    // SAFETY: the buffer has so many elements, and nobody else has it.
    unsafe { std::slice::from_raw_parts_mut(skip.at(0), sizes[3]) }.fill(T::ZERO);
    let mut call = Call {
        dims,
        chunks: &chunks,
        inputs,
        upstream,
        checkpoints: upstream
            .checkpoints
            .map(<[T]>::as_ptr)
            .or(again.then(|| states_kept.at(0).cast_const())),
        heads: of_part,
        parts,
        row: 0,
        window: 0,
        squares: Squares { dims, data: squares, square, most: chunks.window, first: 0, rows: 0 },
        to: Targets {
            x: Shared(grads.x.as_mut_ptr()),
            dt: Shared(grads.dt.as_mut_ptr()),
            b: Shared(grads.b.as_mut_ptr()),
            c: Shared(grads.c.as_mut_ptr()),
            gate: grads.gate.as_mut().map(|g| Shared(g.as_mut_ptr())),
            initial: grads.initial.as_mut().map(|g| Shared(g.as_mut_ptr())),
            states,
            skip,
            a: Shared(sums_a.as_mut_ptr()),
            bias: Shared(sums_bias.as_mut_ptr()),
            parts_b,
            parts_c,
            parts_k,
            b_rows: (copies > 0).then_some(b_rows),
            c_rows: (copies > 0).then_some(c_rows),
        },
    };
    for row in (0..batch).step_by(rows) {
        call.row = row;
        call.squares.first = row;
        call.squares.rows = rows.min(batch - row);
        for window in (0..chunks.windows).rev() {
            call.window = window;
            one_window(&call);
        }
    }
    if let Some(to) = grads.skip {
        // SAFETY: as above; all tasks are done.
        add_skip(dims, unsafe { std::slice::from_raw_parts(skip.at(0), sizes[3]) }, to);
    }
    add_rows(sums_a, grads.a);
    if let Some(bias) = grads.bias {
        add_rows(sums_bias, bias);
    }
    Ok(())
}

/// The gradients of the states that empty sequences begin from: those of what they leave.
fn empty_sequences<T: Float>(dims: Dims, sequences: &Sequences, last: Option<&[T]>, initial: &mut [T]) {
    let size = dims.heads * dims.width * dims.state;
    for sequence in sequences.list().iter().filter(|s| s.start == s.end) {
        let Some(from) = sequence.initial else { continue };
        let to = &mut initial[from * size..(from + 1) * size];
        match (last, sequence.last) {
            (Some(last), Some(kept)) => to.copy_from_slice(&last[kept * size..(kept + 1) * size]),
            _ => to.fill(T::ZERO),
        }
    }
}

/// One window of the rows in hand: what its heads give, then what groups make of it.
fn one_window<T: Float>(call: &Call<'_, T>) {
    let Dims { width, groups, state, .. } = call.dims;
    let (chunks, rows) = (call.chunks, call.squares.rows);
    let inputs = call.inputs;
    call.squares.fill(chunks, call.window..call.window + 1, (&inputs.b, &inputs.c), Half::Upper);
    let slots = rows * groups * chunks.window;
    let place = |task: usize| {
        let (row, slot) = (call.row + task / (groups * chunks.window), task % chunks.window);
        (row, task / chunks.window % groups, slot)
    };
    let chunk_of = |row: usize, slot: usize| chunks.of_windows(row, call.window, call.window + 1).get(slot);
    if call.to.b_rows.is_some() {
        threads::for_each(slots, 4 * chunks.longest * state, |task| {
            let (row, group, slot) = place(task);
            if let Some(chunk) = chunk_of(row, slot) {
                // SAFETY: the chunk's rows exist, and the buffers have room for them.
                unsafe { call.copy_rows(row, group, slot, chunk) };
            }
        });
    }
    let work = call.tokens() * call.heads * width * (6 * state + chunks.longest);
    threads::for_each(rows * groups * call.parts, work, |task| {
        let row = call.row + task / (groups * call.parts);
        T::dispatch(Part { call, row, group: task / call.parts % groups, index: task % call.parts });
    });
    threads::for_each(slots, chunks.longest * chunks.longest * state, |task| {
        let (row, group, slot) = place(task);
        if let Some(chunk) = chunk_of(row, slot) {
            T::dispatch(Share { call, row, group, slot, chunk });
        }
    });
}

/// Sums over rows of `(B, H, P)`, to `(H, P)` or, over `P` as well, to `(H,)`.
fn add_skip<T: Float>(dims: Dims, sums: &[T], to: &mut [T]) {
    let Dims { batch, heads, width, .. } = dims;
    let wide = padded(width);
    let each = if to.len() == heads { width } else { 1 };
    for (i, to) in to.iter_mut().enumerate() {
        let (head, first) = if each == width { (i, 0) } else { (i / width, i % width) };
        let mut sum = 0.0;
        for row in 0..batch {
            let at = (row * heads + head) * wide + first;
            for value in &sums[at..at + each] {
                sum += value.to_f64();
            }
        }
        *to = T::from_f64(sum);
    }
}

/// Sums over rows of `(B, H)`.
fn add_rows<T: Float>(sums: &[f64], to: &mut [T]) {
    let heads = to.len();
    for (head, to) in to.iter_mut().enumerate() {
        *to = T::from_f64(sums.iter().skip(head).step_by(heads).sum());
    }
}
