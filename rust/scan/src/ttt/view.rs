//! Arrays `(B, H, L, D)` in memory with any distance between batches, heads and tokens.

use sensorium_core::{Error, Result};
use std::marker::PhantomData;

/// Elements between neighbours along `B`, `H` and `L`; along `D` they are next to each other.
pub type Strides = [usize; 3];

/// Distances of an array without gaps.
#[must_use]
pub const fn contiguous(shape: [usize; 4]) -> Strides {
    [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3]]
}

/// Elements up to the end of the last one.
fn extent(shape: [usize; 4], strides: Strides) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut end = shape[3];
    for (size, stride) in shape.into_iter().zip(strides) {
        end = end.checked_add((size - 1).checked_mul(stride)?)?;
    }
    Some(end)
}

macro_rules! array {
    ($name:ident, $doc:literal, $pointer:ty, $slice:ty, $as_ptr:ident) => {
        #[doc = $doc]
        #[derive(Debug)]
        pub struct $name<'a, T> {
            data: $pointer,
            shape: [usize; 4],
            strides: Strides,
            lifetime: PhantomData<$slice>,
        }

        // SAFETY: shared rows are only read; rows to write are handed out under the promise that no two overlap.
        unsafe impl<T: Sync + Send> Send for $name<'_, T> {}
        // SAFETY: as above.
        unsafe impl<T: Sync + Send> Sync for $name<'_, T> {}

        impl<'a, T> $name<'a, T> {
            /// The array in `data`.
            ///
            /// # Errors
            /// Where `data` does not hold it.
            pub fn new(arg: &'static str, data: $slice, shape: [usize; 4], strides: Strides) -> Result<Self> {
                match extent(shape, strides) {
                    None => Err(Error::Overflow { arg }),
                    Some(want) if want > data.len() => Err(Error::Len { arg, want, got: data.len() }),
                    // SAFETY: all elements are within the slice, which is borrowed as long.
                    _ => Ok(unsafe { Self::from_raw(data.$as_ptr(), shape, strides) }),
                }
            }

            /// The array at `data`.
            ///
            /// # Safety
            /// Its elements stay valid for as long as the view, with what a reference to them would promise.
            #[must_use]
            pub unsafe fn from_raw(data: $pointer, shape: [usize; 4], strides: Strides) -> Self {
                Self { data, shape, strides, lifetime: PhantomData }
            }

            /// Holds the shape to `(batch, heads, length, width)`.
            pub(super) fn check(&self, arg: &'static str, shape: [usize; 4]) -> Result<()> {
                for (dim, (want, got)) in
                    ["B", "H", "L", "D"].into_iter().zip(shape.into_iter().zip(self.shape))
                {
                    if want != got {
                        return Err(Error::Dim { arg, dim, want, got });
                    }
                }
                Ok(())
            }

            fn at(&self, [batch, head, token]: [usize; 3]) -> $pointer {
                let [batches, heads, tokens, _] = self.shape;
                assert!(batch < batches && head < heads && token < tokens, "row out of bounds");
                self.data
                    .wrapping_add(batch * self.strides[0] + head * self.strides[1] + token * self.strides[2])
            }
        }
    };
}

array!(View, "An array to read.", *const T, &'a [T], as_ptr);
array!(ViewMut, "An array to write.", *mut T, &'a mut [T], as_mut_ptr);

impl<T> View<'_, T> {
    /// The `D` elements of a batch's, head's and token's row.
    pub(super) fn row(&self, at: [usize; 3]) -> &[T] {
        // SAFETY: within the shape, whose elements are valid.
        unsafe { std::slice::from_raw_parts(self.at(at), self.shape[3]) }
    }
}

impl<T> ViewMut<'_, T> {
    /// The row to write.
    ///
    /// # Safety
    /// No other slice of the same row is in use, and no two rows share elements.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, at: [usize; 3]) -> &mut [T] {
        // SAFETY: within the shape, whose elements are valid; the caller vouches that nothing else refers to them.
        unsafe { std::slice::from_raw_parts_mut(self.at(at), self.shape[3]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_the_strides_say() {
        let data: Vec<f32> = (0..60).map(|i| i as f32).collect();
        // (B, L, H, D) = (2, 5, 2, 3), seen as (B, H, L, D).
        let view = View::new("q", &data, [2, 2, 5, 3], [30, 3, 6]).unwrap();
        assert_eq!(view.row([1, 1, 2]), [45.0, 46.0, 47.0]);
        assert!(View::new("q", &data[1..], [2, 2, 5, 3], [30, 3, 6]).is_err());
        let error = view.check("q", [2, 2, 5, 4]).unwrap_err();
        assert_eq!(error.to_string(), "q has D=3, expected D=4");
        assert!(View::new("q", &data, [2, usize::MAX, 5, 3], [30, 3, 6]).is_err());
        assert!(View::<f32>::new("q", &[], [0, 2, 5, 3], contiguous([0, 2, 5, 3])).is_ok());
    }
}
