//! One task of the backward: a run of channels through the tiles of a round, from the last to the first.

use super::UNIT;
use super::backward::{KEPT, Task};
use super::coefficients::{Coefficient, Source, begin, channel_vector, load_run, load_states, store_states};
use super::forward::{pass_by, step_sizes};
use super::recurrence::{Block, clear};
use super::reverse::{Reverse, Sum, TOGETHER, Trace, replay, reverse};
use super::stage::{Ahead, gather, scatter};
use super::tiles::{TILE, Tile};
use crate::scratch::Scratch;
use sensorium_core::math::sigmoid;
use sensorium_core::{Float, Kernel, MAX_LANES, Simd};

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        if self.shared.inputs.shared() { self.of::<S, true>(s) } else { self.of::<S, false>(s) }
    }
}

/// Tiles `[token][lane]` of a block.
struct Stage<T> {
    u: *mut T,
    /// Step sizes before the softplus.
    raw: *mut T,
    delta: *mut T,
    input: *mut T,
    /// `dL/dy`, then without the gate.
    grad: *mut T,
    /// The gate, then its gradient.
    z: *mut T,
    y: *mut T,
    /// `sum_n g B`, then the gradient of `u`.
    grad_input: *mut T,
    /// `sum_n A w`, then the gradient of `delta`.
    grad_delta: *mut T,
}

/// What goes on from tile to tile and from round to round: `[block][state][lane]`, and `[block][lane]` for the last two.
struct Kept<T> {
    carry: *mut T,
    grad_a: *mut T,
    grad_b: *mut T,
    grad_c: *mut T,
    grad_d: *mut T,
    grad_bias: *mut T,
}

/// All buffers of a task.
struct Desk<'a, T> {
    log2_a: *mut T,
    a: *mut T,
    b: Source<'a, T>,
    c: Source<'a, T>,
    stage: Stage<T>,
    kept: Kept<T>,
    /// The states of a block.
    h: *mut T,
    /// The same before the tile, where it is replayed twice.
    begun: *mut T,
    trace: Trace<T>,
    /// Sums over channels, `[token][state][lane]`, of what varies.
    sum_b: *mut T,
    sum_c: *mut T,
}

/// Where a block of channels meets a tile.
struct Place<'a> {
    tile: &'a Tile,
    /// The one that comes after it.
    next: &'a Tile,
    block: usize,
    first: usize,
    channels: usize,
}

