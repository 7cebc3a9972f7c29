//! The forward of one head of one row of the batch: mini-batch after mini-batch.

use super::gelu::Gelu;
use super::layer::{Fast, Keys, Queries, Rates, Size, room, run_keys};
use super::norm::{Norm, Read};
use super::scratch::{Cut, Scratch, padded};
use super::view::{View, ViewMut};
use super::{Call, StateMut, group};
use sensorium_core::Float;
use sensorium_core::threads::{Disjoint, for_each};

/// Tokens of a call that belong to one mini-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) start: usize,
    pub(super) n: usize,
    /// Place in the mini-batch of the first of them.
    pub(super) place: usize,
    /// Whether the mini-batch ends with them.
    pub(super) complete: bool,
}

impl Batch {
    /// The `i`-th of a call.
    pub(super) fn of(i: usize, position: usize, length: usize, mini_batch: usize) -> Self {
        let place = if i == 0 { position } else { 0 };
        let start = if i == 0 { 0 } else { mini_batch - position + (i - 1) * mini_batch };
        let n = (mini_batch - place).min(length - start);
        Self { start, n, place, complete: place + n == mini_batch }
    }

    /// How many there are.
    pub(super) fn count(position: usize, length: usize, mini_batch: usize) -> usize {
        let first = length.min(mini_batch - position);
        if length == 0 { 0 } else { 1 + (length - first).div_ceil(mini_batch) }
    }
}

/// Buffers that forward and backward load a mini-batch into.
pub(super) struct Tokens<'a, T> {
    pub(super) target: &'a mut [T],
    pub(super) eta: &'a mut [T],
}

impl<'a, T: Float> Tokens<'a, T> {
    pub(super) fn len(width: usize, n: usize) -> usize {
        n * padded::<T>(width) + padded::<T>(n)
    }

    pub(super) fn cut(width: usize, n: usize, cut: &mut Cut<'a, T>) -> Self {
        Self { target: cut.next(n * padded::<T>(width)), eta: cut.next(padded::<T>(n)) }
    }

    /// Keys to `x`, values less keys to the target, rates to `eta`.
    pub(super) fn load(&mut self, call: &Call<'_, T>, head: usize, batch: Batch, x: &mut [T]) {
        let ld = padded::<T>(call.dims.width);
        for i in 0..batch.n {
            let at = call.at(head, batch.start + i);
            let (k, v) = (call.k.row(at), call.v.row(at));
            x[i * ld..i * ld + k.len()].copy_from_slice(k);
            for (t, (&k, &v)) in self.target[i * ld..].iter_mut().zip(k.iter().zip(v)) {
                *t = v - k;
            }
        }
        let first = head * call.dims.length + batch.start;
        self.eta.fill(T::ZERO);
        self.eta[..batch.n].copy_from_slice(&call.eta[first..first + batch.n]);
    }
}

/// Rows of an array to padded ones.
pub(super) fn load_rows<T: Float>(
    n: usize,
    ld: usize,
    out: &mut [T],
    row: impl Fn(usize) -> [usize; 3],
    from: &View<'_, T>,
) {
    for i in 0..n {
        let row = from.row(row(i));
        out[i * ld..i * ld + row.len()].copy_from_slice(row);
    }
}

/// The norm's parameters of a head, with padded rows.
pub(super) fn norm_of<'a, T: Float>(call: &Call<'_, T>, head: usize, cut: &mut Cut<'a, T>) -> Norm<'a, T> {
    let d = call.dims.width;
    let ld = padded::<T>(d);
    let (weight, bias, mask) = (cut.next(ld), cut.next(ld), cut.next(ld));
    let of = head % call.dims.heads * d;
    weight[..d].copy_from_slice(&call.norm_weight[of..of + d]);
    bias[..d].copy_from_slice(&call.norm_bias[of..of + d]);
    mask[..d].fill(T::ONE);
    Norm { weight, bias, mask, d, eps: call.eps }
}

/// What a forward leaves behind.
pub(super) struct Results<'a, T> {
    /// What the queries read; none where only checkpoints are wanted.
    pub(super) y: Option<ViewMut<'a, T>>,
    pub(super) state: Option<StateMut<'a, T>>,
    /// Fast weights at the start of every group but the first.
    pub(super) checkpoints: Option<&'a mut [T]>,
}

/// Runs all heads.
pub(super) fn run<T: Float>(call: &Call<'_, T>, results: Results<'_, T>) {
    let dims = call.dims;
    let heads = dims.batch * dims.heads;
    let sizes = dims.sizes();
    let shared = Shared {
        y: results.y,
        state: results.state.map(StateMut::shared),
        checkpoints: results.checkpoints.map(Disjoint::new),
    };
    for_each(heads, dims.length.saturating_mul(call.work_per_token()), |head| {
        run_head(call, &sizes, head, &shared);
    });
}

