//! One layer of the fast network over one mini-batch: what it makes of keys and queries, and how it learns.

use super::gelu::{GeluCurve, GeluSlope};
use super::mix::{AddRows, AddScaled, Mix, Scale, Times};
use super::norm::{Loss, Norm};
use super::product::{FEW, Left, Start, Turned, multiply, multiply_causal};
use super::scratch::{Cut, padded};
use sensorium_core::Float;

/// Sizes of a layer's matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Size {
    /// Elements of a padded row of inputs.
    pub(super) const fn lda<T>(self) -> usize {
        padded::<T>(self.inputs)
    }
    /// Elements of a padded row of outputs.
    pub(super) const fn ldc<T>(self) -> usize {
        padded::<T>(self.outputs)
    }
    /// Elements of matrix and bias, rows padded.
    pub(super) const fn len<T>(self) -> usize {
        (self.inputs + 1) * self.ldc::<T>()
    }
}

/// A matrix `(inputs, outputs)` and a bias `(outputs,)` with padded rows: fast weights, sums of their gradients, or
/// gradients by either.
pub(super) struct Fast<'a, T> {
    pub(super) size: Size,
    pub(super) w: &'a mut [T],
    pub(super) b: &'a mut [T],
}

impl<'a, T: Float> Fast<'a, T> {
    pub(super) fn cut(size: Size, cut: &mut Cut<'a, T>) -> Self {
        let ld = size.ldc::<T>();
        Self { size, w: cut.next(size.inputs * ld), b: cut.next(ld) }
    }

    /// From rows without padding.
    pub(super) fn read(&mut self, w: &[T], b: &[T]) {
        let Size { inputs, outputs } = self.size;
        let ld = self.size.ldc::<T>();
        for i in 0..inputs {
            self.w[i * ld..i * ld + outputs].copy_from_slice(&w[i * outputs..(i + 1) * outputs]);
        }
        self.b[..outputs].copy_from_slice(b);
    }

    /// To rows without padding.
    pub(super) fn write(&self, w: &mut [T], b: &mut [T]) {
        let Size { inputs, outputs } = self.size;
        let ld = self.size.ldc::<T>();
        for i in 0..inputs {
            w[i * outputs..(i + 1) * outputs].copy_from_slice(&self.w[i * ld..i * ld + outputs]);
        }
        b.copy_from_slice(&self.b[..outputs]);
    }

    /// From as many padded elements: the matrix, then the bias.
    pub(super) fn unpack(&mut self, from: &[T]) {
        let (w, b) = from.split_at(self.w.len());
        self.w.copy_from_slice(w);
        self.b.copy_from_slice(b);
    }

    /// The converse.
    pub(super) fn pack(&self, to: &mut [T]) {
        let (w, b) = to.split_at_mut(self.w.len());
        w.copy_from_slice(self.w);
        b.copy_from_slice(self.b);
    }

    /// The same numbers as another's.
    pub(super) fn copy(&mut self, from: &Fast<'_, T>) {
        self.w.copy_from_slice(from.w);
        self.b.copy_from_slice(from.b);
    }

    pub(super) fn clear(&mut self) {
        self.w.fill(T::ZERO);
        self.b.fill(T::ZERO);
    }

    /// `self += factor other`.
    pub(super) fn add(&mut self, factor: T, other: &Fast<'_, T>) {
        T::dispatch(AddScaled { factor, x: other.w, y: self.w });
        T::dispatch(AddScaled { factor, x: other.b, y: self.b });
    }

    /// `self += left^T right` and the sum of the rows of `right`, over `n` tokens.
    pub(super) fn add_outer(&mut self, n: usize, left: &[T], right: &[T]) {
        let (size, ld) = (self.size, self.size.ldc::<T>());
        let right = &right[..n * ld];
        multiply((size.inputs, n, ld), Left::turned(left, size.lda::<T>()), right, Start::Add, self.w);
        T::dispatch(AddRows { x: right, out: self.b });
    }

    /// `out (n, outputs) = x W + b`.
    pub(super) fn apply(&self, n: usize, x: &[T], out: &mut [T]) {
        let (size, ld) = (self.size, self.size.ldc::<T>());
        multiply((n, size.inputs, ld), Left::rows(x, size.lda::<T>()), self.w, Start::Row(self.b), out);
    }

    /// `out (n, inputs) = start + x W^T`.
    pub(super) fn apply_turned(&self, n: usize, x: &[T], start: Start<'_, T>, out: &mut [T], room: &mut [T]) {
        Turned::new(self.w, (self.size.inputs, self.size.outputs), room, n).multiply(n, x, start, out);
    }

    /// One step along the gradients `g` of the tokens: `self += factor eta_j (x_j g_j^T, g_j)`.
    pub(super) fn learn(&mut self, n: usize, x: &[T], g: &[T], eta: &[T], factor: T, scaled: &mut [T]) {
        let ld = self.size.ldc::<T>();
        T::dispatch(Scale { ld, by: &eta[..n], factor, x: g, out: scaled });
        self.add_outer(n, x, scaled);
    }
}

/// A layer's side of the keys over one mini-batch.
pub(super) struct Keys<'a, T> {
    pub(super) fast: Fast<'a, T>,
    /// Inputs.
    pub(super) x: &'a mut [T],
    /// Outputs; of a hidden layer, afterwards, the slope of the activation there.
    pub(super) z: &'a mut [T],
    /// Gradient of the loss by the outputs.
    pub(super) g: &'a mut [T],
    /// Of a hidden layer whose gradient is wanted: curvature of the activation, and gradient by its values.
    pub(super) curve: &'a mut [T],
    pub(super) a: &'a mut [T],
}