impl<T: Float> Task<'_, T> {
    #[inline(always)]
    fn of<S: Simd<T>, const SHARED: bool>(self, s: S) {
        let (plan, inputs) = (self.shared.plan, self.shared.inputs);
        let (run, lanes, states) = (plan.runs[self.run], S::LANES, plan.dims.states);
        let blocks = run.count.div_ceil(lanes);
        let (of_states, of_tile, of_tokens) = (blocks * states * lanes, TILE * lanes, TILE * states * lanes);
        let traced = TILE * lanes * if self.traces_all() { states } else { TOGETHER };
        let size = |of| Source::size(of, states, lanes, blocks, SHARED);
        let [varying_b, varying_c] = [&inputs.b, &inputs.c].map(|of| if of.varies() { of_tokens } else { 0 });
        let sizes: [usize; 25] = [
            [of_states; 6].as_slice(),
            &[blocks * lanes; 2],
            &[size(&inputs.b), size(&inputs.c)],
            &[of_tile; 9],
            &[states * lanes; 2],
            &[traced; 2],
            &[varying_b, varying_c],
        ]
        .concat()
        .try_into()
        .expect("as many buffers as are taken");
        let mut scratch = Scratch::new::<T>(&sizes);
        let buffers = sizes.map(|size| scratch.take::<T>(size));
        let [log2_a, a, carry, grad_a, grad_b, grad_c, grad_d, grad_bias, buffer_b, buffer_c, ..] = buffers;
        let [
            ..,
            u,
            raw,
            delta,
            input,
            grad,
            z,
            y,
            grad_input,
            grad_delta,
            h,
            begun,
            decay,
            before,
            sum_b,
            sum_c,
        ] = buffers;
        // SAFETY: buffers are as large as their sizes say, views and slices were checked against `dims`, and every
        // task has channels and tokens of its own.
        unsafe {
            load_run(s, inputs.a, run, states, T::LOG2_E, log2_a);
            load_run(s, inputs.a, run, states, T::ONE, a);
            let desk = Desk {
                log2_a,
                a,
                b: Source::new(s, inputs.b, run, states, buffer_b),
                c: Source::new(s, inputs.c, run, states, buffer_c),
                stage: Stage { u, raw, delta, input, grad, z, y, grad_input, grad_delta },
                kept: Kept { carry, grad_a, grad_b, grad_c, grad_d, grad_bias },
                h,
                begun,
                trace: Trace { decay, before },
                sum_b,
                sum_c,
            };
            self.recall::<S>(&desk);
            for place in (0..self.tiles.len()).rev() {
                self.tile::<S, SHARED>(s, place, &desk);
            }
            self.keep::<S>(&desk);
        }
    }

    /// Whether the traces of all states are kept at once: a gate needs `y`, and so all states, before any gradient.
    fn traces_all(&self) -> bool {
        self.shared.inputs.z.is_some() && self.shared.plan.dims.states <= KEPT
    }

    /// Parts of what is kept, with their sizes.
    fn parts<S: Simd<T>>(&self, kept: &Kept<T>) -> [(*mut T, usize); 6] {
        let plan = self.shared.plan;
        let lanes = plan.runs[self.run].count.next_multiple_of(S::LANES);
        let of_states = lanes * plan.dims.states;
        let &Kept { carry, grad_a, grad_b, grad_c, grad_d, grad_bias } = kept;
        let of_channels = [(grad_d, lanes), (grad_bias, lanes)];
        let [carry, a, b, c] = [carry, grad_a, grad_b, grad_c].map(|part| (part, of_states));
        [carry, a, b, c, of_channels[0], of_channels[1]]
    }

    /// Where the task keeps what goes on from round to round.
    ///
    /// # Safety
    /// No other task of this run and span is at work.
    unsafe fn memory(&self) -> *mut T {
        let plan = self.shared.plan;
        let at = self.span * plan.kept_size() + plan.before[self.run] * plan.kept_unit();
        let size = plan.runs[self.run].count.div_ceil(UNIT) * plan.kept_unit();
        // SAFETY: as the caller vouches.
        unsafe { self.shared.kept.slice(at..at + size).as_mut_ptr() }
    }

    /// Takes up what the round before kept; it is zero at first.
    ///
    /// # Safety
    /// Buffers have the sizes of [`parts`](Self::parts).
    unsafe fn recall<S: Simd<T>>(&self, desk: &Desk<'_, T>) {
        // SAFETY: as the caller vouches; the memory was made for units, which are no smaller than blocks.
        unsafe {
            let mut memory = self.memory();
            for (part, size) in self.parts::<S>(&desk.kept) {
                std::ptr::copy_nonoverlapping(memory, part, size);
                memory = memory.add(size);
            }
        }
    }

    /// Keeps it for the next round, or hands over the sums over tokens of a span.
    ///
    /// # Safety
    /// As for [`recall`](Self::recall).
    unsafe fn keep<S: Simd<T>>(&self, desk: &Desk<'_, T>) {
        let (plan, shared) = (self.shared.plan, self.shared);
        let (run, states, lanes) = (plan.runs[self.run], plan.dims.states, S::LANES);
        // SAFETY: as the caller vouches.
        unsafe {
            let mut memory = self.memory();
            for (part, size) in self.parts::<S>(&desk.kept) {
                std::ptr::copy_nonoverlapping(part, memory, size);
                memory = memory.add(size);
            }
            if !std::ptr::eq(
                &raw const plan.tiles.list[plan.tiles.spans[self.span].start],
                self.tiles.as_ptr(),
            ) {
                return;
            }
            let (places, base) = (plan.total_parts(), self.span * plan.total_size());
            let Kept { grad_a, grad_b, grad_c, grad_d, grad_bias, .. } = desk.kept;
            let widths = [states, states, states, 1, 1];
            for (part, sums) in [grad_a, grad_b, grad_c, grad_d, grad_bias].into_iter().enumerate() {
                let width = widths[part];
                for block in 0..run.count.div_ceil(lanes) {
                    let (first, channels) = run.block(block, lanes);
                    let from = base + places[part] + first * width;
                    let out = shared.totals.slice(from..from + channels * width);
                    store_states(sums.add(block * width * lanes), width, channels, lanes, out);
                }
            }
        }
    }

    /// All blocks over the tile at `place` of the round, and their sums over channels.
    ///
    /// # Safety
    /// Buffers have the sizes that they are described with.
    #[inline(always)]
    unsafe fn tile<S: Simd<T>, const SHARED: bool>(&self, s: S, place: usize, desk: &Desk<'_, T>) {
        let (plan, tile, inputs) = (self.shared.plan, &self.tiles[place], self.shared.inputs);
        let (run, states) = (plan.runs[self.run], plan.dims.states);
        let cells = tile.tokens * states;
        let at = (self.span * plan.runs.len() + self.run) * plan.sum_size() + place * TILE * states;
        // SAFETY: as the caller vouches.
        unsafe {
            let b = desk.b.over::<S, SHARED>(s, tile, run.group, states);
            let c = desk.c.over::<S, SHARED>(s, tile, run.group, states);
            let sums = [
                (inputs.b.varies(), desk.sum_b, &self.shared.sums_b),
                (inputs.c.varies(), desk.sum_c, &self.shared.sums_c),
            ];
            for (varies, sum, _) in sums {
                clear(s, sum, if varies { cells } else { 0 });
            }
            for block in 0..run.count.div_ceil(S::LANES) {
                let (first, channels) = run.block(block, S::LANES);
                let next = &self.tiles[place.saturating_sub(1)];
                let place = Place { tile, next, block, first, channels };
                self.enter(s, &place, desk);
                self.block::<S, SHARED>(s, &place, [b, c], desk);
                self.leave(s, &place, desk);
            }
            for (varies, sum, out) in sums {
                if varies {
                    add_lanes(s, sum, out.slice(at..at + cells));
                }
            }
        }
    }

    /// States before a tile, the gradient of those after it, and its inputs.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile).
    #[inline(always)]
    unsafe fn enter<S: Simd<T>>(&self, s: S, place: &Place<'_>, desk: &Desk<'_, T>) {
        let &Place { tile, block, first, channels, .. } = place;
        let (shared, inputs) = (self.shared, self.shared.inputs);
        let (all, states) = (shared.plan.dims.channels, shared.plan.dims.states);
        // SAFETY: as the caller vouches.
        unsafe {
            if tile.ends() {
                let carry = desk.kept.carry.add(block * states * S::LANES);
                match (shared.grad_last, tile.sequence.last) {
                    (Some(grad), Some(index)) => {
                        load_states(s, grad, index * all + first, states, channels, T::ONE, carry);
                    }
                    _ => clear(s, carry, states),
                }
            }
            if let Some(index) = tile.checkpoint {
                for n in 0..states {
                    let from = (index * states + n) * all + first;
                    let row = &shared.checkpoints[from..from + channels];
                    s.store_ptr(desk.h.add(n * S::LANES), s.load_head(row, T::ZERO));
                }
            } else {
                begin(s, inputs, tile, (all, first, channels), states, desk.h);
            }
            self.gather_inputs(s, place, &desk.stage);
        }
    }

    /// Gathers a block's inputs and the gradient of its results; clears what is added to.
    ///
    /// # Safety
    /// Tiles have `TILE * LANES` elements.
    #[inline(always)]
    unsafe fn gather_inputs<S: Simd<T>>(&self, s: S, place: &Place<'_>, stage: &Stage<T>) {
        let &Place { tile, first, channels, .. } = place;
        let (row, start, tokens, inputs) = (tile.sequence.row, tile.start, tile.tokens, self.shared.inputs);
        // SAFETY: the views have these channels and tokens; the caller vouches for the buffers.
        unsafe {
            let gate = inputs.z.as_ref().unwrap_or(&inputs.u);
            let tiles = [
                (&inputs.u, stage.u),
                (&inputs.delta, stage.raw),
                (self.shared.grad, stage.grad),
                (gate, stage.z),
            ];
            for (view, buffer) in &tiles[..if inputs.z.is_some() { 4 } else { 3 }] {
                gather(s, view.at(row, 0, start, first), view.strides().step(), tokens, channels, *buffer);
            }
            let bias = channel_vector(s, inputs.delta_bias, first, channels);
            step_sizes(s, bias, inputs, stage.raw, stage.delta, tokens);
            for t in 0..tokens {
                let at = t * S::LANES;
                let input = s.mul(s.load_ptr(stage.delta.add(at)), s.load_ptr(stage.u.add(at)));
                s.store_ptr(stage.input.add(at), input);
            }
            for buffer in [stage.y, stage.grad_input, stage.grad_delta] {
                clear(s, buffer, tokens);
            }
        }
    }

    /// Gradients of a block over a tile.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile).
    #[inline(always)]
    unsafe fn block<S: Simd<T>, const SHARED: bool>(
        &self,
        s: S,
        place: &Place<'_>,
        [b, c]: [Coefficient<T>; 2],
        desk: &Desk<'_, T>,
    ) {
        let (inputs, states, tokens) = (self.shared.inputs, self.shared.plan.dims.states, place.tile.tokens);
        let at = place.block * states * S::LANES;
        let (stage, kept) = (&desk.stage, &desk.kept);
        // SAFETY: as the caller vouches.
        unsafe {
            let whole = Block {
                a: desk.log2_a.add(at),
                h: desk.h,
                delta: stage.delta,
                input: stage.input,
                b: desk.b.of_block(b, at),
                c: desk.c.of_block(c, at),
                y: stage.y,
                ahead: self.ahead(place),
            };
            let by_token = states * S::LANES;
            let sum = |varies: bool, over_channels: *mut T, over_tokens: *mut T| {
                if varies {
                    Sum { data: over_channels, token: by_token }
                } else {
                    Sum { data: over_tokens.wrapping_add(at), token: 0 }
                }
            };
            let gradients = Reverse {
                a: desk.a.add(at),
                grad: stage.grad,
                carry: kept.carry.add(at),
                grad_a: kept.grad_a.add(at),
                grad_b: sum(inputs.b.varies(), desk.sum_b, kept.grad_b),
                grad_c: sum(inputs.c.varies(), desk.sum_c, kept.grad_c),
                grad_input: stage.grad_input,
                grad_delta: stage.grad_delta,
            };
            let gated = inputs.z.is_some();
            let mut passes: &[(bool, bool)] = &[(true, true)];
            if self.traces_all() {
                passes = &[(true, false), (false, true)];
            } else if gated {
                // The trace of all states would be too large: what it takes to know `y` is done twice.
                std::ptr::copy_nonoverlapping(desk.h, desk.begun, by_token);
                passes = &[(true, false), (true, true)];
            }
            for (pass, &(forth, back)) in passes.iter().enumerate() {
                if pass == 1 {
                    pass_by(s, inputs.d, place.first, place.channels, stage.u, stage.y, tokens);
                    ungate(s, stage, tokens);
                    if forth {
                        std::ptr::copy_nonoverlapping(desk.begun, desk.h, by_token);
                    }
                }
                let mut n = 0;
                while n < states {
                    let trace = desk.trace.at(if self.traces_all() { n * TILE * S::LANES } else { 0 });
                    if states - n >= TOGETHER {
                        if forth {
                            replay::<T, S, TOGETHER, SHARED>(s, &whole, trace, n, tokens);
                        }
                        if back {
                            reverse::<T, S, TOGETHER, SHARED>(s, &whole, &gradients, trace, n, tokens);
                        }
                        n += TOGETHER;
                    } else {
                        if forth {
                            replay::<T, S, 1, SHARED>(s, &whole, trace, n, tokens);
                        }
                        if back {
                            reverse::<T, S, 1, SHARED>(s, &whole, &gradients, trace, n, tokens);
                        }
                        n += 1;
                    }
                }
            }
        }
    }

    /// Where a block's inputs are in the tile that comes next.
    #[inline(always)]
    fn ahead(&self, place: &Place<'_>) -> [Ahead<T>; 4] {
        let (inputs, row, start, first) =
            (self.shared.inputs, place.next.sequence.row, place.next.start, place.first);
        let gate = match &inputs.z {
            Some(z) => z,
            None => &inputs.u,
        };
        [&inputs.u, &inputs.delta, self.shared.grad, gate]
            .map(|view| Ahead::new(view.at(row, 0, start, first), view.strides().step()))
    }

    /// Writes the gradients of a tile, and of the states before a sequence.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile).
    #[inline(always)]
    unsafe fn leave<S: Simd<T>>(&self, s: S, place: &Place<'_>, desk: &Desk<'_, T>) {
        let &Place { tile, block, first, channels, .. } = place;
        let (shared, stage, kept) = (self.shared, &desk.stage, &desk.kept);
        let (dims, tokens) = (&shared.plan.dims, tile.tokens);
        // SAFETY: as the caller vouches.
        unsafe {
            let d = channel_vector(s, shared.inputs.d, first, channels);
            let (of_d, of_bias) = (kept.grad_d.add(block * S::LANES), kept.grad_bias.add(block * S::LANES));
            finish(s, stage, d, shared.inputs.softplus, of_d, of_bias, tokens);
            let gate = shared.z.unwrap_or(shared.u);
            let tiles = [(shared.u, stage.grad_input), (shared.delta, stage.grad_delta), (gate, stage.z)];
            for (view, from) in &tiles[..if shared.z.is_some() { 3 } else { 2 }] {
                let to = view.at(tile.sequence.row, 0, tile.start, first);
                scatter(s, *from, tokens, channels, to, view.strides().step());
            }
            if let (None, Some(out), Some(index)) = (tile.checkpoint, &shared.initial, tile.sequence.initial)
            {
                let from = (index * dims.channels + first) * dims.states;
                let out = out.slice(from..from + channels * dims.states);
                let carry = kept.carry.add(block * dims.states * S::LANES);
                store_states(carry, dims.states, channels, S::LANES, out);
            }
        }
    }
}

