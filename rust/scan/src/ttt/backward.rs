//! The backward of one head of one row of the batch: groups of mini-batches, and mini-batches, in reverse.
//!
//! Within a mini-batch, from what was read down to the inputs. `D` is the gradient by the weights after it (by the
//! sums, where it is unfinished), `f` is `-scale_b` (or 1). Of each layer, from the last one to the first:
//! with `dZ` the gradient by the queries' outputs, `dP = dZ G^T` gives that by the pairs, the queries' inputs get
//! `dZ W^T` and the keys' what the pairs give, `dG = P^T dZ + f eta (X D + d)`, `dX += f eta G D^T`, `D += X_q^T dZ`.
//! Then the gradients `G` of the loss are differentiated in the order in which they were made reversed, which ends
//! with a gradient by the keys' outputs; and that goes through the layers as in any network. It costs twice the
//! products of the forward, and the forward again.

use super::forward::{Batch, SharedState, Tokens, load_rows, norm_of};
use super::gelu::GeluSlope;
use super::layer::{Fast, Keys, Queries, Rates, Size, room, run_keys};
use super::mix::{AddProduct, AddScaled, Dots, MixBackward, Scale, Times};
use super::norm::{LossBackward, Norm, ReadBackward};
use super::product::{Left, Start, Turned, multiply};
use super::scratch::{Cut, Scratch, padded};
use super::view::{View, ViewMut};
use super::{Call, Grads, State, group, read_part};
use sensorium_core::Float;
use sensorium_core::threads::{Disjoint, for_each};

/// What heads write, each its own part.
struct Shared<'a, T> {
    q: ViewMut<'a, T>,
    k: ViewMut<'a, T>,
    v: ViewMut<'a, T>,
    eta: Disjoint<'a, T>,
    initial: SharedState<'a, T>,
    /// Of every head of every row of the batch, to be summed over rows.
    norm: Disjoint<'a, T>,
    scale: Disjoint<'a, f64>,
}

pub(super) fn run<T: Float>(
    call: &Call<'_, T>,
    grad: &View<'_, T>,
    grad_last: Option<State<'_, T>>,
    checkpoints: &[T],
    grads: Grads<'_, T>,
) {
    let dims = call.dims;
    let (heads, places, d) = (dims.batch * dims.heads, call.scale.len(), dims.width);
    let (mut norm, mut scale) = (vec![T::ZERO; heads * 2 * d], vec![0.0; heads * places]);
    let shared = Shared {
        q: grads.q,
        k: grads.k,
        v: grads.v,
        eta: Disjoint::new(grads.eta),
        initial: grads.initial.shared(),
        norm: Disjoint::new(&mut norm),
        scale: Disjoint::new(&mut scale),
    };
    let sizes = dims.sizes();
    for_each(heads, dims.length.saturating_mul(call.work_per_token()).saturating_mul(3), |head| {
        Reverse::run(call, &sizes, head, grad, grad_last, checkpoints, &shared);
    });
    drop(shared);
    sum_over_batch(dims.heads, d, &norm, grads.norm_weight, grads.norm_bias);
    if let Some(out) = grads.token_scale {
        out.fill(T::ZERO);
        for (i, out) in out.iter_mut().enumerate().take(places) {
            *out = T::from_f64((0..heads).map(|head| scale[head * places + i]).sum());
        }
    }
}

fn sum_over_batch<T: Float>(heads: usize, d: usize, parts: &[T], weight: &mut [T], bias: &mut [T]) {
    weight.fill(T::ZERO);
    bias.fill(T::ZERO);
    for (i, part) in parts.chunks_exact(2 * d).enumerate() {
        let of = i % heads * d;
        for j in 0..d {
            weight[of + j] += part[j];
            bias[of + j] += part[d + j];
        }
    }
}

/// A layer's gradients over one mini-batch.
struct Layer<'a, T> {
    /// By the weights; at the end, by those that the call began from.
    d: Fast<'a, T>,
    /// By the sums of an unfinished mini-batch.
    d_sums: Fast<'a, T>,
    /// By the keys' inputs.
    dx: &'a mut [T],
    /// By the gradients of the loss; of the last layer, afterwards by the keys' outputs.
    dg: &'a mut [T],
    /// By the keys' outputs, of a hidden layer.
    dz: &'a mut [T],
    /// By the queries' outputs.
    dzq: &'a mut [T],
}

impl<'a, T: Float> Layer<'a, T> {
    fn len(size: Size, n: usize) -> usize {
        2 * size.len::<T>() + n * (size.lda::<T>() + 3 * size.ldc::<T>())
    }

