//! Some heads of a group, over the chunks of a window: first the states from chunk to chunk, then the chunks from the
//! last to the first.

use super::super::Dims;
use super::super::chunks::Chunk;
use super::super::decay::Decays;
use super::super::forward::{begin, matrix, scale_rows, skip_factors, turn_state};
use super::super::rows::{Matrix, pack, padded, transpose};
use super::super::scratch::{Scratch, Shared};
use super::super::tile::{Half, Operands, Product, Start};
use super::Call;
use sensorium_core::isa::part::{load_first, store_first};
use sensorium_core::math::sigmoid;
use sensorium_core::{Float, Kernel, MAX_LANES, Simd};

/// Some heads of a group of a row.
pub(super) struct Part<'a, T> {
    pub(super) call: &'a Call<'a, T>,
    pub(super) row: usize,
    pub(super) group: usize,
    /// Which part of the group's heads.
    pub(super) index: usize,
}

/// Scratch of a task.
struct Buffers<T> {
    decays: Decays<T>,
    /// `(chunks, P, S)`: states before the chunks of the window.
    states: *mut T,
    /// `(P, S)` or `(S, P)`: a state turned.
    turned: *mut T,
    /// `(Q, P)`: `x` in padded rows, where it is not so in memory.
    x: *mut T,
    /// `(Q, P)`: the gradient of what comes before the gate, in padded rows.
    g: *mut T,
    /// `(P, Q)`: the same turned.
    g_turned: *mut T,
    /// `(Q, P)`: rows times factors.
    scaled: *mut T,
    /// `(Q, P)`: `u`.
    u: *mut T,
    /// `(Q, S)`: what a head gives to `dB` or `dC`, without factors.
    inner: *mut T,
    /// `(Q, Q)`, a row for each `j`: `(C_i . B_j) E_ij`.
    weights: *mut T,
    /// `(Q, Q)`, a row for each `j`: `g_i . x_j`.
    products: *mut T,
    /// `(P,)`: the skip's factors, and sums for its gradient.
    skip: *mut T,
    sums: *mut T,
    /// `(Q,)`: for each `i`, what tokens before the one in hand give to it.
    given: *mut T,
    /// `(Q,)`: gradients of `a`.
    da: *mut T,
    /// `(Q,)`: what a token takes of the state before the chunk, and what it gives to the one after it.
    taken: *mut T,
    left: *mut T,
    /// `(Q,)`: `x_j . u_j`.
    direct: *mut T,
}

/// A chunk of a head, and what is read of it.
struct Place<'a, T> {
    chunk: &'a Chunk,
    slot: usize,
    head: usize,
    /// Whether this head is the first to write the task's parts.
    fresh: bool,
    x: Matrix<T>,
    g: Matrix<T>,
    b: Matrix<T>,
    c: Matrix<T>,
    /// `(P, S)`: the state before the chunk, and whether it is not zero.
    state: *mut T,
    some: bool,
    /// `(S, P)`: the gradient of the state after it, and whether it is not zero.
    grad: *mut T,
    some_grad: bool,
}

impl<T: Float> Kernel<T> for Part<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let call = self.call;
        let Dims { width, state, .. } = call.dims;
        let (most, wide, deep) = (call.chunks.longest, padded(width), padded(state));
        let (rows, square, tokens) = (most * wide, most * padded(most), padded(most));
        let states = call.chunks.window * width * deep;
        let turned = (width * deep).max(state * wide);
        let mut sizes = [tokens; 17 + Decays::<f32>::BUFFERS];
        let wanted = [states, turned, rows, rows, width * tokens, rows, rows, most * deep, square, square];
        sizes[..10].copy_from_slice(&wanted);
        sizes[10..12].fill(wide);
        let mut scratch = Scratch::new::<T>(&sizes);
        let mut buffers = Buffers {
            states: scratch.take(states),
            turned: scratch.take(turned),
            x: scratch.take(rows),
            g: scratch.take(rows),
            g_turned: scratch.take(width * tokens),
            scaled: scratch.take(rows),
            u: scratch.take(rows),
            inner: scratch.take(most * deep),
            weights: scratch.take(square),
            products: scratch.take(square),
            skip: scratch.take(wide),
            sums: scratch.take(wide),
            given: scratch.take(tokens),
            da: scratch.take(tokens),
            taken: scratch.take(tokens),
            left: scratch.take(tokens),
            direct: scratch.take(tokens),
            decays: Decays::new(&mut scratch, most),
        };
        let of_group = call.dims.heads_of_group();
        let (from, to) = (self.index * call.heads, ((self.index + 1) * call.heads).min(of_group));
        for index in from..to {
            // SAFETY: the buffers have room for a window of the longest chunks; the rows of every chunk exist, since
            // sizes were checked; what is written belongs to these heads or to this task.
            unsafe { self.one_head(s, &mut buffers, self.group * of_group + index, index == from) };
        }
    }
}