struct Shared<'a, T> {
    y: Option<ViewMut<'a, T>>,
    state: Option<SharedState<'a, T>>,
    checkpoints: Option<Disjoint<'a, T>>,
}

/// A state that heads write, each its own part.
pub(super) struct SharedState<'a, T> {
    pub(super) weights: Vec<Disjoint<'a, T>>,
    pub(super) sums: Vec<Disjoint<'a, T>>,
}

impl<'a, T: Float> SharedState<'a, T> {
    /// A head's matrix and bias of a layer in arrays `(B, H, ...)`.
    ///
    /// # Safety
    /// Nothing else refers to them.
    unsafe fn part(
        parts: &[Disjoint<'a, T>],
        head: usize,
        l: usize,
        size: Size,
    ) -> (&'a mut [T], &'a mut [T]) {
        let (w, b) = (size.inputs * size.outputs, size.outputs);
        // SAFETY: as the caller vouches.
        unsafe {
            (parts[2 * l].slice(head * w..(head + 1) * w), parts[2 * l + 1].slice(head * b..(head + 1) * b))
        }
    }

    /// Writes a head's weights and sums of a layer.
    ///
    /// # Safety
    /// Nothing else refers to them.
    pub(super) unsafe fn write(&self, head: usize, l: usize, weights: &Fast<'_, T>, sums: &Fast<'_, T>) {
        // SAFETY: as the caller vouches.
        let (w, b) = unsafe { Self::part(&self.weights, head, l, weights.size) };
        weights.write(w, b);
        // SAFETY: as the caller vouches.
        let (w, b) = unsafe { Self::part(&self.sums, head, l, sums.size) };
        sums.write(w, b);
    }
}

/// Weights and sums that a head of one layer works on.
struct Begun<'a, T> {
    weights: Fast<'a, T>,
    sums: Fast<'a, T>,
    /// Whether they are in the state itself, where rows have no padding.
    in_place: bool,
}

impl<'a, T: Float> Begun<'a, T> {
    fn len(size: Size) -> usize {
        2 * size.len::<T>()
    }

    fn new(
        call: &Call<'_, T>,
        state: Option<&SharedState<'a, T>>,
        (head, l, size): (usize, usize, Size),
        cut: &mut Cut<'a, T>,
    ) -> Self {
        let Some(state) = state else {
            let (mut weights, mut sums) = (Fast::cut(size, cut), Fast::cut(size, cut));
            call.read_weights(head, l, &mut weights);
            call.read_sums(head, l, &mut sums);
            return Self { weights, sums, in_place: false };
        };
        // SAFETY: each head has its own parts, and takes them once.
        let [(w, b), (sum_w, sum_b)] = unsafe {
            [SharedState::part(&state.weights, head, l, size), SharedState::part(&state.sums, head, l, size)]
        };
        if call.position == 0 {
            sum_w.fill(T::ZERO);
            sum_b.fill(T::ZERO);
        }
        if size.outputs == size.ldc::<T>() {
            let (weights, sums) = (Fast { size, w, b }, Fast { size, w: sum_w, b: sum_b });
            return Self { weights, sums, in_place: true };
        }
        let (mut weights, mut sums) = (Fast::cut(size, cut), Fast::cut(size, cut));
        weights.read(w, b);
        sums.read(sum_w, sum_b);
        Self { weights, sums, in_place: false }
    }
}

