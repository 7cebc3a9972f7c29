//! Forward and backward against sums written out in `f64`, at every instruction-set level and thread count.

#![allow(clippy::float_cmp)] // Equal infinities are equal; everything else is compared within a bound.

use sensorium_attention::{
    AttentionKernels, Dims, Inner, Layout, Plan, Sample, Scoring, Segment, Strides, View, ViewMut,
};
use sensorium_core::{Float, Level, isa, threads};
use std::ops::Range;

/// The instruction set in force is the whole process's: one test at a time.
static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn values<T: Float>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::from_f64(f64::from(self.next() as u32) / f64::from(1_u32 << 30) - 1.0)).collect()
    }
    fn layout(&mut self) -> Layout {
        let kinds = [Inner::None, Inner::Diagonal, Inner::Causal, Inner::Full];
        let longest = [3, 20, 90][self.below(3)];
        let mut sample = || {
            let segments: Vec<Segment> = (0..self.below(6))
                .map(|_| Segment {
                    inner: kinds[self.below(4)],
                    length: 1 + self.below(longest),
                    hidden: self.below(4) == 0,
                    anchor: self.below(4) == 0,
                })
                .collect();
            let n = segments.len();
            let visible =
                (self.below(3) == 0).then(|| (0..n * n).map(|_| self.below(2) == 0).collect::<Vec<_>>());
            (segments, (self.below(2) == 0).then_some(1), visible)
        };
        let samples = [sample(), sample()];
        let samples =
            samples.each_ref().map(|(s, w, v)| Sample { segments: s, window: *w, visible: v.as_deref() });
        Layout::new(&samples).unwrap()
    }
}

struct Case<T> {
    dims: Dims,
    /// One for all samples, or one each.
    layouts: Vec<Layout>,
    /// Rows of the layouts that the queries are, and the keys.
    window: [Range<u32>; 2],
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    g: Vec<T>,
    scale: f64,
}

impl<T: Float + AttentionKernels> Case<T> {
    fn draw(seed: u64) -> Self {
        let mut random = Random(seed);
        let kv_heads = 1 + random.below(2);
        let batch = 1 + random.below(3);
        let layouts: Vec<Layout> =
            (0..if random.below(3) == 0 { batch } else { 1 }).map(|_| random.layout()).collect();
        let tokens = layouts.iter().map(Layout::len).max().unwrap_or(0);
        // Windows may end past a layout, which is then as good as padded.
        let mut window = || {
            let start = random.below(tokens + 1);
            start as u32..(start + random.below(tokens + 9 - start)) as u32
        };
        let whole = 0..tokens as u32;
        let window = if seed.is_multiple_of(2) { [whole.clone(), whole] } else { [window(), window()] };
        let dims = Dims {
            batch,
            heads: kv_heads * (1 + random.below(3)),
            kv_heads,
            queries: window[0].len(),
            keys: window[1].len(),
            width: [0, 1, 2, 3, 7, 8, 16, 24, 33, 65][random.below(10)],
        };
        let (nq, nk) = (
            dims.batch * dims.heads * dims.queries * dims.width,
            dims.batch * kv_heads * dims.keys * dims.width,
        );
        let scale = [0.5, -0.7, 0.0, 1.3][random.below(4)];
        let (q, k) = (random.values(nq), random.values(nk));
        Self { dims, layouts, window, q, k, v: random.values(nk), g: random.values(nq), scale }
    }

    fn shapes(&self) -> ([usize; 4], [usize; 4]) {
        let d = self.dims;
        ([d.batch, d.heads, d.queries, d.width], [d.batch, d.kv_heads, d.keys, d.width])
    }