impl<T: Float> Part<'_, T> {
    #[inline(always)]
    unsafe fn one_head<S: Simd<T>>(&self, s: S, buffers: &mut Buffers<T>, head: usize, fresh: bool) {
        let call = self.call;
        let Dims { width, heads, state, .. } = call.dims;
        let (wide, size) = (padded(width), width * padded(state));
        let chunks = call.chunks.of_windows(self.row, call.window, call.window + 1);
        let grad = call.to.states.at((self.row * heads + head) * state * wide);
        let initial = call.inputs.initial.is_some();
        // SAFETY: as the caller vouches.
        unsafe {
            skip_factors(call.inputs.skip, call.dims, head, buffers.skip);
            std::slice::from_raw_parts_mut(buffers.sums, wide).fill(T::ZERO);
            for slot in 0..chunks.len() {
                self.state_before(s, buffers, chunks, slot, head);
            }
            let mut slot = chunks.len();
            while slot > 0 {
                slot -= 1;
                let chunk = &chunks[slot];
                let mut some_grad = true;
                if chunk.last {
                    some_grad = begin(call.dims, call.upstream.last, chunk.kept, head, grad);
                }
                let [b, c] = call.inner(self.row, self.group, slot, chunk);
                let mut place = Place {
                    chunk,
                    slot,
                    head,
                    fresh,
                    x: self.x(buffers, chunk, head),
                    g: matrix(&call.upstream.y, self.row, chunk, head),
                    b,
                    c,
                    state: buffers.states.add(slot * size),
                    some: !chunk.first || (initial && chunk.initial.is_some()),
                    grad,
                    some_grad,
                };
                self.one_chunk(s, buffers, &mut place);
            }
            let sums = call.to.skip.at((self.row * heads + head) * wide);
            for j in (0..wide).step_by(S::LANES) {
                let sum = s.add(s.load_ptr(sums.add(j)), s.load_ptr(buffers.sums.add(j)));
                s.store_ptr(sums.add(j), sum);
            }
        }
    }

    /// Rows of `x` of a chunk, whole vectors long.
    #[inline(always)]
    unsafe fn x(&self, buffers: &Buffers<T>, chunk: &Chunk, head: usize) -> Matrix<T> {
        let width = self.call.dims.width;
        let x = matrix(&self.call.inputs.x, self.row, chunk, head);
        if width.is_multiple_of(MAX_LANES) {
            return x;
        }
        // SAFETY: as the caller vouches.
        unsafe { pack(x, chunk.len, width, buffers.x) };
        Matrix { data: buffers.x, stride: padded(width) }
    }

    /// Writes the state before a chunk, given those before earlier ones of the window.
    #[inline(always)]
    unsafe fn state_before<S: Simd<T>>(
        &self,
        s: S,
        buffers: &mut Buffers<T>,
        chunks: &[Chunk],
        slot: usize,
        head: usize,
    ) {
        let call = self.call;
        let Dims { batch, length, heads, width, state, .. } = call.dims;
        let (wide, deep) = (padded(width), padded(state));
        let size = width * deep;
        let to = buffers.states.wrapping_add(slot * size);
        // SAFETY: as the caller vouches.
        unsafe {
            if chunks[slot].first {
                match (call.inputs.initial, chunks[slot].initial) {
                    (Some(initial), Some(from)) => {
                        let data = initial.as_ptr().add((from * heads + head) * width * state);
                        pack(Matrix { data, stride: state }, width, state, to);
                    }
                    _ => std::slice::from_raw_parts_mut(to, size).fill(T::ZERO),
                }
                return;
            }
            if slot == 0 {
                let Some(checkpoints) = call.checkpoints else {
                    unreachable!("a window that goes on has one")
                };
                let data = checkpoints.add(((call.window * batch + self.row) * heads + head) * state * wide);
                std::slice::from_raw_parts_mut(to, size).fill(T::ZERO);
                transpose(Matrix { data, stride: wide }, state, width, to, deep);
                return;
            }
            let chunk = &chunks[slot - 1];
            let before = buffers.states.add((slot - 1) * size);
            let place = (self.row * length + chunk.start, heads, head);
            buffers.decays.fill(s, &call.inputs.steps, place, chunk.len, call.inputs.a[head]);
            let x = self.x(buffers, chunk, head);
            scale_rows(s, x, &buffers.decays, chunk.len, wide, buffers.scaled);
            let [b, _] = call.inner(self.row, self.group, slot - 1, chunk);
            let added =
                Operands { a: buffers.scaled, row: 1, col: wide, b: b.data, ldb: b.stride, n: chunk.len };
            let start = Start::Scaled(buffers.decays.whole, before.cast_const());
            // Padding too, which `dot` goes over.
            Product { start, ..Product::new(added, to, deep, width, deep) }.run();
        }
    }

    #[inline(always)]
    unsafe fn one_chunk<S: Simd<T>>(&self, s: S, buffers: &mut Buffers<T>, place: &mut Place<'_, T>) {
        let call = self.call;
        let Dims { length, heads, width, state, .. } = call.dims;
        let (len, wide, deep) = (place.chunk.len, padded(width), padded(state));
        let ld = padded(len);
        let token = (self.row * length + place.chunk.start, heads, place.head);
        // SAFETY: as the caller vouches.
        unsafe {
            buffers.decays.fill(s, &call.inputs.steps, token, len, call.inputs.a[place.head]);
            if call.inputs.gate.is_some() {
                self.gate(s, buffers, place);
                place.g = Matrix { data: buffers.g, stride: wide };
            } else if !width.is_multiple_of(MAX_LANES) {
                pack(place.g, len, width, buffers.g);
                place.g = Matrix { data: buffers.g, stride: wide };
            }
            transpose(place.g, len, width, buffers.g_turned, ld);
            for p in 0..width {
                for i in len..ld {
                    *buffers.g_turned.add(p * ld + i) = T::ZERO;
                }
            }
            let (x, g, b) = (place.x, place.g, place.b);
            let products =
                Operands { a: x.data, row: x.stride, col: 1, b: buffers.g_turned, ldb: ld, n: width };
            let wanted = Half::Upper;
            Product { wanted, ..Product::new(products, buffers.products, ld, len, len) }.run();
            self.pairs(s, buffers, place);
            let n = if place.some_grad { state } else { 0 };
            let after = Operands { a: b.data, row: b.stride, col: 1, b: place.grad, ldb: wide, n };
            Product {
                factor: buffers.decays.after,
                second: Operands { a: buffers.weights, row: ld, col: 1, b: g.data, ldb: g.stride, n: len },
                half: Half::Upper,
                ..Product::new(after, buffers.u, wide, len, width)
            }
            .run();
            self.inputs(s, buffers, place);
            for t in 0..len {
                *buffers.scaled.add(t) = *buffers.decays.after.add(t) * *buffers.decays.dt.add(t);
            }
            let factors = (buffers.decays.before.cast_const(), buffers.scaled.cast_const());
            let read = Matrix { data: place.state.cast_const(), stride: deep };
            let to = (call.to.parts_c, buffers.taken);
            self.inner(s, buffers, place, (g, read, place.c, factors.0, place.some), to);
            if place.some_grad {
                transpose(Matrix { data: place.grad, stride: wide }, state, width, buffers.turned, deep);
                for p in 0..width {
                    for j in state..deep {
                        *buffers.turned.add(p * deep + j) = T::ZERO;
                    }
                }
            }
            let read = Matrix { data: buffers.turned.cast_const(), stride: deep };
            let to = (call.to.parts_b, buffers.left);
            self.inner(s, buffers, place, (x, read, b, factors.1, place.some_grad), to);
            let through = if place.some && place.some_grad {
                buffers.decays.whole * dot(s, buffers.turned, place.state, width * deep)
            } else {
                T::ZERO
            };
            self.steps(s, buffers, place, through);
            self.grad_before(s, buffers, place);
        }
    }

    /// The gate's gradient, and the gradient of what comes before the gate.
    #[inline(always)]
    unsafe fn gate<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, place: &Place<'_, T>) {
        let call = self.call;
        let Dims { length, heads, width, state, .. } = call.dims;
        let Some(gate) = &call.inputs.gate else { return };
        let (len, wide) = (place.chunk.len, padded(width));
        let (ld, z) = (padded(len), matrix(gate, self.row, place.chunk, place.head));
        let (x, c, decays) = (place.x, place.c, &buffers.decays);
        let square = call.squares.of(self.row, self.group, place.slot);
        // SAFETY: as the caller vouches.
        unsafe {
            for j in 0..len {
                let (high, low) = (s.splat(*decays.high.add(j)), s.splat(*decays.low.add(j)));
                let mut i = j - j % S::LANES;
                while i < len {
                    let weight = s.mul(decays.onward(s, high, low, i), s.load_ptr(square.add(j * ld + i)));
                    s.store_ptr(buffers.weights.add(j * ld + i), weight);
                    i += S::LANES;
                }
                let dt = s.splat(*decays.dt.add(j));
                for p in (0..wide).step_by(S::LANES) {
                    let value = s.mul(dt, s.load_ptr(x.data.add(j * x.stride + p)));
                    s.store_ptr(buffers.scaled.add(j * wide + p), value);
                }
            }
            let from = Matrix { data: place.state.cast_const(), stride: padded(state) };
            transpose(from, width, state, buffers.turned, wide);
            let n = if place.some { state } else { 0 };
            let read = Operands { a: c.data, row: c.stride, col: 1, b: buffers.turned, ldb: wide, n };
            Product {
                factor: decays.before,
                second: Operands {
                    a: buffers.weights,
                    row: 1,
                    col: ld,
                    b: buffers.scaled,
                    ldb: wide,
                    n: len,
                },
                half: Half::Lower,
                ..Product::new(read, buffers.u, wide, len, width)
            }
            .run();
            let one = s.splat(T::ONE);
            for i in 0..len {
                let token = self.row * length + place.chunk.start + i;
                let to = call.to.gate.map(|to| to.at((token * heads + place.head) * width));
                let mut p = 0;
                while p < width {
                    let n = S::LANES.min(width - p);
                    let (x, skip) =
                        (s.load_ptr(x.data.add(i * x.stride + p)), s.load_ptr(buffers.skip.add(p)));
                    let mut y = s.load_ptr(buffers.u.add(i * wide + p));
                    if call.inputs.skip.is_some() {
                        y = s.mul_add(skip, x, y);
                    }
                    let dy = load_first(s, place.g.data.add(i * place.g.stride + p), n);
                    let z = load_first(s, z.data.add(i * z.stride + p), n);
                    let gate = sigmoid(s, z);
                    if let Some(to) = to {
                        let slope = s.mul(gate, s.mul_add(z, s.sub(one, gate), one));
                        store_first(s, to.add(p), n, s.mul(s.mul(dy, y), slope));
                    }
                    s.store_ptr(buffers.g.add(i * wide + p), s.mul(dy, s.mul(z, gate)));
                    p += S::LANES;
                }
            }
        }
    }

    /// All pairs of a chunk: weights, the part of `K`, and the gradients of `a` that pairs on both sides of it give.
    #[inline(always)]
    unsafe fn pairs<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, place: &Place<'_, T>) {
        let call = self.call;
        let (len, decays) = (place.chunk.len, &buffers.decays);
        let ld = padded(len);
        let square = call.squares.of(self.row, self.group, place.slot);
        let index = call.group(self.row, self.group) * call.parts + self.index;
        let k = call.to.parts_k.at((index * call.chunks.window + place.slot) * call.squares.square);
        let mut lanes = [T::ZERO; MAX_LANES];
        for lane in 0..MAX_LANES {
            lanes[lane] = T::from_usize(lane);
        }
        let (lanes, zero) = (s.load(&lanes), s.splat(T::ZERO));
        // SAFETY: as the caller vouches.
        unsafe {
            std::slice::from_raw_parts_mut(buffers.given, ld).fill(T::ZERO);
            for j in 0..len {
                let (high, low) = (s.splat(*decays.high.add(j)), s.splat(*decays.low.add(j)));
                let (dt, first) = (s.splat(*decays.dt.add(j)), j - j % S::LANES);
                let diagonal = s.splat(T::from_usize(j - first));
                let mut sum = zero;
                let mut i = first;
                while i < len {
                    let at = j * ld + i;
                    let decay = decays.onward(s, high, low, i);
                    let weight = s.mul(decay, s.load_ptr(square.add(at)));
                    s.store_ptr(buffers.weights.add(at), weight);
                    let product = s.mul(dt, s.load_ptr(buffers.products.add(at)));
                    let (mut own, mut pair) = (s.mul(product, decay), s.mul(product, weight));
                    let mut given = s.load_ptr(buffers.given.add(i));
                    if i == first {
                        // Before the diagonal there is nothing, and on it no decay.
                        let early = s.lt(lanes, diagonal);
                        own = s.select(early, zero, own);
                        given = s.select(early, zero, given);
                        pair = s.select(s.lt(diagonal, lanes), pair, zero);
                    }
                    if i + S::LANES > len {
                        let late = s.lt(lanes, s.splat(T::from_usize(len - i)));
                        pair = s.select(late, pair, zero);
                    }
                    sum = s.add(sum, given);
                    s.store_ptr(buffers.given.add(i), s.add(given, pair));
                    if !place.fresh {
                        own = s.add(own, s.load_ptr(k.add(at)));
                    }
                    s.store_ptr(k.add(at), own);
                    i += S::LANES;
                }
                *buffers.da.add(j) = s.reduce_sum(sum);
            }
        }
    }

    /// `dx`, sums for the skip, and what step sizes get directly.
    #[inline(always)]
    unsafe fn inputs<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, place: &Place<'_, T>) {
        let Dims { length, heads, width, .. } = self.call.dims;
        let (wide, x, g) = (padded(width), place.x, place.g);
        for j in 0..place.chunk.len {
            let token = self.row * length + place.chunk.start + j;
            let to = self.call.to.x.at((token * heads + place.head) * width);
            // SAFETY: as the caller vouches.
            unsafe {
                let dt = s.splat(*buffers.decays.dt.add(j));
                let mut direct = s.splat(T::ZERO);
                let mut p = 0;
                while p < width {
                    let n = S::LANES.min(width - p);
                    let xv = s.load_ptr(x.data.add(j * x.stride + p));
                    let gv = s.load_ptr(g.data.add(j * g.stride + p));
                    let mut u = s.load_ptr(buffers.u.add(j * wide + p));
                    if n < S::LANES {
                        // What pads rows of `u` is of no channel.
                        store_first(s, buffers.u.add(j * wide + p), n, u);
                        u = load_first(s, buffers.u.add(j * wide + p), n);
                    }
                    direct = s.mul_add(xv, u, direct);
                    let dx = s.mul_add(s.load_ptr(buffers.skip.add(p)), gv, s.mul(dt, u));
                    store_first(s, to.add(p), n, dx);
                    let sums = buffers.sums.add(p);
                    s.store_ptr(sums, s.mul_add(gv, xv, s.load_ptr(sums)));
                    p += S::LANES;
                }
                *buffers.direct.add(j) = s.reduce_sum(direct);
            }
        }
    }

    /// What a head gives to `dB` or `dC`: `factor_i rows_i M`, added to the task's part; and the products of that with
    /// `B` or `C`, which are exponents' gradients.
    #[inline(always)]
    unsafe fn inner<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        place: &Place<'_, T>,
        (rows, read, with, factor, some): (Matrix<T>, Matrix<T>, Matrix<T>, *const T, bool),
        (part, sums): (Shared<T>, *mut T),
    ) {
        let call = self.call;
        let Dims { width, state, .. } = call.dims;
        let (len, deep) = (place.chunk.len, padded(state));
        let index = call.group(self.row, self.group) * call.parts + self.index;
        let part = part.at(call.rows_of(index, place.slot));
        // SAFETY: as the caller vouches.
        unsafe {
            if !some {
                std::slice::from_raw_parts_mut(sums, len).fill(T::ZERO);
                if place.fresh {
                    std::slice::from_raw_parts_mut(part, len * deep).fill(T::ZERO);
                }
                return;
            }
            let operands =
                Operands { a: rows.data, row: rows.stride, col: 1, b: read.data, ldb: read.stride, n: width };
            Product::new(operands, buffers.inner, deep, len, state).run();
            for i in 0..len {
                let scale = s.splat(*factor.add(i));
                let mut sum = s.splat(T::ZERO);
                let mut j = 0;
                while j < state {
                    let value = s.mul(scale, s.load_ptr(buffers.inner.add(i * deep + j)));
                    sum = s.mul_add(value, s.load_ptr(with.data.add(i * with.stride + j)), sum);
                    let to = part.add(i * deep + j);
                    s.store_ptr(to, if place.fresh { value } else { s.add(s.load_ptr(to), value) });
                    j += S::LANES;
                }
                *sums.add(i) = s.reduce_sum(sum);
            }
        }
    }

    /// Gradients of `dt`, and sums for `A` and the bias.
    #[inline(always)]
    unsafe fn steps<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, place: &Place<'_, T>, through: T) {
        let call = self.call;
        let Dims { length, heads, .. } = call.dims;
        let (len, decays) = (place.chunk.len, &buffers.decays);
        let a = call.inputs.a[place.head];
        // SAFETY: as the caller vouches.
        unsafe {
            let mut behind = through.to_f64();
            let mut t = len;
            while t > 0 {
                t -= 1;
                behind += (*buffers.taken.add(t)).to_f64();
                *buffers.da.add(t) = T::from_f64((*buffers.da.add(t)).to_f64() + behind);
            }
            let mut ahead = 0.0;
            let (mut sum_a, mut sum_bias) = (0.0, 0.0);
            for t in 0..len {
                let da = (*buffers.da.add(t)).to_f64() + ahead;
                ahead += (*buffers.left.add(t)).to_f64();
                sum_a += da * (*decays.dt.add(t)).to_f64();
                let step = (*buffers.direct.add(t)).to_f64() + a.to_f64() * da;
                *buffers.direct.add(t) = T::from_f64(step);
            }
            for t in (0..len).step_by(S::LANES) {
                let slope = call.inputs.steps.slope(s, s.load_ptr(decays.raw.add(t)));
                let at = buffers.direct.add(t);
                s.store_ptr(at, s.mul(slope, s.load_ptr(at)));
            }
            let to = call.to.dt.at((self.row * length + place.chunk.start) * heads + place.head);
            for t in 0..len {
                let value = *buffers.direct.add(t);
                *to.add(t * heads) = value;
                sum_bias += value.to_f64();
            }
            let at = self.row * heads + place.head;
            *call.to.a.at(at) += sum_a;
            *call.to.bias.at(at) += sum_bias;
        }
    }

    /// The gradient of the state before the chunk; that of an initial state is written.
    #[inline(always)]
    unsafe fn grad_before<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, place: &Place<'_, T>) {
        let Dims { heads, width, state, .. } = self.call.dims;
        let (len, wide) = (place.chunk.len, padded(width));
        let initial = self.call.to.initial.and_then(|to| Some((to, place.chunk.initial?)));
        if place.chunk.first && initial.is_none() {
            return;
        }
        let (g, c, decays) = (place.g, place.c, &buffers.decays);
        // SAFETY: as the caller vouches.
        unsafe {
            for i in 0..len {
                let factor = s.splat(*decays.before.add(i));
                for p in (0..wide).step_by(S::LANES) {
                    let value = s.mul(factor, s.load_ptr(g.data.add(i * g.stride + p)));
                    s.store_ptr(buffers.scaled.add(i * wide + p), value);
                }
            }
            let added = Operands { a: c.data, row: 1, col: c.stride, b: buffers.scaled, ldb: wide, n: len };
            let start = if place.some_grad {
                Start::Scaled(decays.whole, place.grad.cast_const())
            } else {
                Start::Zero
            };
            Product { start, ..Product::new(added, place.grad, wide, state, width) }.run();
            if let Some((to, from)) = initial {
                let to = to.at((from * heads + place.head) * width * state);
                turn_state(Matrix { data: place.grad, stride: wide }, state, width, to);
            }
        }
    }
}

/// `a . b`.
#[inline(always)]
unsafe fn dot<T: Float, S: Simd<T>>(s: S, a: *const T, b: *const T, n: usize) -> T {
    let mut sums = [s.splat(T::ZERO); 4];
    // SAFETY: as the caller vouches; `n` is a multiple of the lanes of every level.
    unsafe {
        let mut i = 0;
        while i + 4 * S::LANES <= n {
            for v in 0..4 {
                let at = i + v * S::LANES;
                sums[v] = s.mul_add(s.load_ptr(a.add(at)), s.load_ptr(b.add(at)), sums[v]);
            }
            i += 4 * S::LANES;
        }
        while i < n {
            sums[0] = s.mul_add(s.load_ptr(a.add(i)), s.load_ptr(b.add(i)), sums[0]);
            i += S::LANES;
        }
    }
    s.reduce_sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
