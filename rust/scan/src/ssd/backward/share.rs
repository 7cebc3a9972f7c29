//! What the heads of a group give together: `dB` and `dC` of a chunk.

use super::super::chunks::Chunk;
use super::super::rows::padded;
use super::super::scratch::{Scratch, Shared};
use super::super::tile::{Half, Operands, Product, Start};
use super::Call;
use sensorium_core::isa::part::{load_first, store_first};
use sensorium_core::{Float, Kernel, Simd};

/// A group of a row, and a chunk of the window in hand.
pub(super) struct Share<'a, T> {
    pub(super) call: &'a Call<'a, T>,
    pub(super) row: usize,
    pub(super) group: usize,
    pub(super) slot: usize,
    pub(super) chunk: &'a Chunk,
}

impl<T: Float> Kernel<T> for Share<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let (len, state) = (self.chunk.len, self.call.dims.state);
        let (deep, ld) = (padded(state), padded(len));
        let mut scratch = Scratch::new::<T>(&[len * ld, len * deep]);
        let (k, rows) = (scratch.take::<T>(len * ld), scratch.take::<T>(len * deep));
        let [b, c] = self.call.inner(self.row, self.group, self.slot, self.chunk);
        let to = self.call.to;
        // SAFETY: the parts are written, by tasks that are done; these rows of the gradients belong to this task.
        unsafe {
            self.add_squares(s, k, ld);
            for (half, [row, col], other, parts, grad) in
                [(Half::Upper, [ld, 1], c, to.parts_b, to.b), (Half::Lower, [1, ld], b, to.parts_c, to.c)]
            {
                self.add_rows(s, parts, rows, deep);
                Product {
                    second: Operands { a: k, row, col, b: other.data, ldb: other.stride, n: len },
                    half,
                    start: Start::Scaled(T::ONE, rows),
                    ..Product::new(Operands::NONE, rows, deep, len, state)
                }
                .run();
                self.write(s, rows, deep, grad);
            }
        }
    }
}

impl<T: Float> Share<'_, T> {
    /// Sums the parts of `K`, from the diagonal on.
    #[inline(always)]
    unsafe fn add_squares<S: Simd<T>>(&self, s: S, to: *mut T, ld: usize) {
        let call = self.call;
        let square = call.squares.square;
        let first = call.group(self.row, self.group) * call.parts;
        for j in 0..self.chunk.len {
            let mut i = j - j % S::LANES;
            while i < self.chunk.len {
                let mut sum = s.splat(T::ZERO);
                for part in 0..call.parts {
                    let at = ((first + part) * call.chunks.window + self.slot) * square + j * ld + i;
                    // SAFETY: as the caller vouches.
                    sum = s.add(sum, unsafe { s.load_ptr(call.to.parts_k.at(at)) });
                }
                // SAFETY: as the caller vouches.
                unsafe { s.store_ptr(to.add(j * ld + i), sum) };
                i += S::LANES;
            }
        }
    }

    /// Sums parts of rows.
    #[inline(always)]
    unsafe fn add_rows<S: Simd<T>>(&self, s: S, parts: Shared<T>, to: *mut T, deep: usize) {
        let call = self.call;
        let first = call.group(self.row, self.group) * call.parts;
        let mut j = 0;
        while j < self.chunk.len * deep {
            let mut sum = s.splat(T::ZERO);
            for part in 0..call.parts {
                // SAFETY: as the caller vouches.
                sum = s.add(sum, unsafe { s.load_ptr(parts.at(call.rows_of(first + part, self.slot) + j)) });
            }
            // SAFETY: as the caller vouches.
            unsafe { s.store_ptr(to.add(j), sum) };
            j += S::LANES;
        }
    }

    /// Writes rows where the gradient has them.
    #[inline(always)]
    unsafe fn write<S: Simd<T>>(&self, s: S, rows: *const T, deep: usize, grad: Shared<T>) {
        let dims = self.call.dims;
        for i in 0..self.chunk.len {
            let token = self.row * dims.length + self.chunk.start + i;
            let to = grad.at((token * dims.groups + self.group) * dims.state);
            let mut j = 0;
            while j < dims.state {
                let n = S::LANES.min(dims.state - j);
                // SAFETY: as the caller vouches.
                unsafe { store_first(s, to.add(j), n, load_first(s, rows.add(i * deep + j), n)) };
                j += S::LANES;
            }
        }
    }
}