    /// `[out, lse, dq, dk, dv]` by the kernels.
    fn run(&self) -> [Vec<T>; 5] {
        let (qs, ks) = self.shapes();
        let (sq, sk) = (Strides::contiguous(qs), Strides::contiguous(ks));
        let [queries, keys] = &self.window;
        let plans: Vec<Plan> =
            self.layouts.iter().map(|l| Plan::window(l, queries.clone(), keys.clone())).collect();
        let plans: Vec<&Plan> = plans.iter().collect();
        let scoring = Scoring::new(self.scale);
        let view = |data, shape, strides| View::new("q", data, shape, strides).unwrap();
        let (q, k, v) = (view(&self.q, qs, sq), view(&self.k, ks, sk), view(&self.v, ks, sk));
        let nan = T::from_f64(f64::NAN);
        let mut out = vec![nan; self.q.len()];
        let mut lse = vec![nan; qs[0] * qs[1] * qs[2]];
        let to = ViewMut::new("out", &mut out, qs, sq).unwrap();
        T::attention_forward(self.dims, &plans, scoring, q, k, v, to, &mut lse).unwrap();
        let mut grads = [vec![nan; self.q.len()], vec![nan; self.k.len()], vec![nan; self.k.len()]];
        let [dq, dk, dv] = &mut grads;
        let to = [
            ViewMut::new("dq", dq, qs, sq).unwrap(),
            ViewMut::new("dk", dk, ks, sk).unwrap(),
            ViewMut::new("dv", dv, ks, sk).unwrap(),
        ];
        let (g, o) = (view(&self.g, qs, sq), view(&out, qs, sq));
        T::attention_backward(self.dims, &plans, scoring, g, q, k, v, o, &lse, to).unwrap();
        let [dq, dk, dv] = grads;
        [out, lse, dq, dk, dv]
    }

    /// The same as sums in `f64`.
    fn reference(&self) -> [Vec<f64>; 5] {
        let Dims { batch, heads, kv_heads, queries, keys, width } = self.dims;
        let masks: Vec<Vec<bool>> = self.layouts.iter().map(|layout| self.mask(layout)).collect();
        let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let (q, k, v, g) = (wide(&self.q), wide(&self.k), wide(&self.v), wide(&self.g));
        let mut out = vec![0.0; q.len()];
        let mut lse = vec![f64::NEG_INFINITY; batch * heads * queries];
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for row in 0..batch * heads * queries {
            let (head, i) = (row / queries, row % queries);
            let mask = &masks[if masks.len() == 1 { 0 } else { head / heads }];
            let kv = head / heads * kv_heads + head % heads / (heads / kv_heads);
            let at = |j: usize| (kv * keys + j) * width;
            let dot = |a: &[f64], b: &[f64]| (0..width).map(|d| a[d] * b[d]).sum::<f64>();
            let (qi, gi) = (&q[row * width..][..width], &g[row * width..][..width]);
            let seen: Vec<usize> = (0..keys).filter(|j| mask[i * keys + j]).collect();
            let scores: Vec<f64> = seen.iter().map(|&j| self.scale * dot(qi, &k[at(j)..])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            if seen.is_empty() {
                continue;
            }
            lse[row] = max + sum.ln();
            let p: Vec<f64> = scores.iter().map(|s| (s - lse[row]).exp()).collect();
            for (&j, &p) in seen.iter().zip(&p) {
                for d in 0..width {
                    out[row * width + d] += p * v[at(j) + d];
                }
            }
            let delta = dot(gi, &out[row * width..]);
            for (&j, &p) in seen.iter().zip(&p) {
                let ds = self.scale * p * (dot(gi, &v[at(j)..]) - delta);
                for d in 0..width {
                    dv[at(j) + d] += p * gi[d];
                    dq[row * width + d] += ds * k[at(j) + d];
                    dk[at(j) + d] += ds * qi[d];
                }
            }
        }
        [out, lse, dq, dk, dv]
    }

    /// Row-major `(queries, keys)`.
    fn mask(&self, layout: &Layout) -> Vec<bool> {
        let n = layout.len();
        let mut dense = vec![false; n * n];
        layout.dense(&mut dense).unwrap();
        let [queries, keys] = self.window.clone().map(|r| r.start as usize..r.end as usize);
        let seen = |i: usize, j: usize| i < n && j < n && dense[i * n + j];
        queries.flat_map(|i| keys.clone().map(move |j| (i, j))).map(|(i, j)| seen(i, j)).collect()
    }

    fn check(&self, what: &str) {
        // All inputs are within [-1, 1]: scores within D, sums of at most N * group terms of size D.
        let Dims { heads, kv_heads, queries, keys, width, .. } = self.dims;
        let terms = (queries.max(keys) * (heads / kv_heads.max(1)) + 8 * width + 8) as f64;
        let bound = T::EPSILON.to_f64() * terms * (2 + width) as f64;
        for (name, (got, want)) in
            ["out", "lse", "dq", "dk", "dv"].iter().zip(self.run().iter().zip(&self.reference()))
        {
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let got = got.to_f64();
                assert!(
                    got == *want || (got - want).abs() <= bound,
                    "{what} {name}[{i}] is {got}, expected {want} within {bound}: {:?} {:?}",
                    self.dims,
                    self.layouts
                );
            }
        }
    }
}

