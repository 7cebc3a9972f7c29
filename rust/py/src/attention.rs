//! Attention across the boundary.

use crate::array::{InOut, Input};
use crate::door::{self, ArgumentError, ShapeError};
use crate::rotary::Table;
use crate::tensor::{Held, Tensor, TensorMut, by_storage};
use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use sensorium_attention::{
    Dims, Dropout, Inner, Layout, Plan, Sample, Scoring, Segment, Strides, View, ViewMut,
};
use sensorium_core::Float;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Rule, length, hidden, anchor.
type SegmentRow = (u8, usize, bool, bool);
/// Segments, window, relation in row-major order.
type SampleRow = (Vec<SegmentRow>, Option<usize>, Option<Vec<bool>>);
/// Rule, start, end and key ranges outside it.
type RangesRow = (u8, u32, u32, Vec<(u32, u32)>);

/// Scale, cap, slopes, and probability and seed of dropout.
pub(crate) type ScoringRow = (f64, Option<f64>, Option<Vec<f64>>, Option<(f64, u64)>);

/// Plans of windows that a layout keeps, the last used first.
const KEPT: usize = 8;

/// Rows of the layout that the queries are, and the keys.
type Window = [Range<u32>; 2];

/// A layout's canonical form, and the plans that kernels follow, made when first needed.
#[pyclass(frozen, module = "sensorium._core")]
pub(crate) struct AttentionLayout {
    layout: Layout,
    /// Of the whole row.
    plan: OnceLock<Arc<Plan>>,
    windows: Mutex<Vec<(Window, Arc<Plan>)>>,
}

#[pymethods]
impl AttentionLayout {
    #[new]
    fn new(samples: Vec<SampleRow>) -> PyResult<Self> {
        let rule = |code| match code {
            0 => Inner::None,
            1 => Inner::Diagonal,
            2 => Inner::Causal,
            _ => Inner::Full,
        };
        let segments: Vec<Vec<Segment>> = samples
            .iter()
            .map(|(rows, ..)| {
                let segment = |&(code, length, hidden, anchor): &SegmentRow| Segment {
                    inner: rule(code),
                    length,
                    hidden,
                    anchor,
                };
                rows.iter().map(segment).collect()
            })
            .collect();
        let samples: Vec<Sample<'_>> = samples
            .iter()
            .zip(&segments)
            .map(|((_, window, visible), segments)| Sample {
                segments,
                window: *window,
                visible: visible.as_deref(),
            })
            .collect();
        let layout = Layout::new(&samples).map_err(door::translate)?;
        Ok(Self { layout, plan: OnceLock::new(), windows: Mutex::new(Vec::new()) })
    }

    /// Visible pairs.
    #[getter]
    fn pairs(&self) -> u64 {
        self.layout.pairs()
    }

    /// Pairs that the kernels compute, masked ones included.
    #[getter]
    fn work(&self) -> u64 {
        self.whole().work()
    }

    /// Rule, start, end and outside key ranges of each segment.
    fn ranges(&self) -> Vec<RangesRow> {
        (0..self.layout.segments())
            .map(|s| {
                let span = self.layout.span(s);
                let ranges = self.layout.ranges(s).iter().map(|r| (r.start, r.end)).collect();
                (self.layout.inner(s) as u8, span.start, span.end, ranges)
            })
            .collect()
    }

    /// The mask, flattened.
    fn dense<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let n = self.layout.len();
        let mask = PyArray1::zeros(py, n * n, false);
        let mut write = mask.readwrite();
        let slice = write.as_slice_mut().expect("new arrays are contiguous");
        door::run(py, || self.layout.dense(slice))?;
        drop(write);
        Ok(mask)
    }
}

impl AttentionLayout {
    /// The canonical form.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn whole(&self) -> &Arc<Plan> {
        self.plan.get_or_init(|| Arc::new(Plan::new(&self.layout)))
    }

    fn plan(&self, window: &Window) -> Arc<Plan> {
        let row = 0..self.layout.len() as u32;
        if window.iter().all(|range| *range == row) {
            return Arc::clone(self.whole());
        }
        // A plan is made outside the lock: another thread may make the same, which is as good.
        let kept = || self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut windows = kept();
        if let Some(i) = windows.iter().position(|(key, _)| key == window) {
            windows[..=i].rotate_right(1);
            return Arc::clone(&windows[0].1);
        }
        drop(windows);
        let [queries, keys] = window.clone();
        let plan = Arc::new(Plan::window(&self.layout, queries, keys));
        let mut windows = kept();
        windows.truncate(KEPT - 1);
        windows.insert(0, (window.clone(), Arc::clone(&plan)));
        plan
    }
}

