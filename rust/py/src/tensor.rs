//! Arrays of four dimensions across the boundary: views with any distance between batches, heads and rows.
//!
//! NumPy has no `bfloat16` of its own, so that arrays of half precision come as their bits, `uint16`, and the name of
//! what they are.

use crate::door::{ArgumentError, DTypeError, ShapeError};
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use sensorium_attention::{AttentionKernels, Strides, View, ViewMut};
use sensorium_core::{Bf16, F16, Storage};
use sensorium_nn::LinearKernels;

/// What a kernel stores, and what NumPy takes it for.
pub(crate) trait Held: AttentionKernels + LinearKernels + Storage<Float: Element> {
    /// The same bits.
    type Element: Element;
    /// The same elements.
    fn slice(of: &[Self::Element]) -> &[Self];
}
impl Held for f32 {
    type Element = f32;
    fn slice(of: &[f32]) -> &[f32] {
        of
    }
}
impl Held for f64 {
    type Element = f64;
    fn slice(of: &[f64]) -> &[f64] {
        of
    }
}
impl Held for Bf16 {
    type Element = u16;
    fn slice(of: &[u16]) -> &[Self] {
        // SAFETY: of the same size and alignment, and any bits are a number.
        unsafe { std::slice::from_raw_parts(of.as_ptr().cast(), of.len()) }
    }
}
impl Held for F16 {
    type Element = u16;
    fn slice(of: &[u16]) -> &[Self] {
        // SAFETY: of the same size and alignment, and any bits are a number.
        unsafe { std::slice::from_raw_parts(of.as_ptr().cast(), of.len()) }
    }
}

/// Runs `$body` with `$E` the storage of `$array`, which holds bits where `$half` names what they are.
macro_rules! by_storage {
    ($array:expr, $half:expr, $E:ident => $body:expr) => {
        match $half {
            Some("bfloat16") => {
                type $E = sensorium_core::Bf16;
                $body
            }
            Some("float16") => {
                type $E = sensorium_core::F16;
                $body
            }
            Some(name) => Err($crate::door::ArgumentError::new_err(format!("half must not be {name:?}"))),
            None => $crate::array::by_dtype!($array, $E => $body),
        }
    };
}
pub(crate) use by_storage;

pub(crate) fn borrow<'a, 'py, T: Element>(
    name: &str,
    array: &'a Bound<'py, PyAny>,
) -> PyResult<&'a Bound<'py, PyArrayDyn<T>>> {
    array.cast::<PyArrayDyn<T>>().map_err(|_| {
        let dtype = array.getattr("dtype").map_or_else(|_| "no dtype".into(), |d| d.to_string());
        DTypeError::new_err(format!("{name} has dtype {dtype}, expected {}", T::get_dtype(array.py())))
    })
}

/// Shape and distances in elements of an array of four dimensions with unit distance along the last.
pub(crate) fn measure<T: Element>(
    name: &str,
    array: &Bound<'_, PyArrayDyn<T>>,
) -> PyResult<([usize; 4], Strides)> {
    let shape: [usize; 4] = array
        .shape()
        .try_into()
        .map_err(|_| ShapeError::new_err(format!("{name} has {} dimensions, expected 4", array.ndim())))?;
    let mut strides = [0; 4];
    let empty = shape.contains(&0);
    for (axis, stride) in strides.iter_mut().enumerate() {
        // The distance along an axis of one element is never used, and may be anything.
        if shape[axis] > 1 && !empty {
            let bytes = usize::try_from(array.strides()[axis]).ok().filter(|b| b % size_of::<T>() == 0);
            *stride = bytes.map(|b| b / size_of::<T>()).ok_or_else(|| {
                ArgumentError::new_err(format!("{name} has strides that are no whole elements"))
            })?;
        }
    }
    if shape[3] > 1 && strides[3] != 1 && !empty {
        return Err(ArgumentError::new_err(format!("{name} must be contiguous along D")));
    }
    if !array.data().is_aligned() {
        return Err(ArgumentError::new_err(format!("{name} must be aligned")));
    }
    Ok((shape, Strides { batch: strides[0], head: strides[1], row: strides[2] }))
}

/// A borrowed array of four dimensions to read.
pub(crate) struct Tensor<'py, E: Held> {
    array: PyReadonlyArrayDyn<'py, E::Element>,
    pub(crate) shape: [usize; 4],
    strides: Strides,
}

impl<'py, E: Held> Tensor<'py, E> {
    pub(crate) fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = borrow::<E::Element>(name, array)?;
        let (shape, strides) = measure(name, array)?;
        let array = array
            .try_readonly()
            .map_err(|_| ArgumentError::new_err(format!("{name} is being written to")))?;
        Ok(Self { array, shape, strides })
    }
    pub(crate) fn view(&self) -> View<'_, E> {
        // SAFETY: NumPy vouches for the elements that shape and strides name; the borrow lasts as long as `self`.
        unsafe { View::from_raw(self.array.data().cast(), self.shape, self.strides) }
    }
}

/// A borrowed array of four dimensions to write.
pub(crate) struct TensorMut<'py, E: Held> {
    array: PyReadwriteArrayDyn<'py, E::Element>,
    shape: [usize; 4],
    strides: Strides,
}

impl<'py, E: Held> TensorMut<'py, E> {
    pub(crate) fn new(name: &'static str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = borrow::<E::Element>(name, array)?;
        let (shape, strides) = measure(name, array)?;
        if !strides.injective(shape) {
            return Err(ArgumentError::new_err(format!("{name} has elements that share memory")));
        }
        let array = array.try_readwrite().map_err(|_| {
            ArgumentError::new_err(format!(
                "{name} must be writeable and share memory with no other argument"
            ))
        })?;
        Ok(Self { array, shape, strides })
    }
    pub(crate) fn view(&mut self) -> ViewMut<'_, E> {
        // SAFETY: as for `Tensor`; NumPy's borrow is exclusive, and `new` saw that elements are apart.
        unsafe { ViewMut::from_raw(self.array.data().cast(), self.shape, self.strides) }
    }
}