#[test]
fn agrees_with_sums_written_out() {
    let _one = LOCK.lock();
    for level in Level::available() {
        isa::set_level(level);
        for seed in 0..150 {
            Case::<f32>::draw(seed).check(&format!("seed {seed} {} f32", level.name()));
            Case::<f64>::draw(seed).check(&format!("seed {seed} {} f64", level.name()));
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let _one = LOCK.lock();
    isa::set_level(Level::Avx512);
    let segment = |inner, length| Segment { inner, length, hidden: false, anchor: false };
    let segments = [segment(Inner::Causal, 200), segment(Inner::Full, 300)];
    let layout = Layout::new(&[Sample { segments: &segments, window: None, visible: None }]).unwrap();
    for (heads, kv_heads) in [(1, 1), (3, 1), (2, 2)] {
        let dims = Dims { batch: 1, heads, kv_heads, queries: 500, keys: 500, width: 32 };
        let mut random = Random(7);
        let case = Case::<f32> {
            dims,
            layouts: vec![layout.clone()],
            window: [0..500, 0..500],
            q: random.values(heads * 500 * 32),
            k: random.values(kv_heads * 500 * 32),
            v: random.values(kv_heads * 500 * 32),
            g: random.values(heads * 500 * 32),
            scale: 0.2,
        };
        let before = threads::set_local_num_threads(1);
        let one = case.run();
        for n in [2, 3, 8] {
            threads::set_local_num_threads(n);
            assert!(case.run() == one, "{n} threads, {heads} heads");
        }
        threads::set_local_num_threads(before);
        case.check("large");
    }
}

fn same(a: &[f32], b: &[f32]) {
    for (a, b) in a.iter().zip(b) {
        assert!(a == b || (a - b).abs() <= 1e-5, "{a} and {b}");
    }
}

#[test]
fn what_is_not_seen_never_reaches_a_row() {
    let _one = LOCK.lock();
    for level in Level::available() {
        isa::set_level(level);
        let segment = |inner, length| Segment { inner, length, hidden: false, anchor: false };
        let segments = [segment(Inner::Causal, 30), segment(Inner::Diagonal, 20), segment(Inner::Full, 20)];
        let visible = [false, false, false, true, false, false, false, false, false];
        let layout =
            Layout::new(&[Sample { segments: &segments, window: None, visible: Some(&visible) }]).unwrap();
        let mut mask = vec![false; 70 * 70];
        layout.dense(&mut mask).unwrap();
        let dims = Dims { batch: 1, heads: 1, kv_heads: 1, queries: 70, keys: 70, width: 9 };
        let mut random = Random(3);
        let mut values = || random.values::<f32>(70 * 9);
        let (layouts, window) = (vec![layout], [0..70, 0..70]);
        let (q, k, v, g) = (values(), values(), values(), values());
        let clean = Case { dims, layouts, window, q, k, v, g, scale: 0.3 };
        let before = clean.run();
        for bad in [f32::NAN, f32::INFINITY] {
            for token in [0, 17, 35, 60] {
                for which in 0..4 {
                    let mut case = Case {
                        layouts: clean.layouts.clone(),
                        window: clean.window.clone(),
                        q: clean.q.clone(),
                        k: clean.k.clone(),
                        v: clean.v.clone(),
                        g: clean.g.clone(),
                        ..clean
                    };
                    [&mut case.q, &mut case.k, &mut case.v, &mut case.g][which][token * 9 + 4] = bad;
                    let after = case.run();
                    // A query row differs only where the query is the token or sees it; elsewhere by rounding.
                    for i in (0..70).filter(|&i| i != token && !mask[i * 70 + token]) {
                        same(&before[0][i * 9..][..9], &after[0][i * 9..][..9]);
                        same(&before[1][i..=i], &after[1][i..=i]);
                        same(&before[2][i * 9..][..9], &after[2][i * 9..][..9]);
                    }
                    // A key row differs only where a query that sees it is the token or sees the token.
                    let touched =
                        |j: usize| (0..70).any(|i| mask[i * 70 + j] && (i == token || mask[i * 70 + token]));
                    for j in (0..70).filter(|&j| j != token && !touched(j)) {
                        same(&before[3][j * 9..][..9], &after[3][j * 9..][..9]);
                        same(&before[4][j * 9..][..9], &after[4][j * 9..][..9]);
                    }
                }
            }
        }
    }
}

#[test]
fn errors_name_the_argument() {
    let layout = Layout::new(&[]).unwrap();
    let plan = Plan::new(&layout);
    let dims = Dims { batch: 1, heads: 3, kv_heads: 2, queries: 0, keys: 0, width: 2 };
    let (qs, ks) = ([1, 3, 0, 2], [1, 2, 0, 2]);
    let call = |dims, qs, ks, scale| {
        let q = View::<f32>::new("q", &[], qs, Strides::contiguous(qs)).unwrap();
        let k = View::<f32>::new("k", &[], ks, Strides::contiguous(ks)).unwrap();
        let out = ViewMut::new("out", &mut [], qs, Strides::contiguous(qs)).unwrap();
        f32::attention_forward(dims, &[&plan], Scoring::new(scale), q, k, k, out, &mut [])
            .map_err(|e| e.to_string())
    };
    assert_eq!(call(dims, qs, ks, 1.0).unwrap_err(), "k has H_kv=2, which does not divide H=3 of q");
    let dims = Dims { heads: 2, ..dims };
    let qs = [1, 2, 0, 2];
    assert_eq!(call(dims, qs, ks, f64::NAN).unwrap_err(), "scale must be finite, not NaN");
    assert_eq!(call(dims, [1, 2, 0, 5], ks, 1.0).unwrap_err(), "q has D=5, expected D=2");
    let more = Dims { queries: 4, ..dims };
    assert_eq!(call(more, qs, ks, 1.0).unwrap_err(), "q has N=4, expected N=0");
    let more = Dims { keys: 4, ..dims };
    assert_eq!(call(more, qs, ks, 1.0).unwrap_err(), "k has N=4, expected N=0");
    assert_eq!(call(dims, qs, ks, 1.0), Ok(()));
    let q = View::<f32>::new("q", &[], qs, Strides::contiguous(qs)).unwrap();
    let out = ViewMut::new("out", &mut [], qs, Strides::contiguous(qs)).unwrap();
    let three = f32::attention_forward(dims, &[&plan; 3], Scoring::new(1.0), q, q, q, out, &mut []);
    assert_eq!(three.unwrap_err().to_string(), "layout has 3 plans, expected 1 or B=1");
}