/// Rows of the layout that `counts` of queries and keys from `offsets` on are.
fn rows([query, key]: [usize; 2], [queries, keys]: [usize; 2]) -> PyResult<Window> {
    let range = |name: &str, start: usize, len: usize| {
        let end = start.checked_add(len).and_then(|end| u32::try_from(end).ok());
        let end = end.ok_or_else(|| ArgumentError::new_err(format!("{name} is too large: {start}")))?;
        Ok::<_, PyErr>(start as u32..end)
    };
    Ok([range("query_offset", query, queries)?, range("key_offset", key, keys)?])
}

/// The plans of a call.
fn plans(
    layouts: &[PyRef<'_, AttentionLayout>],
    dims: Dims,
    offsets: [usize; 2],
) -> PyResult<Vec<Arc<Plan>>> {
    let window = rows(offsets, [dims.queries, dims.keys])?;
    Ok(layouts.iter().map(|layout| layout.plan(&window)).collect())
}

pub(crate) fn dims(q: [usize; 4], k: [usize; 4]) -> Dims {
    Dims { batch: q[0], heads: q[1], kv_heads: k[1], queries: q[2], keys: k[2], width: q[3] }
}

pub(crate) fn scoring_of((scale, softcap, slopes, dropout): &ScoringRow) -> Scoring<'_> {
    let dropout = dropout.map(|(p, seed)| Dropout { p, seed });
    Scoring { scale: *scale, softcap: *softcap, slopes: slopes.as_deref(), dropout }
}

/// Writes which pairs dropout keeps, `(B, H, N_q, N_k)`.
#[pyfunction]
pub(crate) fn attention_dropout_mask(
    py: Python<'_>,
    dropout: (f64, u64),
    shape: [usize; 4],
    offsets: [usize; 2],
    kept: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut kept = InOut::<bool>::new("kept", kept)?;
    let ([_, heads, queries, keys], (p, seed)) = (shape, dropout);
    if Some(kept.as_slice_mut().len()) != shape.into_iter().try_fold(1, usize::checked_mul) {
        return Err(ShapeError::new_err(format!("kept must have shape {shape:?}")));
    }
    let [query_rows, key_rows] = rows(offsets, [queries, keys])?;
    let kept = kept.as_slice_mut();
    door::run(py, || {
        for (at, kept) in kept.chunks_mut((queries * keys).max(1)).enumerate() {
            let (batch, head) = ((at / heads) as u32, (at % heads) as u32);
            Dropout { p, seed }.keep(batch, head, query_rows.clone(), key_rows.clone(), kept);
        }
        Ok(())
    })
}

/// What is not the tensors of a call.
struct Call<'a, 'py> {
    py: Python<'py>,
    layouts: &'a [PyRef<'py, AttentionLayout>],
    offsets: [usize; 2],
    scoring: Scoring<'a>,
    /// Table of the rotary embedding, and whether it turns neighbours.
    turn: Option<&'a (Bound<'py, PyAny>, bool)>,
}

impl<'py> Call<'_, 'py> {
    fn table<T: Float + Element>(&self) -> PyResult<Option<Table<'py, T>>> {
        self.turn.map(|(table, neighbours)| Table::new(table, *neighbours)).transpose()
    }
}

/// Queries and keys, turned where there is a table.
fn turned<'a, E: Held>(
    table: Option<&'a Table<'_, E::Float>>,
    offsets: [usize; 2],
    q: View<'a, E>,
    k: View<'a, E>,
) -> PyResult<[View<'a, E>; 2]> {
    let Some(table) = table else { return Ok([q, k]) };
    let rotation = table.rotation()?;
    let turn = |arg, view: View<'a, E>, first| view.turned(arg, rotation, first).map_err(door::translate);
    Ok([turn("q", q, offsets[0])?, turn("k", k, offsets[1])?])
}

