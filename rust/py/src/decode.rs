//! Decoding across the boundary.

use crate::array::{InOut, is_f32};
use crate::attention::{AttentionLayout, ScoringRow, dims, scoring_of};
use crate::door::{self, ShapeError};
use crate::tensor::{Held, Tensor, TensorMut, by_storage};
use numpy::Element;
use pyo3::prelude::*;
use sensorium_attention::{AttentionKernels, Dims, Scoring, Tokens, View, ViewMut};
use sensorium_core::{Result, Storage};

/// The kernel for queries of `Q` and a cache of `E`.
type Decode<E, Q> = fn(
    Dims,
    &[Tokens<'_>],
    Scoring<'_>,
    View<'_, Q>,
    View<'_, E>,
    View<'_, E>,
    ViewMut<'_, Q>,
    &mut [<E as Storage>::Float],
) -> Result<()>;

fn run<E: Held, Q: Held<Float = E::Float>>(
    py: Python<'_>,
    decode: Decode<E, Q>,
    tokens: &[Tokens<'_>],
    [q, k, v, out, lse]: [&Bound<'_, PyAny>; 5],
    scoring: Scoring<'_>,
) -> PyResult<()>
where
    E::Float: Element,
{
    let (q, k, v) = (Tensor::<Q>::new("q", q)?, Tensor::<E>::new("k", k)?, Tensor::<E>::new("v", v)?);
    let mut out = TensorMut::<Q>::new("out", out)?;
    let mut lse = InOut::<<E as Storage>::Float>::new("lse", lse)?;
    let (dims, q, k, v) = (dims(q.shape, k.shape), q.view(), k.view(), v.view());
    let (out, lse) = (out.view(), lse.as_slice_mut());
    door::run(py, || decode(dims, tokens, scoring, q, k, v, out, lse))
}

/// Writes `out` and `lse`. There is no layout, one for all samples, or one for each; `lengths`, `starts` and `counts`
/// have a number for each sample. Keys and values of half precision
/// are named by `half`; queries and results are then of the same, or `float32`.
#[pyfunction]
pub(crate) fn attention_decode(
    py: Python<'_>,
    layouts: Vec<PyRef<'_, AttentionLayout>>,
    rows: [Vec<usize>; 3],
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    scoring: ScoringRow,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    half: Option<&str>,
) -> PyResult<()> {
    let [lengths, starts, counts] = rows;
    let batch = lengths.len();
    if starts.len() != batch || counts.len() != batch || ![0, 1, batch].contains(&layouts.len()) {
        let what = format!("lengths has {batch} samples, which starts, counts or layouts do not fit");
        return Err(ShapeError::new_err(what));
    }
    let tokens = |b: usize| Tokens {
        layout: layouts.get(if layouts.len() == 1 { 0 } else { b }).map(|layout| layout.layout()),
        start: starts[b],
        count: counts[b],
        length: lengths[b],
    };
    let tokens: Vec<Tokens<'_>> = (0..batch).map(tokens).collect();
    let (arrays, scoring) = ([q, k, v, out, lse], scoring_of(&scoring));
    let wide = half.is_some() && is_f32(q);
    by_storage!(k, half, E => if wide {
        run(py, E::attention_decode_wide, &tokens, arrays, scoring)
    } else {
        run(py, E::attention_decode, &tokens, arrays, scoring)
    })
}
