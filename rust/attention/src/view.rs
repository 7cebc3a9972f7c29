//! Tensors of `(B, H, N, D)` with any distance between batches, heads and rows, and unit distance along `D`: views of
//! one packed projection are read and written where they are.

use crate::rotary::Rotation;
use crate::source::Turning;
use sensorium_core::{Error, Result, Storage};
use std::marker::PhantomData;

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// `B`.
    pub batch: usize,
    /// `H`, heads of queries.
    pub heads: usize,
    /// `H_kv`, heads of keys and values; divides `H`.
    pub kv_heads: usize,
    /// `N_q`, rows of queries.
    pub queries: usize,
    /// `N_k`, rows of keys and values.
    pub keys: usize,
    /// `D`.
    pub width: usize,
}

impl Dims {
    pub(crate) fn query_shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.width]
    }
    pub(crate) fn key_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.width]
    }
}

/// Distances in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// Between batches.
    pub batch: usize,
    /// Between heads.
    pub head: usize,
    /// Between tokens.
    pub row: usize,
}

impl Strides {
    /// Of a contiguous tensor of that shape.
    #[must_use]
    pub const fn contiguous(shape: [usize; 4]) -> Self {
        Self { batch: shape[1] * shape[2] * shape[3], head: shape[2] * shape[3], row: shape[3] }
    }

    /// Elements from the first to the last, inclusive; 0 where there are none.
    fn span(&self, shape: [usize; 4]) -> Option<usize> {
        if shape.contains(&0) {
            return Some(0);
        }
        let [batch, heads, rows, width] = shape;
        (batch - 1)
            .checked_mul(self.batch)?
            .checked_add((heads - 1).checked_mul(self.head)?)?
            .checked_add((rows - 1).checked_mul(self.row)?)?
            .checked_add(width)
            .filter(|&n| isize::try_from(n).is_ok())
    }

    /// Whether no two elements share a place, by the sufficient test that sorted strides nest.
    #[must_use]
    pub fn injective(&self, shape: [usize; 4]) -> bool {
        if shape.contains(&0) {
            return true;
        }
        let mut axes = [(self.batch, shape[0]), (self.head, shape[1]), (self.row, shape[2])];
        axes.sort_unstable();
        let mut extent = shape[3];
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
}

/// A tensor to read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T: Storage> {
    data: *const T,
    shape: [usize; 4],
    strides: Strides,
    turning: Option<Turning<'a, T::Float>>,
    lifetime: PhantomData<&'a [T]>,
}

// SAFETY: a view only reads, as a shared slice does.
unsafe impl<T: Storage> Sync for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Storage> Send for View<'_, T> {}

fn check_span(arg: &'static str, len: usize, shape: [usize; 4], strides: Strides) -> Result<()> {
    let want = strides.span(shape).ok_or(Error::Overflow { arg })?;
    if len < want { Err(Error::Len { arg, want, got: len }) } else { Ok(()) }
}

impl<'a, T: Storage> View<'a, T> {
    /// A tensor in `data`, which may hold more.
    ///
    /// # Errors
    /// [`Error::Len`] where `data` ends before the last element.
    pub fn new(arg: &'static str, data: &'a [T], shape: [usize; 4], strides: Strides) -> Result<Self> {
        check_span(arg, data.len(), shape, strides)?;
        // SAFETY: just checked.
        Ok(unsafe { Self::from_raw(data.as_ptr(), shape, strides) })
    }

    /// A tensor at `data`.
    ///
    /// # Safety
    /// Every element is readable, and written by nobody, for `'a`.
    #[must_use]
    pub unsafe fn from_raw(data: *const T, shape: [usize; 4], strides: Strides) -> Self {
        Self { data, shape, strides, turning: None, lifetime: PhantomData }
    }

    /// The same with its rows turned by their positions: row 0 is token `first` of the rotation. A kernel turns them
    /// as it loads them, and their gradients back as it stores them.
    ///
    /// # Errors
    /// [`Error::Value`] where the rotation does not fit.
    pub fn turned(self, arg: &'static str, rotation: Rotation<'a, T::Float>, first: usize) -> Result<Self> {
        Ok(Self { turning: Some(Turning::new(arg, rotation, first, self.shape)?), ..self })
    }

    pub(crate) fn turning(&self) -> Option<Turning<'a, T::Float>> {
        self.turning
    }

    /// The same as what arithmetic is done in, where it is that.
    pub(crate) fn as_float(&self) -> Option<View<'a, T::Float>> {
        let Self { data, shape, strides, turning, lifetime: _ } = *self;
        T::IS_FLOAT.then_some(View { data: data.cast(), shape, strides, turning, lifetime: PhantomData })
    }

    /// `(B, H, N, D)`.
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    pub(crate) fn check(&self, arg: &'static str, shape: [usize; 4]) -> Result<()> {
        check_shape(arg, self.shape, shape)
    }

    /// Row 0 of a head and the distance between rows.
    ///
    /// The indices are within the shape; the rows are there for as long as the view.
    #[inline]
    pub(crate) fn head(&self, batch: usize, head: usize) -> Rows<T> {
        debug_assert!(batch < self.shape[0] && head < self.shape[1]);
        let data = self.data.wrapping_add(batch * self.strides.batch + head * self.strides.head);
        Rows { data, stride: self.strides.row }
    }
}

