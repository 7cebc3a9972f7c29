//! Tensors in another form than kernels compute in: half precision, and rows still to be turned by their position.
//!
//! Queries are carried to scratch a block at a time, and results back; where nothing is to be done, they are read and
//! written in place. Keys and values are read by every block of queries, and are carried once for the whole call.

use crate::carry::{Carry, carry};
use crate::rotary::{Rotation, Turn};
use crate::view::{Rows, RowsMut, Strides, View, ViewMut};
use sensorium_core::{Float, Result, Storage};

/// How the rows of a tensor are turned: row 0 is token `first` of the rotation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turning<'a, T> {
    rotation: Rotation<'a, T>,
    first: usize,
}

impl<'a, T: Float> Turning<'a, T> {
    /// Turns tensors of `shape`.
    pub(crate) fn new(
        arg: &'static str,
        rotation: Rotation<'a, T>,
        first: usize,
        shape: [usize; 4],
    ) -> Result<Self> {
        let [batch, _, rows, width] = shape;
        rotation.check(arg, batch, first, rows, width)?;
        Ok(Self { rotation, first })
    }

    /// Of the rows of a sample, from `row` on.
    pub(crate) fn turn(self, batch: usize, row: usize, inverse: bool) -> Turn<T> {
        self.rotation.turn(batch, self.first + row, inverse)
    }
}

/// Rows on one side of a carriage: row `first` from `data`, `stride` elements apart, whatever the elements are.
#[derive(Debug, Clone, Copy)]
struct Stored<P> {
    data: P,
    stride: usize,
    first: usize,
}

/// Carries rows in from storage: those rows, to where, how far apart, how many, how wide, and how turned.
type CarryIn<T> = unsafe fn(Stored<*const ()>, *mut T, usize, usize, usize, Option<Turn<T>>);
/// Carries rows out to storage: from where, how far apart, to those rows, how many, how wide, and how turned.
type CarryOut<T> = unsafe fn(*const T, usize, Stored<*mut ()>, usize, usize, Option<Turn<T>>);

unsafe fn carry_in<E: Storage>(
    stored: Stored<*const ()>,
    to: *mut E::Float,
    to_stride: usize,
    rows: usize,
    width: usize,
    turn: Option<Turn<E::Float>>,
) {
    let Stored { data, stride, first } = stored;
    let from = data.cast::<E>().wrapping_add(first * stride);
    // SAFETY: as the caller vouches.
    unsafe { Carry { from, from_stride: stride, to, to_stride, rows, width, turn }.run() };
}

unsafe fn carry_out<E: Storage>(
    from: *const E::Float,
    from_stride: usize,
    stored: Stored<*mut ()>,
    rows: usize,
    width: usize,
    turn: Option<Turn<E::Float>>,
) {
    let Stored { data, stride, first } = stored;
    let to = data.cast::<E>().wrapping_add(first * stride);
    // SAFETY: as the caller vouches.
    unsafe { Carry { from, from_stride, to, to_stride: stride, rows, width, turn }.run() };
}

/// Rows of one head to read. What they are stored as is forgotten, so that there is one kernel for all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<T> {
    data: *const (),
    stride: usize,
    turn: Option<Turn<T>>,
    carry: CarryIn<T>,
    /// Whether they are read where they are.
    in_place: bool,
}

impl<T: Float> Source<T> {
    /// Rows of a head of `view`.
    pub(crate) fn new<E: Storage<Float = T>>(view: &View<'_, E>, batch: usize, head: usize) -> Self {
        let rows = view.head(batch, head);
        let turn = view.turning().map(|t| t.turn(batch, 0, false));
        let in_place = E::IS_FLOAT && turn.is_none();
        Self { data: rows.data.cast(), stride: rows.stride, turn, carry: carry_in::<E>, in_place }
    }

    /// Whether [`Source::rows`] needs no scratch.
    pub(crate) fn in_place(&self) -> bool {
        self.in_place
    }

    /// `count` rows from `first` on, where they are or, `depth` apart, in `scratch`.
    ///
    /// # Safety
    /// They exist, and the scratch has room for them where it is needed.
    #[inline(always)]
    pub(crate) unsafe fn rows(
        self,
        first: usize,
        count: usize,
        width: usize,
        scratch: *mut T,
        depth: usize,
    ) -> Rows<T> {
        if self.in_place {
            let data = self.data.cast::<T>().wrapping_add(first * self.stride);
            return Rows { data, stride: self.stride };
        }
        // SAFETY: as the caller vouches.
        unsafe { self.copy(first, count, width, scratch, depth) };
        Rows { data: scratch, stride: depth }
    }

    /// Carries `count` rows from `first` on to `to`, `depth` apart.
    ///
    /// # Safety
    /// They exist, and `to` has room for them.
    #[inline(always)]
    pub(crate) unsafe fn copy(self, first: usize, count: usize, width: usize, to: *mut T, depth: usize) {
        let stored = Stored { data: self.data, stride: self.stride, first };
        // SAFETY: as the caller vouches.
        unsafe { (self.carry)(stored, to, depth, count, width, self.turn.map(|turn| turn.from(first))) };
    }
}