/// Writes `out` and `lse`. `half` names what arrays of bits hold.
#[pyfunction]
#[pyo3(signature = (layouts, offsets, q, k, v, scoring, out, lse, turn=None, half=None))]
pub(crate) fn attention_forward(
    py: Python<'_>,
    layouts: Vec<PyRef<'_, AttentionLayout>>,
    offsets: [usize; 2],
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    scoring: ScoringRow,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    turn: Option<(Bound<'_, PyAny>, bool)>,
    half: Option<&str>,
) -> PyResult<()> {
    let scoring = scoring_of(&scoring);
    let call = Call { py, layouts: &layouts, offsets, scoring, turn: turn.as_ref() };
    by_storage!(q, half, E => forward::<E>(&call, [q, k, v], out, lse))
}

fn forward<E: Held>(
    call: &Call<'_, '_>,
    [q, k, v]: [&Bound<'_, PyAny>; 3],
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (q, k, v) = (Tensor::<E>::new("q", q)?, Tensor::<E>::new("k", k)?, Tensor::<E>::new("v", v)?);
    let mut out = TensorMut::<E>::new("out", out)?;
    let mut lse = InOut::<E::Float>::new("lse", lse)?;
    let dims = dims(q.shape, k.shape);
    let table = call.table()?;
    let [q, k] = turned(table.as_ref(), call.offsets, q.view(), k.view())?;
    let (v, out, lse) = (v.view(), out.view(), lse.as_slice_mut());
    let plans = plans(call.layouts, dims, call.offsets)?;
    let plans: Vec<&Plan> = plans.iter().map(|plan| &**plan).collect();
    let scoring = call.scoring;
    door::run(call.py, || E::attention_forward(dims, &plans, scoring, q, k, v, out, lse))
}

/// The three tensors of a packed `(B, N, 3, H, D)` array, which interleave without sharing an element.
fn unpack<E: Held>(packed: &mut [E::Element], dims: Dims) -> PyResult<[ViewMut<'_, E>; 3]> {
    let Dims { batch, heads, queries: tokens, width, .. } = dims;
    let part = heads * width;
    if Some(packed.len()) != [tokens, 3, part].into_iter().try_fold(batch, usize::checked_mul) {
        let want = [batch, tokens, 3, heads, width];
        return Err(ShapeError::new_err(format!("dqkv has {} elements, expected {want:?}", packed.len())));
    }
    let strides = Strides { batch: tokens * 3 * part, head: width, row: 3 * part };
    let start = packed.as_mut_ptr().cast::<E>();
    let shape = [batch, heads, tokens, width];
    // SAFETY: the slice is exclusive and holds all elements of all parts; element `(b, i, part, h, d)` of a
    // contiguous array is in one part alone.
    Ok([0, 1, 2].map(|i| unsafe { ViewMut::from_raw(start.wrapping_add(i * part), shape, strides) }))
}

/// Writes `dq`, `dk` and `dv`, or where `dqkv` is the only array given, that.
#[pyfunction]
#[pyo3(signature = (layouts, offsets, grad_out, q, k, v, out, lse, scoring, grads, turn=None, half=None))]
pub(crate) fn attention_backward(
    py: Python<'_>,
    layouts: Vec<PyRef<'_, AttentionLayout>>,
    offsets: [usize; 2],
    grad_out: &Bound<'_, PyAny>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    scoring: ScoringRow,
    grads: Vec<Bound<'_, PyAny>>,
    turn: Option<(Bound<'_, PyAny>, bool)>,
    half: Option<&str>,
) -> PyResult<()> {
    let scoring = scoring_of(&scoring);
    let call = Call { py, layouts: &layouts, offsets, scoring, turn: turn.as_ref() };
    by_storage!(q, half, E => backward::<E>(&call, grad_out, [q, k, v], out, lse, &grads))
}

fn backward<E: Held>(
    call: &Call<'_, '_>,
    grad_out: &Bound<'_, PyAny>,
    [q, k, v]: [&Bound<'_, PyAny>; 3],
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    grads: &[Bound<'_, PyAny>],
) -> PyResult<()> {
    let grad_out = Tensor::<E>::new("grad_out", grad_out)?;
    let (q, k, v) = (Tensor::<E>::new("q", q)?, Tensor::<E>::new("k", k)?, Tensor::<E>::new("v", v)?);
    let out = Tensor::<E>::new("out", out)?;
    let lse = Input::<E::Float>::new("lse", lse)?;
    let dims = dims(q.shape, k.shape);
    let table = call.table()?;
    let [q, k] = turned(table.as_ref(), call.offsets, q.view(), k.view())?;
    let (grad_out, v, out, lse) = (grad_out.view(), v.view(), out.view(), lse.as_slice());
    let plans = plans(call.layouts, dims, call.offsets)?;
    let plans: Vec<&Plan> = plans.iter().map(|plan| &**plan).collect();
    let scoring = call.scoring;
    let run = |grads| {
        door::run(call.py, || {
            E::attention_backward(dims, &plans, scoring, grad_out, q, k, v, out, lse, grads)
        })
    };
    match grads {
        [dq, dk, dv] => {
            let mut dq = TensorMut::<E>::new("dq", dq)?;
            let mut dk = TensorMut::<E>::new("dk", dk)?;
            let mut dv = TensorMut::<E>::new("dv", dv)?;
            run([dq.view(), dk.view(), dv.view()])
        }
        [dqkv] => {
            let mut dqkv = InOut::<E::Element>::new("dqkv", dqkv)?;
            run(unpack::<E>(dqkv.as_slice_mut(), dims)?)
        }
        _ => Err(ArgumentError::new_err("grads must be three arrays, or one that holds all")),
    }
}
