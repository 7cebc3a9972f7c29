//! Tensors over tokens with any distance between elements: `(B, D, L)` and `(B, L, D)` are one tensor with two
//! layouts, and a slice of a wider projection is read where it is.

use sensorium_core::error::product;
use sensorium_core::{Error, Float, Result};
use std::marker::PhantomData;

/// Distances in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// Between rows of the batch.
    pub batch: usize,
    /// Between groups.
    pub group: usize,
    /// Between tokens.
    pub token: usize,
    /// Between channels of a group, or states.
    pub feature: usize,
}

/// Sizes: rows of the batch, groups, tokens, features of a group.
pub type Shape = [usize; 4];

impl Strides {
    /// Of a contiguous tensor `(batch, group, feature, token)`.
    #[must_use]
    pub const fn channels_first(shape: Shape) -> Self {
        let [_, groups, tokens, features] = shape;
        Self { batch: groups * features * tokens, group: features * tokens, token: 1, feature: tokens }
    }

    /// Of a contiguous tensor `(batch, token, group, feature)`.
    #[must_use]
    pub const fn channels_last(shape: Shape) -> Self {
        let [_, groups, tokens, features] = shape;
        Self { batch: groups * features * tokens, group: features, token: groups * features, feature: 1 }
    }

    /// Distances between tokens and between features.
    pub(super) const fn step(self) -> (usize, usize) {
        (self.token, self.feature)
    }

    /// Whether no two elements share a place, by the sufficient test that sorted strides nest.
    #[must_use]
    pub fn injective(self, shape: Shape) -> bool {
        if shape.contains(&0) {
            return true;
        }
        let [batch, groups, tokens, features] = shape;
        let mut axes =
            [(self.batch, batch), (self.group, groups), (self.token, tokens), (self.feature, features)];
        axes.sort_unstable();
        let mut extent = 1;
        for (stride, size) in axes {
            if size > 1 {
                if stride < extent {
                    return false;
                }
                extent += (size - 1) * stride;
            }
        }
        true
    }

    /// Elements from the first to the last, inclusive; 0 where there are none.
    fn span(self, shape: Shape) -> Option<usize> {
        if shape.contains(&0) {
            return Some(0);
        }
        let strides = [self.batch, self.group, self.token, self.feature];
        let far = shape
            .iter()
            .zip(strides)
            .try_fold(1_usize, |sum, (&size, stride)| sum.checked_add((size - 1).checked_mul(stride)?))?;
        isize::try_from(far).is_ok().then_some(far)
    }
}

fn check<T>(arg: &'static str, data: &[T], shape: Shape, strides: Strides) -> Result<()> {
    product(arg, &shape)?;
    let want = strides.span(shape).ok_or(Error::Overflow { arg })?;
    if data.len() < want { Err(Error::Len { arg, want, got: data.len() }) } else { Ok(()) }
}

/// A tensor to read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    data: *const T,
    shape: Shape,
    strides: Strides,
    lifetime: PhantomData<&'a [T]>,
}

// SAFETY: a view only reads, as a shared slice does.
unsafe impl<T: Sync> Sync for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for View<'_, T> {}

impl<'a, T: Float> View<'a, T> {
    /// A tensor in `data`, which may hold more.
    ///
    /// # Errors
    /// [`Error::Len`] where `data` ends before the last element.
    pub fn new(arg: &'static str, data: &'a [T], shape: Shape, strides: Strides) -> Result<Self> {
        check(arg, data, shape, strides)?;
        // SAFETY: just checked.
        Ok(unsafe { Self::from_raw(data.as_ptr(), shape, strides) })
    }

    /// A tensor at `data`.
    ///
    /// # Safety
    /// All its elements are readable for `'a`, and nothing writes them meanwhile.
    #[must_use]
    pub const unsafe fn from_raw(data: *const T, shape: Shape, strides: Strides) -> Self {
        Self { data, shape, strides, lifetime: PhantomData }
    }

    pub(super) fn check_shape(&self, arg: &'static str, shape: Shape) -> Result<()> {
        check_shape(arg, self.shape, shape)
    }
    pub(super) fn strides(&self) -> Strides {
        self.strides
    }
    /// Where an element is; it must be within the shape to be read.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, group: usize, token: usize, feature: usize) -> *const T {
        self.data.wrapping_add(place(self.strides, row, group, token, feature))
    }
}

/// A tensor to write.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: *mut T,
    shape: Shape,
    strides: Strides,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: kernels give each task elements of its own.
unsafe impl<T: Send> Sync for ViewMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}

impl<'a, T: Float> ViewMut<'a, T> {
    /// A tensor in `data`, which may hold more. No two elements may share a place.
    ///
    /// # Errors
    /// [`Error::Len`] where `data` ends before the last element.
    pub fn new(arg: &'static str, data: &'a mut [T], shape: Shape, strides: Strides) -> Result<Self> {
        check(arg, data, shape, strides)?;
        // SAFETY: just checked.
        Ok(unsafe { Self::from_raw(data.as_mut_ptr(), shape, strides) })
    }

    /// A tensor at `data`.
    ///
    /// # Safety
    /// All its elements are writable for `'a`, apart from each other, and nothing else touches them meanwhile.
    #[must_use]
    pub const unsafe fn from_raw(data: *mut T, shape: Shape, strides: Strides) -> Self {
        Self { data, shape, strides, lifetime: PhantomData }
    }

    pub(super) fn check_shape(&self, arg: &'static str, shape: Shape) -> Result<()> {
        check_shape(arg, self.shape, shape)
    }
    pub(super) fn strides(&self) -> Strides {
        self.strides
    }
    /// Where an element is; it must be within the shape to be written.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, group: usize, token: usize, feature: usize) -> *mut T {
        self.data.wrapping_add(place(self.strides, row, group, token, feature))
    }
}

#[inline(always)]
fn place(strides: Strides, row: usize, group: usize, token: usize, feature: usize) -> usize {
    row * strides.batch + group * strides.group + token * strides.token + feature * strides.feature
}

fn check_shape(arg: &'static str, got: Shape, want: Shape) -> Result<()> {
    for (dim, (&want, got)) in ["B", "G", "L", "features"].into_iter().zip(want.iter().zip(got)) {
        if got != want {
            return Err(Error::Dim { arg, dim, want, got });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_name_the_same_elements() {
        let shape = [2, 3, 5, 4];
        let data: Vec<f64> = (0..120).map(f64::from).collect();
        let first = View::new("x", &data, shape, Strides::channels_first(shape)).unwrap();
        let last = View::new("x", &data, shape, Strides::channels_last(shape)).unwrap();
        assert_eq!(first.at(1, 2, 3, 1) as usize - data.as_ptr() as usize, (((3 + 2) * 4 + 1) * 5 + 3) * 8);
        assert_eq!(last.at(1, 2, 3, 1) as usize - data.as_ptr() as usize, (((5 + 3) * 3 + 2) * 4 + 1) * 8);
        let short = View::new("x", &data[1..], shape, Strides::channels_last(shape)).unwrap_err();
        assert_eq!(short.to_string(), "x has 119 elements, expected 120");
        assert!(Strides::channels_last(shape).injective(shape));
        assert!(!Strides { token: 1, ..Strides::channels_last(shape) }.injective(shape));
        let huge = [usize::MAX, 2, 1, 1];
        assert!(View::new("x", &data, huge, Strides::channels_last([1, 1, 1, 1])).is_err());
    }
}