    fn cut(size: Size, n: usize, cut: &mut Cut<'a, T>) -> Self {
        Self {
            d: Fast::cut(size, cut),
            d_sums: Fast::cut(size, cut),
            dx: cut.next(n * size.lda::<T>()),
            dg: cut.next(n * size.ldc::<T>()),
            dz: cut.next(n * size.ldc::<T>()),
            dzq: cut.next(n * size.ldc::<T>()),
        }
    }
}

/// A mini-batch of the group at hand: what its keys went through.
struct Record<'a, T> {
    layers: Vec<Keys<'a, T>>,
    tokens: Tokens<'a, T>,
}

/// One head's backward.
struct Reverse<'a, 'c, T> {
    call: &'c Call<'c, T>,
    head: usize,
    norm: Norm<'a, T>,
    records: Vec<Record<'a, T>>,
    queries: Vec<Queries<'a, T>>,
    layers: Vec<Layer<'a, T>>,
    /// Sums that the call began from, where it began within a mini-batch.
    sums: Vec<Fast<'a, T>>,
    /// Gradient by the queries.
    dq: &'a mut [T],
    deta: &'a mut [T],
    dnorm: [&'a mut [T]; 2],
    dscale: Vec<f64>,
    /// Rows of any layer's outputs, twice.
    spare: [&'a mut [T]; 2],
    /// A number a token.
    dots: &'a mut [T],
    pairs: &'a mut [T],
    room: &'a mut [T],
}

impl<'a, 'c, T: Float> Reverse<'a, 'c, T> {
    fn run(
        call: &'c Call<'c, T>,
        sizes: &[Size],
        head: usize,
        grad: &View<'_, T>,
        grad_last: Option<State<'_, T>>,
        checkpoints: &[T],
        shared: &Shared<'_, T>,
    ) {
        let (d, count) = (call.dims.width, call.count());
        let mut scratch = Scratch::take();
        let records = group(count).min(count);
        let mut this = Reverse::new(call, sizes, head, records, &mut scratch);
        if let Some(last) = grad_last {
            for (l, layer) in this.layers.iter_mut().enumerate() {
                read_part(last.weights, head, l, &mut layer.d);
                read_part(last.sums, head, l, &mut layer.d_sums);
            }
        }
        let mut live = grad_last.is_some();
        for first in (0..count).step_by(group(count)).rev() {
            let batches = first..(first + group(count)).min(count);
            this.replay(batches.clone(), checkpoints);
            for i in batches.rev() {
                let batch = call.batch(i);
                this.reverse(batch, i - first, grad, live);
                this.store(batch, i - first, shared);
                live = true;
            }
        }
        if call.position == 0 {
            for layer in &mut this.layers {
                layer.d_sums.clear();
            }
        }
        // SAFETY: each head has its own parts.
        unsafe {
            for (l, layer) in this.layers.iter().enumerate() {
                shared.initial.write(head, l, &layer.d, &layer.d_sums);
            }
            let norm = shared.norm.slice(head * 2 * d..(head + 1) * 2 * d);
            norm[..d].copy_from_slice(&this.dnorm[0][..d]);
            norm[d..].copy_from_slice(&this.dnorm[1][..d]);
            let places = this.dscale.len();
            shared.scale.slice(head * places..(head + 1) * places).copy_from_slice(&this.dscale);
        }
    }
    /// Buffers of a head, with room for `records` mini-batches.
    fn new(
        call: &'c Call<'c, T>,
        sizes: &[Size],
        head: usize,
        records: usize,
        scratch: &'a mut Scratch,
    ) -> Self {
        let (width, n) = (call.dims.width, call.mini_batch.min(call.dims.length));
        let (ld, pairs) = (padded::<T>(width), n * padded::<T>(n));
        let wide = n * sizes.iter().map(|s| s.ldc::<T>().max(s.lda::<T>())).max().unwrap_or(0);
        let bent = |l: usize| l + 1 < sizes.len();
        let mut record = Tokens::<T>::len(width, n);
        let mut len = 5 * ld + n * ld + 2 * padded::<T>(n) + pairs + 2 * wide + room::<T>(sizes, n);
        for (l, &s) in sizes.iter().enumerate() {
            record += Keys::<T>::len(s, n, bent(l)) + s.len::<T>();
            len += Queries::<T>::len(s, n) + Layer::<T>::len(s, n) + s.len::<T>();
        }
        let cut = &mut scratch.zeros::<T>(len + records * record);
        let norm = norm_of(call, head, cut);
        let mut sums: Vec<_> = sizes.iter().map(|&s| Fast::cut(s, cut)).collect();
        for (l, sums) in sums.iter_mut().enumerate() {
            call.read_sums(head, l, sums);
        }
        let layers = sizes.iter().map(|&s| Layer::cut(s, n, cut)).collect();
        let queries = sizes.iter().map(|&s| Queries::cut(s, n, cut)).collect();
        let keys = |cut: &mut Cut<'a, T>| {
            sizes.iter().enumerate().map(|(l, &s)| Keys::cut(Fast::cut(s, cut), n, bent(l), cut)).collect()
        };
        let records =
            (0..records).map(|_| Record { layers: keys(cut), tokens: Tokens::cut(width, n, cut) }).collect();
        Self {
            call,
            head,
            norm,
            records,
            queries,
            layers,
            sums,
            dq: cut.next(n * ld),
            deta: cut.next(padded::<T>(n)),
            dnorm: [cut.next(ld), cut.next(ld)],
            dscale: vec![0.0; call.scale.len()],
            spare: [cut.next(wide), cut.next(wide)],
            dots: cut.next(padded::<T>(n)),
            pairs: cut.next(pairs),
            room: cut.next(room::<T>(sizes, n)),
        }
    }

    /// Runs the keys of a group of mini-batches again, each into its record.
    fn replay(&mut self, batches: std::ops::Range<usize>, checkpoints: &[T]) {
        let (call, first) = (self.call, batches.start);
        let per_group: usize = self.layers.iter().map(|layer| layer.d.size.len::<T>()).sum();
        let (count, group) = (call.count(), group(call.count()));
        let mut start = (self.head * ((count - 1) / group) + (first / group).saturating_sub(1)) * per_group;
        for (l, layer) in self.records[0].layers.iter_mut().enumerate() {
            if first == 0 {
                call.read_weights(self.head, l, &mut layer.fast);
            } else {
                let len = layer.fast.size.len::<T>();
                layer.fast.unpack(&checkpoints[start..start + len]);
                start += len;
            }
        }
        for i in batches.clone() {
            let batch = call.batch(i);
            let (low, high) = self.records.split_at_mut(i - first + 1);
            let record = &mut low[i - first];
            record.tokens.load(call, self.head, batch, record.layers[0].x);
            run_keys(&mut record.layers, batch.n, self.norm, record.tokens.target, self.room);
            if i + 1 == batches.end {
                break;
            }
            let step = -call.scale[batch.place + batch.n - 1];
            for (l, (layer, next)) in record.layers.iter().zip(&mut high[0].layers).enumerate() {
                next.fast.copy(&layer.fast);
                next.fast.learn(batch.n, layer.x, layer.g, record.tokens.eta, step, self.spare[0]);
                if batch.place > 0 {
                    next.fast.add(step, &self.sums[l]);
                }
            }
        }
    }

    /// Gradients of one mini-batch; `live` where what comes after it has any.
    fn reverse(&mut self, batch: Batch, record: usize, grad: &View<'_, T>, live: bool) {
        let (call, n, last) = (self.call, batch.n, self.layers.len() - 1);
        let ld = padded::<T>(call.dims.width);
        let at = |i| call.at(self.head, batch.start + i);
        load_rows(n, ld, self.queries[0].x, at, &call.q);
        load_rows(n, ld, self.layers[last].dzq, at, grad);
        self.dq[..n * ld].copy_from_slice(&self.layers[last].dzq[..n * ld]);
        self.deta.fill(T::ZERO);
        self.run_queries(batch, record);
        let [dweight, dbias] = &mut self.dnorm;
        let (norm, z) = (self.norm, &self.queries[last].z[..n * ld]);
        T::dispatch(ReadBackward { norm, z, grad: &mut self.layers[last].dzq[..n * ld], dweight, dbias });
        for l in (0..=last).rev() {
            self.reverse_pairs(batch, record, l);
            if live {
                self.reverse_step(batch, record, l);
            }
            if batch.place > 0 {
                self.reverse_sums(batch, l);
            }
            let (low, high) = self.layers.split_at_mut(l);
            let layer = &mut high[0];
            layer.d.add_outer(n, self.queries[l].x, layer.dzq);
            if let Some(below) = low.last_mut() {
                let len = n * below.d.size.ldc::<T>();
                T::dispatch(Times { by: &self.queries[l - 1].z[..len], y: &mut below.dzq[..len] });
            }
        }
        self.reverse_keys(n, record);
    }

    /// Runs the queries again; of a hidden layer's outputs the slopes are kept.
    fn run_queries(&mut self, batch: Batch, record: usize) {
        let (n, record) = (batch.n, &self.records[record]);
        let scale = &self.call.scale[batch.place..batch.place + n];
        let rates = Rates { n, eta: record.tokens.eta, scale };
        for l in 0..self.queries.len() {
            let (low, high) = self.queries.split_at_mut(l + 1);
            let carried = (batch.place > 0).then_some((&self.sums[l], &mut *self.spare[0]));
            low[l].run(&record.layers[l], rates, carried, self.room);
            if let Some(next) = high.first_mut() {
                let len = n * record.layers[l].fast.size.ldc::<T>();
                T::dispatch(GeluSlope { x: &mut low[l].z[..len], y: &mut next.x[..len] });
            }
        }
    }

    /// From the gradient by a layer's outputs on queries: by its inputs on queries (to `dzq` of the layer below, or
    /// added to `dq`), by the keys' inputs and the loss's gradients, and by the rates.
    fn reverse_pairs(&mut self, batch: Batch, record: usize, l: usize) {
        let (n, ldn, record) = (batch.n, padded::<T>(batch.n), &self.records[record]);
        let (keys, queries) = (&record.layers[l], &self.queries[l]);
        let (low, high) = self.layers.split_at_mut(l);
        let layer = &mut high[0];
        let (size, lda, ldc) = (layer.d.size, layer.d.size.lda::<T>(), layer.d.size.ldc::<T>());
        Turned::new(keys.g, (n, size.outputs), self.room, n).multiply(n, layer.dzq, Start::Zero, self.pairs);
        T::dispatch(MixBackward {
            n,
            ld: ldn,
            eta: record.tokens.eta,
            scale: &self.call.scale[batch.place..batch.place + n],
            m: queries.m,
            dp: self.pairs,
            deta: self.deta,
            dscale: &mut self.dscale[batch.place..batch.place + n],
        });
        let (below, start) = match low.last_mut() {
            Some(below) => (&mut *below.dzq, Start::Zero),
            None => (&mut *self.dq, Start::Add),
        };
        keys.fast.apply_turned(n, layer.dzq, start, below, self.room);
        multiply((n, n, lda), Left::rows(self.pairs, ldn), keys.x, Start::Add, below);
        multiply((n, n, lda), Left::turned(self.pairs, ldn), queries.x, Start::Zero, layer.dx);
        multiply((n, n, ldc), Left::turned(queries.p, ldn), layer.dzq, Start::Zero, layer.dg);
    }

    /// What the step at the end of the mini-batch, or the sums that it leaves, add to the gradients by the keys'
    /// inputs, the loss's gradients and the rates.
    fn reverse_step(&mut self, batch: Batch, record: usize, l: usize) {
        let (n, record) = (batch.n, &self.records[record]);
        let (keys, eta, layer) = (&record.layers[l], &record.tokens.eta[..n], &mut self.layers[l]);
        let (end, ldc) = (batch.place + n - 1, layer.d.size.ldc::<T>());
        let (factor, after) =
            if batch.complete { (-self.call.scale[end], &layer.d) } else { (T::ONE, &layer.d_sums) };
        let [by_g, scaled] = &mut self.spare;
        after.apply(n, keys.x, by_g);
        T::dispatch(Dots { ld: ldc, x: keys.g, by: eta, factor, y: by_g, out: self.dots });
        T::dispatch(AddScaled { factor: T::ONE, x: &by_g[..n * ldc], y: &mut layer.dg[..n * ldc] });
        for j in 0..n {
            self.deta[j] += factor * self.dots[j];
            if batch.complete {
                self.dscale[end] -= (eta[j] * self.dots[j]).to_f64();
            }
        }
        T::dispatch(Scale { ld: ldc, by: eta, factor, x: keys.g, out: scaled });
        after.apply_turned(n, scaled, Start::Add, layer.dx, self.room);
    }

    /// What the sums that the call began from add to the gradients, their own among them.
    fn reverse_sums(&mut self, batch: Batch, l: usize) {
        let (n, sums, queries) = (batch.n, &self.sums[l], &self.queries[l]);
        let scale = &self.call.scale[batch.place..batch.place + n];
        let (low, high) = self.layers.split_at_mut(l);
        let layer = &mut high[0];
        let ldc = layer.d.size.ldc::<T>();
        let [carried, scaled] = &mut self.spare;
        sums.apply(n, queries.x, carried);
        T::dispatch(Dots { ld: ldc, x: layer.dzq, by: scale, factor: T::ONE, y: carried, out: self.dots });
        for i in 0..n {
            self.dscale[batch.place + i] -= self.dots[i].to_f64();
        }
        if batch.complete {
            let end = batch.place + n - 1;
            for (a, b) in [(&layer.d.w, &sums.w), (&layer.d.b, &sums.b)] {
                self.dscale[end] -= a.iter().zip(b.iter()).map(|(&a, &b)| (a * b).to_f64()).sum::<f64>();
            }
            layer.d_sums.clear();
            layer.d_sums.add(-self.call.scale[end], &layer.d);
        }
        T::dispatch(Scale { ld: ldc, by: scale, factor: -T::ONE, x: layer.dzq, out: scaled });
        let below = low.last_mut().map_or(&mut *self.dq, |below| &mut *below.dzq);
        sums.apply_turned(n, scaled, Start::Add, below, self.room);
        layer.d_sums.add_outer(n, queries.x, scaled);
    }

    /// From the gradients by the loss's gradients: through how they were made, then through the layers on keys.
    fn reverse_keys(&mut self, n: usize, record: usize) {
        let (last, norm) = (self.layers.len() - 1, self.norm);
        let record = &mut self.records[record];
        for l in 0..last {
            let (low, high) = self.layers.split_at_mut(l + 1);
            let (layer, above) = (&mut low[l], &mut high[0]);
            let (keys, over) = (&record.layers[l], &record.layers[l + 1]);
            let (len, ldc) = (n * layer.d.size.ldc::<T>(), above.d.size.ldc::<T>());
            layer.dz[..len].copy_from_slice(&layer.dg[..len]);
            T::dispatch(Times { by: &keys.a[..len], y: &mut layer.dz[..len] });
            T::dispatch(Times { by: &keys.curve[..len], y: &mut layer.dz[..len] });
            T::dispatch(Times { by: &keys.z[..len], y: &mut layer.dg[..len] });
            let (da, size) = (&*layer.dg, above.d.size);
            multiply(
                (n, size.inputs, ldc),
                Left::rows(da, size.lda::<T>()),
                over.fast.w,
                Start::Add,
                above.dg,
            );
            multiply((size.inputs, n, ldc), Left::turned(da, size.lda::<T>()), over.g, Start::Add, above.d.w);
        }
        let len = n * norm.ld();
        let [dweight, dbias] = &mut self.dnorm;
        let (z, target) = (&record.layers[last].z[..len], &mut record.tokens.target[..len]);
        T::dispatch(LossBackward { norm, z, target, u: &mut self.layers[last].dg[..len], dweight, dbias });
        for l in (0..=last).rev() {
            let (low, high) = self.layers.split_at_mut(l);
            let (layer, keys) = (&mut high[0], &record.layers[l]);
            let dz = if l == last { &*layer.dg } else { &*layer.dz };
            keys.fast.apply_turned(n, dz, Start::Add, layer.dx, self.room);
            layer.d.add_outer(n, keys.x, dz);
            if let Some(below) = low.last_mut() {
                let len = n * below.d.size.ldc::<T>();
                let by = &record.layers[l - 1].z[..len];
                T::dispatch(AddProduct { x: &layer.dx[..len], by, y: &mut below.dz[..len] });
            }
        }
    }

    /// Writes the gradients of a mini-batch's tokens.
    fn store(&self, batch: Batch, record: usize, shared: &Shared<'_, T>) {
        let (d, ld) = (self.call.dims.width, self.norm.ld());
        let dtarget = &self.records[record].tokens.target;
        for i in 0..batch.n {
            let (at, row) = (self.call.at(self.head, batch.start + i), i * ld..i * ld + d);
            // SAFETY: each head has rows of its own, and each token is stored once.
            let (q, k, v) = unsafe { (shared.q.row(at), shared.k.row(at), shared.v.row(at)) };
            q.copy_from_slice(&self.dq[row.clone()]);
            v.copy_from_slice(&dtarget[row.clone()]);
            for (k, (&x, &t)) in k.iter_mut().zip(self.layers[0].dx[row.clone()].iter().zip(&dtarget[row])) {
                *k = x - t;
            }
        }
        let first = self.head * self.call.dims.length + batch.start;
        // SAFETY: as above.
        unsafe { shared.eta.slice(first..first + batch.n) }.copy_from_slice(&self.deta[..batch.n]);
    }
}