/// Rows of one head to write, turned back where those that they are the gradients of were turned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sink<T> {
    data: *mut (),
    stride: usize,
    turn: Option<Turn<T>>,
    carry: CarryOut<T>,
    in_place: bool,
}

impl<T: Float> Sink<T> {
    /// Rows of a head of `view`; `turning` is undone on the way.
    pub(crate) fn new<E: Storage<Float = T>>(
        view: &ViewMut<'_, E>,
        batch: usize,
        head: usize,
        turning: Option<Turning<'_, T>>,
    ) -> Self {
        let rows = view.head(batch, head);
        let turn = turning.map(|t| t.turn(batch, 0, true));
        let in_place = E::IS_FLOAT && turn.is_none();
        Self { data: rows.data.cast(), stride: rows.stride, turn, carry: carry_out::<E>, in_place }
    }

    /// Whether no scratch is needed.
    pub(crate) fn in_place(&self) -> bool {
        self.in_place
    }

    /// Where to write rows from `first` on: where they belong, or to scratch.
    #[inline(always)]
    pub(crate) fn rows(self, first: usize, scratch: *mut T, depth: usize) -> RowsMut<T> {
        if self.in_place {
            let data = self.data.cast::<T>().wrapping_add(first * self.stride);
            return RowsMut { data, stride: self.stride };
        }
        RowsMut { data: scratch, stride: depth }
    }

    /// Brings `count` rows that were written to where [`Sink::rows`] said to where they belong.
    ///
    /// # Safety
    /// They exist and were written, and belong to the calling task alone.
    #[inline(always)]
    pub(crate) unsafe fn finish(
        self,
        first: usize,
        count: usize,
        width: usize,
        scratch: *const T,
        depth: usize,
    ) {
        if !self.in_place {
            let stored = Stored { data: self.data, stride: self.stride, first };
            // SAFETY: as the caller vouches.
            unsafe {
                (self.carry)(scratch, depth, stored, count, width, self.turn.map(|turn| turn.from(first)));
            };
        }
    }
}

/// A tensor of keys or values as kernels read it: itself, or carried to memory of its own.
pub(crate) struct Ready<'a, T: Storage> {
    view: View<'a, T>,
    _data: Vec<T>,
}

impl<'a, T: Float> Ready<'a, T> {
    pub(crate) fn new<E: Storage<Float = T>>(view: &View<'a, E>) -> Self {
        let (shape, turning) = (view.shape(), view.turning());
        if let (None, Some(same)) = (turning, view.as_float()) {
            return Self { view: same, _data: Vec::new() };
        }
        let mut data = Vec::<T>::with_capacity(shape.iter().product());
        let strides = Strides::contiguous(shape);
        // SAFETY: the memory is there as long as the vector, which moves without its elements; `carry` writes all of
        // it before it is read.
        let (to, view_of) = unsafe {
            (
                ViewMut::from_raw(data.as_mut_ptr(), shape, strides),
                View::from_raw(data.as_ptr(), shape, strides),
            )
        };
        carry(view, &to, turning, false);
        Self { view: view_of, _data: data }
    }

    /// Row 0 of a head and the distance between rows.
    pub(crate) fn head(&self, batch: usize, head: usize) -> Rows<T> {
        self.view.head(batch, head)
    }
}

/// A gradient that is summed before it is stored: in place, or in memory of its own where it would be rounded.
pub(crate) struct Sum<'a, E: Storage> {
    to: ViewMut<'a, E>,
    turning: Option<Turning<'a, E::Float>>,
    /// In `to`, or in `data`.
    sums: ViewMut<'a, E::Float>,
    _data: Vec<E::Float>,
}

impl<'a, E: Storage> Sum<'a, E> {
    /// Sums that end up in `to`; `turning` is undone at the end.
    pub(crate) fn new(mut to: ViewMut<'a, E>, turning: Option<Turning<'a, E::Float>>) -> Self {
        let shape = to.shape();
        let mut data = Vec::new();
        let sums = to.as_float().unwrap_or_else(|| {
            data.reserve_exact(shape.iter().product());
            // SAFETY: the memory is there as long as the vector, which moves without its elements.
            unsafe { ViewMut::from_raw(data.as_mut_ptr(), shape, Strides::contiguous(shape)) }
        });
        Self { to, turning, sums, _data: data }
    }

    /// Row 0 of a head and the distance between rows; only one task at a time may write a row.
    pub(crate) fn head(&self, batch: usize, head: usize) -> RowsMut<E::Float> {
        self.sums.head(batch, head)
    }

    /// Stores the sums, every one of which has been written.
    pub(crate) fn finish(self) {
        if !E::IS_FLOAT || self.turning.is_some() {
            carry(&self.sums.read(), &self.to, self.turning, true);
        }
    }
}