fn run_head<T: Float>(call: &Call<'_, T>, sizes: &[Size], head: usize, shared: &Shared<'_, T>) {
    let dims = call.dims;
    let most = call.mini_batch.min(dims.length);
    let ld = padded::<T>(dims.width);
    let mut scratch = Scratch::take();
    let wide = sizes.iter().map(|s| s.ldc::<T>()).max().unwrap_or(0);
    let len = sizes
        .iter()
        .map(|&s| Keys::<T>::len(s, most, false) + Queries::<T>::len(s, most) + Begun::<T>::len(s));
    let len = len.sum::<usize>()
        + 3 * ld
        + Tokens::<T>::len(dims.width, most)
        + room::<T>(sizes, most)
        + most * wide;
    let cut = &mut scratch.zeros::<T>(len);
    let norm = norm_of(call, head, cut);
    let (mut keys, mut sums, mut in_place) = (Vec::new(), Vec::new(), Vec::new());
    for (l, &size) in sizes.iter().enumerate() {
        let begun = Begun::new(call, shared.state.as_ref(), (head, l, size), cut);
        keys.push(Keys::cut(begun.weights, most, false, cut));
        sums.push(begun.sums);
        in_place.push(begun.in_place);
    }
    let mut queries: Vec<_> = sizes.iter().map(|&s| Queries::cut(s, most, cut)).collect();
    let mut tokens = Tokens::cut(dims.width, most, cut);
    let (room, spare) = (cut.next(room::<T>(sizes, most)), cut.next(most * wide));
    let count = call.count();
    let (per_group, group) = (sizes.iter().map(|s| s.len::<T>()).sum::<usize>(), group(count));
    for i in 0..count {
        let batch = call.batch(i);
        if let Some(checkpoints) = shared.checkpoints.as_ref().filter(|_| i > 0 && i % group == 0) {
            let later = (count - 1) / group;
            let mut start = (head * later + i / group - 1) * per_group;
            for layer in &keys {
                let len = layer.fast.size.len::<T>();
                // SAFETY: each head and group has its own part.
                layer.fast.pack(unsafe { checkpoints.slice(start..start + len) });
                start += len;
            }
        }
        let n = batch.n;
        tokens.load(call, head, batch, keys[0].x);
        run_keys(&mut keys, n, norm, tokens.target, room);
        let carried = batch.place > 0;
        let rates = Rates { n, eta: tokens.eta, scale: &call.scale[batch.place..batch.place + n] };
        if let Some(y) = &shared.y {
            load_rows(n, ld, queries[0].x, |i| call.at(head, batch.start + i), &call.q);
            run_queries(&mut queries, &keys, rates, carried.then_some(&*sums), spare, room);
            let (q, z) = ends(&mut queries);
            T::dispatch(Read { norm, q: &q[..n * ld], z: &mut z[..n * ld] });
            for i in 0..n {
                // SAFETY: each head has rows of its own.
                let y = unsafe { y.row(call.at(head, batch.start + i)) };
                y.copy_from_slice(&z[i * ld..i * ld + dims.width]);
            }
        }
        if i + 1 < count || shared.state.is_some() {
            learn(&mut keys, &mut sums, batch, rates, spare);
        }
    }
    if let Some(state) = &shared.state {
        for l in (0..sizes.len()).filter(|&l| !in_place[l]) {
            // SAFETY: each head has its own parts, and what it took of them before is in use no more.
            unsafe { state.write(head, l, &keys[l].fast, &sums[l]) };
        }
    }
}

/// Runs the queries of a mini-batch, which are the first layer's `x`, through the layers.
fn run_queries<T: Float>(
    queries: &mut [Queries<'_, T>],
    keys: &[Keys<'_, T>],
    rates: Rates<'_, T>,
    sums: Option<&[Fast<'_, T>]>,
    spare: &mut [T],
    room: &mut [T],
) {
    for l in 0..queries.len() {
        let (low, high) = queries.split_at_mut(l + 1);
        low[l].run(&keys[l], rates, sums.map(|sums| (&sums[l], &mut *spare)), room);
        if let Some(next) = high.first_mut() {
            let len = rates.n * keys[l].fast.size.ldc::<T>();
            T::dispatch(Gelu { x: &low[l].z[..len], y: &mut next.x[..len] });
        }
    }
}

/// The first layer's inputs and the last one's outputs.
fn ends<'a, T>(queries: &'a mut [Queries<'_, T>]) -> (&'a [T], &'a mut [T]) {
    match queries {
        [only] => (only.x, only.z),
        [first, .., last] => (first.x, last.z),
        [] => (&[], &mut []),
    }
}

/// Takes the step of a mini-batch that is complete; otherwise adds to the sums.
fn learn<T: Float>(
    keys: &mut [Keys<'_, T>],
    sums: &mut [Fast<'_, T>],
    batch: Batch,
    rates: Rates<'_, T>,
    spare: &mut [T],
) {
    let Rates { n, eta, scale } = rates;
    let step = -scale[n - 1];
    for (layer, sums) in keys.iter_mut().zip(sums) {
        if batch.complete && batch.place == 0 {
            layer.fast.learn(n, layer.x, layer.g, eta, step, spare);
            continue;
        }
        sums.learn(n, layer.x, layer.g, eta, T::ONE, spare);
        if batch.complete {
            layer.fast.add(step, sums);
            sums.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mini_batches_cover_a_call_from_any_place() {
        for mini_batch in 1..6 {
            for position in 0..mini_batch {
                for length in 0..17 {
                    let (mut start, mut place) = (0, position);
                    for i in 0..Batch::count(position, length, mini_batch) {
                        let batch = Batch::of(i, position, length, mini_batch);
                        assert_eq!((batch.start, batch.place), (start, place));
                        assert!(batch.n > 0 && batch.complete == (place + batch.n == mini_batch));
                        start += batch.n;
                        place = 0;
                    }
                    assert_eq!(start, length);
                }
            }
        }
    }
}