/// Takes the gate off: `grad` becomes that of `y`, `z` its own.
///
/// # Safety
/// Tiles have `tokens * LANES` elements.
#[inline(always)]
unsafe fn ungate<T: Float, S: Simd<T>>(s: S, stage: &Stage<T>, tokens: usize) {
    let one = s.splat(T::ONE);
    for t in 0..tokens {
        let at = t * S::LANES;
        // SAFETY: as the caller vouches.
        unsafe {
            let (z, grad) = (s.load_ptr(stage.z.add(at)), s.load_ptr(stage.grad.add(at)));
            let open = sigmoid(s, z);
            let slope = s.mul(open, s.mul_add(z, s.sub(one, open), one));
            s.store_ptr(stage.z.add(at), s.mul(s.mul(grad, s.load_ptr(stage.y.add(at))), slope));
            s.store_ptr(stage.grad.add(at), s.mul(grad, s.mul(z, open)));
        }
    }
}

/// Turns the sums over states into gradients of `u` and `delta`, and adds to those of `D` and the bias.
///
/// # Safety
/// Tiles have `tokens * LANES` elements, `of_d` and `of_bias` have `LANES`.
#[inline(always)]
unsafe fn finish<T: Float, S: Simd<T>>(
    s: S,
    stage: &Stage<T>,
    d: S::V,
    soft: bool,
    of_d: *mut T,
    of_bias: *mut T,
    tokens: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let (mut sum_d, mut sum_bias) = (s.load_ptr(of_d), s.load_ptr(of_bias));
        for t in (0..tokens).rev() {
            let at = t * S::LANES;
            let (u, grad) = (s.load_ptr(stage.u.add(at)), s.load_ptr(stage.grad.add(at)));
            let of_input = s.load_ptr(stage.grad_input.add(at));
            let mut of_delta = s.mul_add(u, of_input, s.load_ptr(stage.grad_delta.add(at)));
            if soft {
                of_delta = s.mul(of_delta, sigmoid(s, s.load_ptr(stage.raw.add(at))));
            }
            let of_u = s.mul_add(s.load_ptr(stage.delta.add(at)), of_input, s.mul(d, grad));
            s.store_ptr(stage.grad_input.add(at), of_u);
            s.store_ptr(stage.grad_delta.add(at), of_delta);
            sum_d = s.mul_add(u, grad, sum_d);
            sum_bias = s.add(sum_bias, of_delta);
        }
        s.store_ptr(of_d, sum_d);
        s.store_ptr(of_bias, sum_bias);
    }
}

/// `out[i]` is the sum of the lanes of vector `i`.
///
/// # Safety
/// There are as many vectors as elements of `out`.
#[inline(always)]
unsafe fn add_lanes<T: Float, S: Simd<T>>(s: S, vectors: *const T, out: &mut [T]) {
    let whole = out.len() - out.len() % S::LANES;
    // SAFETY: as the caller vouches.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let mut some = [s.splat(T::ZERO); MAX_LANES];
            for lane in 0..S::LANES {
                some[lane] = s.load_ptr(vectors.add((i + lane) * S::LANES));
            }
            s.store(&mut out[i..], s.reduce_sums(some));
        }
        for i in whole..out.len() {
            out[i] = s.reduce_sum(s.load_ptr(vectors.add(i * S::LANES)));
        }
    }
}
