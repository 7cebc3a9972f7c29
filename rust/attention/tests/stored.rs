//! Half precision and rows turned on the way: the same bits as from tensors that were widened and turned before.

use sensorium_attention::{
    AttentionKernels, Dims, Inner, Layout, Plan, Rotation, Sample, Scoring, Segment, Strides, View, ViewMut,
};
use sensorium_core::{Bf16, F16, Float, Level, Storage, half, isa, threads};
use std::sync::Mutex;

/// One test at a time where the level must hold.
static LEVEL: Mutex<()> = Mutex::new(());

struct Random(u64);
impl Random {
    fn values<E: Storage>(&mut self, n: usize) -> Vec<E> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / 2.0_f64.powi(52) - 1.0
        };
        (0..n).map(|_| E::narrow(E::Float::from_f64(next()))).collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    dims: Dims,
    /// Tokens before the first query and the first key.
    offsets: [usize; 2],
    /// Pairs of features that are turned; none where nothing is.
    pairs: Option<usize>,
    neighbours: bool,
}

/// Cosines and sines of a batch of rows.
fn table<T: Float>(case: Case, tokens: usize) -> Vec<T> {
    let pairs = case.pairs.unwrap_or(0);
    let mut table = Vec::new();
    for token in 0..case.dims.batch * tokens {
        let angle = |pair: usize| token as f64 * 0.3_f64.powi(pair as i32);
        let (cos, sin) = (|pair| T::from_f64(angle(pair).cos()), |pair| T::from_f64(angle(pair).sin()));
        if case.neighbours {
            table.extend((0..pairs).flat_map(|pair| [cos(pair); 2]));
            table.extend((0..pairs).flat_map(|pair| [-sin(pair), sin(pair)]));
        } else {
            table.extend((0..pairs).map(cos));
            table.extend((0..pairs).map(sin));
        }
    }
    table
}

fn view<E: Storage>(data: &[E], shape: [usize; 4]) -> View<'_, E> {
    View::new("q", data, shape, Strides::contiguous(shape)).unwrap()
}

fn view_mut<E: Storage>(data: &mut [E], shape: [usize; 4]) -> ViewMut<'_, E> {
    ViewMut::new("out", data, shape, Strides::contiguous(shape)).unwrap()
}

fn turn<'a, E: Storage>(
    view: View<'a, E>,
    rotation: Option<Rotation<'a, E::Float>>,
    first: usize,
) -> View<'a, E> {
    rotation.map_or(view, |rotation| view.turned("q", rotation, first).unwrap())
}

fn widened<E: Storage>(x: &[E]) -> Vec<E::Float> {
    let mut wide = vec![E::Float::ZERO; x.len()];
    half::widen(x, &mut wide);
    wide
}

