//! Packed rows across the boundary.

use crate::array::Input;
use crate::door::{self, ShapeError};
use pyo3::prelude::*;
use sensorium_scan::Sequences;

/// The sequences of `batch` rows of `length` tokens: by `seq_idx (B, L)`, by `cu_seqlens (n + 1,)`, or one a row.
pub(crate) fn sequences(
    batch: usize,
    length: usize,
    seq_idx: Option<&Bound<'_, PyAny>>,
    cu_seqlens: Option<&Bound<'_, PyAny>>,
) -> PyResult<Sequences> {
    if let Some(ids) = seq_idx {
        let ids = Input::<i64>::new("seq_idx", ids)?;
        return Sequences::from_ids(batch, length, ids.as_slice()).map_err(door::translate);
    }
    let Some(offsets) = cu_seqlens else { return Ok(Sequences::whole(batch, length)) };
    if batch != 1 {
        return Err(ShapeError::new_err(format!("cu_seqlens needs a batch of 1, not {batch}")));
    }
    let offsets = Input::<i64>::new("cu_seqlens", offsets)?;
    Sequences::from_offsets(length, offsets.as_slice()).map_err(door::translate)
}