/// Rows of one head to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<T> {
    pub(crate) data: *const T,
    pub(crate) stride: usize,
}

impl<T> Rows<T> {
    /// Row `i`.
    #[inline(always)]
    pub(crate) fn row(self, i: usize) -> *const T {
        self.data.wrapping_add(i * self.stride)
    }
}

/// A tensor to write, all of whose elements have their own place.
#[derive(Debug)]
pub struct ViewMut<'a, T: Storage> {
    data: *mut T,
    shape: [usize; 4],
    strides: Strides,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks write disjoint rows through `head`, each row in one task.
unsafe impl<T: Storage> Sync for ViewMut<'_, T> {}
// SAFETY: as an exclusive slice.
unsafe impl<T: Storage> Send for ViewMut<'_, T> {}

impl<'a, T: Storage> ViewMut<'a, T> {
    /// A tensor in `data`, which may hold more.
    ///
    /// # Errors
    /// [`Error::Len`] where `data` ends before the last element; [`Error::Value`] where elements overlap.
    pub fn new(arg: &'static str, data: &'a mut [T], shape: [usize; 4], strides: Strides) -> Result<Self> {
        check_span(arg, data.len(), shape, strides)?;
        if !strides.injective(shape) {
            return Err(Error::Value { arg, what: "has elements that share memory".into() });
        }
        // SAFETY: just checked.
        Ok(unsafe { Self::from_raw(data.as_mut_ptr(), shape, strides) })
    }

    /// A tensor at `data`.
    ///
    /// # Safety
    /// Every element has its own place, writable for `'a`, that nothing else reads or writes.
    #[must_use]
    pub unsafe fn from_raw(data: *mut T, shape: [usize; 4], strides: Strides) -> Self {
        Self { data, shape, strides, lifetime: PhantomData }
    }

    /// `(B, H, N, D)`.
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The same to write as what arithmetic is done in, where it is that; to be used in turn with this one.
    pub(crate) fn as_float(&mut self) -> Option<ViewMut<'a, T::Float>> {
        let Self { data, shape, strides, .. } = *self;
        T::IS_FLOAT.then_some(ViewMut { data: data.cast(), shape, strides, lifetime: PhantomData })
    }

    /// The same to read, while nobody writes.
    pub(crate) fn read(&self) -> View<'_, T> {
        View {
            data: self.data,
            shape: self.shape,
            strides: self.strides,
            turning: None,
            lifetime: PhantomData,
        }
    }

    pub(crate) fn check(&self, arg: &'static str, shape: [usize; 4]) -> Result<()> {
        check_shape(arg, self.shape, shape)
    }

    /// Row 0 of a head and the distance between rows; only one task may write a row.
    #[inline]
    pub(crate) fn head(&self, batch: usize, head: usize) -> RowsMut<T> {
        debug_assert!(batch < self.shape[0] && head < self.shape[1]);
        let data = self.data.wrapping_add(batch * self.strides.batch + head * self.strides.head);
        RowsMut { data, stride: self.strides.row }
    }
}

/// Rows of one head to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowsMut<T> {
    pub(crate) data: *mut T,
    pub(crate) stride: usize,
}

impl<T> RowsMut<T> {
    /// Row `i`.
    #[inline(always)]
    pub(crate) fn row(self, i: usize) -> *mut T {
        self.data.wrapping_add(i * self.stride)
    }
}

fn check_shape(arg: &'static str, got: [usize; 4], want: [usize; 4]) -> Result<()> {
    for (dim, (got, want)) in ["B", "H", "N", "D"].into_iter().zip(got.into_iter().zip(want)) {
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
    fn views_stay_in_bounds_and_apart() {
        let mut data = [0.0_f32; 24];
        let shape = [1, 2, 3, 4];
        assert!(View::new("q", &data, shape, Strides::contiguous(shape)).is_ok());
        let wide = Strides { batch: 0, head: 13, row: 4 };
        assert_eq!(
            View::new("q", &data, shape, wide).unwrap_err().to_string(),
            "q has 24 elements, expected 25"
        );
        assert!(ViewMut::new("dq", &mut data, shape, Strides { batch: 0, head: 4, row: 8 }).is_ok());
        let shared = ViewMut::new("dq", &mut data, shape, Strides { batch: 0, head: 3, row: 8 });
        assert_eq!(shared.unwrap_err().to_string(), "dq has elements that share memory");
        let far = Strides { batch: 0, head: usize::MAX, row: 4 };
        assert!(View::new("q", &data, shape, far).is_err());
    }
}