/// `x` turned whole, as rows from token `first` on.
fn turned<T: Float + AttentionKernels>(
    x: &[T],
    shape: [usize; 4],
    rotation: Option<(Rotation<'_, T>, usize)>,
    inverse: bool,
) -> Vec<T> {
    let Some((rotation, first)) = rotation else { return x.to_vec() };
    // Rows before the first are turned too, and dropped.
    let [batch, heads, rows, width] = shape;
    let longer = [batch, heads, first + rows, width];
    let mut padded = vec![T::ZERO; longer.iter().product()];
    for head in 0..batch * heads {
        let at = (head * (first + rows) + first) * width;
        padded[at..at + rows * width].copy_from_slice(&x[head * rows * width..][..rows * width]);
    }
    let mut out = padded.clone();
    T::rotate(view(&padded, longer), &rotation, inverse, view_mut(&mut out, longer)).unwrap();
    (0..batch * heads)
        .flat_map(|head| out[(head * (first + rows) + first) * width..][..rows * width].to_vec())
        .collect()
}

fn check<E: AttentionKernels<Float: AttentionKernels>>(case: Case, plans: &[&Plan], tokens: usize) {
    let Case { dims, offsets: [query, key], .. } = case;
    let (qs, ks) = (
        [dims.batch, dims.heads, dims.queries, dims.width],
        [dims.batch, dims.kv_heads, dims.keys, dims.width],
    );
    let mut random = Random(5);
    let (nq, nk) = (qs.iter().product(), ks.iter().product());
    let (q, k, v, g) =
        (random.values::<E>(nq), random.values::<E>(nk), random.values::<E>(nk), random.values::<E>(nq));
    let table = table::<E::Float>(case, tokens);
    let rotation =
        case.pairs.map(|pairs| Rotation::new(&table, [dims.batch, tokens, pairs], case.neighbours).unwrap());
    let scoring = Scoring::new(0.7);
    let mut out = vec![E::default(); nq];
    let mut lse = vec![E::Float::ZERO; nq / dims.width];
    let (q_view, k_view) = (turn(view(&q, qs), rotation, query), turn(view(&k, ks), rotation, key));
    E::attention_forward(
        dims,
        plans,
        scoring,
        q_view,
        k_view,
        view(&v, ks),
        view_mut(&mut out, qs),
        &mut lse,
    )
    .unwrap();

    let (wide_q, wide_k) = (
        turned(&widened(&q), qs, rotation.map(|r| (r, query)), false),
        turned(&widened(&k), ks, rotation.map(|r| (r, key)), false),
    );
    let wide_v = widened(&v);
    let mut wide_out = vec![E::Float::ZERO; nq];
    let mut wide_lse = vec![E::Float::ZERO; lse.len()];
    let wide = [view(&wide_q, qs), view(&wide_k, ks), view(&wide_v, ks)];
    let to = view_mut(&mut wide_out, qs);
    E::Float::attention_forward(dims, plans, scoring, wide[0], wide[1], wide[2], to, &mut wide_lse).unwrap();
    assert!(lse == wide_lse, "{case:?}");
    assert!(out == wide_out.iter().map(|&x| E::narrow(x)).collect::<Vec<E>>(), "{case:?}");

    // Backward sees the rounded results in both.
    let wide_out = widened(&out);
    let wide_g = widened(&g);
    let (mut dq, mut dk, mut dv) = (vec![E::default(); nq], vec![E::default(); nk], vec![E::default(); nk]);
    let grads = [view_mut(&mut dq, qs), view_mut(&mut dk, ks), view_mut(&mut dv, ks)];
    let (g, o) = (view(&g, qs), view(&out, qs));
    E::attention_backward(dims, plans, scoring, g, q_view, k_view, view(&v, ks), o, &lse, grads).unwrap();
    let zeros = |n| vec![E::Float::ZERO; n];
    let (mut wide_dq, mut wide_dk, mut wide_dv) = (zeros(nq), zeros(nk), zeros(nk));
    let grads = [view_mut(&mut wide_dq, qs), view_mut(&mut wide_dk, ks), view_mut(&mut wide_dv, ks)];
    let (g, o) = (view(&wide_g, qs), view(&wide_out, qs));
    E::Float::attention_backward(dims, plans, scoring, g, wide[0], wide[1], wide[2], o, &lse, grads).unwrap();
    let wide_dq = turned(&wide_dq, qs, rotation.map(|r| (r, query)), true);
    let wide_dk = turned(&wide_dk, ks, rotation.map(|r| (r, key)), true);
    for (name, got, want) in [("dq", dq, wide_dq), ("dk", dk, wide_dk), ("dv", dv, wide_dv)] {
        assert!(got == want.iter().map(|&x| E::narrow(x)).collect::<Vec<E>>(), "{name} {case:?}");
    }
}

fn check_all(case: Case, plans: &[&Plan], tokens: usize) {
    check::<f32>(case, plans, tokens);
    check::<f64>(case, plans, tokens);
    check::<Bf16>(case, plans, tokens);
    check::<F16>(case, plans, tokens);
}

fn layout(causal: usize, full: usize) -> Layout {
    let segment = |inner, length| Segment { inner, length, hidden: false, anchor: false };
    let segments = [segment(Inner::Causal, causal), segment(Inner::Full, full)];
    Layout::new(&[Sample { segments: &segments, window: None, visible: None }]).unwrap()
}

#[test]
fn the_same_bits_as_from_tensors_made_ready_before() {
    let _held = LEVEL.lock().unwrap();
    let layout = layout(30, 57);
    for level in Level::available() {
        isa::set_level(level);
        for (width, pairs) in [(16, Some(8)), (24, None), (9, Some(4)), (70, Some(16)), (1, Some(0))] {
            for code in 0..4 {
                let dims = Dims { batch: 2, heads: 4, kv_heads: 2, queries: 87, keys: 87, width };
                let case = Case { dims, offsets: [0, 0], pairs, neighbours: code & 1 == 1 };
                if code & 2 == 0 {
                    check_all(case, &[&Plan::new(&layout)], 87);
                } else {
                    let dims = Dims { queries: 20, keys: 60, ..dims };
                    let plan = Plan::window(&layout, 50..70, 10..70);
                    check_all(Case { dims, offsets: [50, 10], ..case }, &[&plan], 90);
                }
            }
        }
    }
    isa::set_level(Level::Avx512);
}

#[test]
fn and_where_several_tasks_share_a_head() {
    let _held = LEVEL.lock().unwrap();
    let plan = Plan::new(&layout(200, 500));
    let dims = Dims { batch: 1, heads: 2, kv_heads: 1, queries: 700, keys: 700, width: 32 };
    for count in [1, 3] {
        let before = threads::set_local_num_threads(count);
        let case = Case { dims, offsets: [0, 0], pairs: Some(16), neighbours: false };
        check_all(case, &[&plan], 700);
        threads::set_local_num_threads(before);
    }
}

#[test]
fn a_rotation_that_does_not_fit_is_refused() {
    let table = vec![0.0_f32; 10 * 2 * 4];
    let rotation = Rotation::new(&table, [1, 10, 4], false).unwrap();
    let x = vec![0.0_f32; 2 * 6 * 8];
    let words =
        |shape, first| view(&x, shape).turned("k", rotation, first).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(words([2, 1, 6, 8], 4), Ok(()));
    assert_eq!(words([2, 1, 6, 8], 5).unwrap_err(), "positions are 10, expected 11 or more for k");
    assert_eq!(words([2, 1, 6, 7], 0).unwrap_err(), "rotary turns 8 features, and k has D=7");
}