impl<'a, T: Float> Keys<'a, T> {
    /// Elements that `cut` takes for mini-batches of `n` tokens, besides those of the fast weights.
    pub(super) fn len(size: Size, n: usize, bent: bool) -> usize {
        n * (size.lda::<T>() + (2 + 2 * usize::from(bent)) * size.ldc::<T>())
    }

    pub(super) fn cut(fast: Fast<'a, T>, n: usize, bent: bool, cut: &mut Cut<'a, T>) -> Self {
        let size = fast.size;
        let bend = if bent { n * size.ldc::<T>() } else { 0 };
        Self {
            fast,
            x: cut.next(n * size.lda::<T>()),
            z: cut.next(n * size.ldc::<T>()),
            g: cut.next(n * size.ldc::<T>()),
            curve: cut.next(bend),
            a: cut.next(bend),
        }
    }
}

/// Runs the keys of a mini-batch, which are the first layer's `x`, through the layers, and the gradient of the loss
/// back to every layer's outputs.
pub(super) fn run_keys<T: Float>(
    layers: &mut [Keys<'_, T>],
    n: usize,
    norm: Norm<'_, T>,
    target: &[T],
    room: &mut [T],
) {
    let last = layers.len() - 1;
    for l in 0..=last {
        let (low, high) = layers.split_at_mut(l + 1);
        let layer = &mut low[l];
        layer.fast.apply(n, layer.x, layer.z);
        if let Some(next) = high.first_mut() {
            let len = n * layer.fast.size.ldc::<T>();
            let (x, y) = (&mut layer.z[..len], &mut next.x[..len]);
            if layer.curve.is_empty() {
                T::dispatch(GeluSlope { x, y });
            } else {
                T::dispatch(GeluCurve { x, y, curve: layer.curve });
            }
        }
    }
    let len = n * norm.ld();
    let top = &mut layers[last];
    T::dispatch(Loss { norm, z: &top.z[..len], target: &target[..len], g: top.g });
    for l in (0..last).rev() {
        let (low, high) = layers.split_at_mut(l + 1);
        let (layer, above) = (&mut low[l], &high[0]);
        let len = n * layer.fast.size.ldc::<T>();
        above.fast.apply_turned(n, above.g, Start::Zero, layer.g, room);
        if !layer.a.is_empty() {
            layer.a[..len].copy_from_slice(&layer.g[..len]);
        }
        T::dispatch(Times { by: &layer.z[..len], y: &mut layer.g[..len] });
    }
}

/// Tokens of a mini-batch: how many, and the rates at which they teach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates<'a, T> {
    pub(super) n: usize,
    /// `(n,)`, then zeros to a whole line.
    pub(super) eta: &'a [T],
    /// Of each token's place in the mini-batch.
    pub(super) scale: &'a [T],
}

/// A layer's side of the queries over one mini-batch.
pub(super) struct Queries<'a, T> {
    /// Inputs.
    pub(super) x: &'a mut [T],
    /// Outputs.
    pub(super) z: &'a mut [T],
    /// `x_i . k_j + 1` for `j <= i`, and [`Mix`]'s `P`.
    pub(super) m: &'a mut [T],
    pub(super) p: &'a mut [T],
}

impl<'a, T: Float> Queries<'a, T> {
    pub(super) fn len(size: Size, n: usize) -> usize {
        n * (size.lda::<T>() + size.ldc::<T>() + 2 * padded::<T>(n))
    }

    pub(super) fn cut(size: Size, n: usize, cut: &mut Cut<'a, T>) -> Self {
        Self {
            x: cut.next(n * size.lda::<T>()),
            z: cut.next(n * size.ldc::<T>()),
            m: cut.next(n * padded::<T>(n)),
            p: cut.next(n * padded::<T>(n)),
        }
    }

    /// `z_i = x_i W_i + b_i`, where `W_i` has learnt from the keys up to `i`, and from the `sums` of earlier calls.
    pub(super) fn run(
        &mut self,
        keys: &Keys<'_, T>,
        rates: Rates<'_, T>,
        sums: Option<(&Fast<'_, T>, &mut [T])>,
        room: &mut [T],
    ) {
        let Rates { n, eta, scale } = rates;
        let (size, ld) = (keys.fast.size, padded::<T>(n));
        let ldc = size.ldc::<T>();
        keys.fast.apply(n, self.x, self.z);
        if let Some((sums, carried)) = sums {
            sums.apply(n, self.x, carried);
            for i in 0..n {
                let row = i * ldc..(i + 1) * ldc;
                T::dispatch(AddScaled { factor: -scale[i], x: &carried[row.clone()], y: &mut self.z[row] });
            }
        }
        Turned::new(keys.x, (n, size.inputs), room, n).multiply(n, self.x, Start::Zero, self.m);
        T::dispatch(Mix { n, ld, eta, scale, m: self.m, p: self.p });
        multiply_causal(n, ldc, Left::rows(self.p, ld), keys.g, self.z);
    }
}

/// Elements of the room that turning takes.
pub(super) fn room<T>(sizes: &[Size], n: usize) -> usize {
    if n < FEW {
        return 0;
    }
    let turned = |s: &Size| {
        let pairs = s.inputs.max(s.outputs) * padded::<T>(n);
        pairs.max(s.outputs * s.lda::<T>())
    };
    sizes.iter().map(turned).max().unwrap_or(0)
}
