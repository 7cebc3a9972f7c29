//! Rotary embeddings against multiplication by complex numbers, in every storage, at every instruction-set level.
#![allow(clippy::float_cmp)] // What is not turned stays as it is.

use sensorium_attention::{AttentionKernels, Rotation, Strides, View, ViewMut};
use sensorium_core::{Bf16, F16, Float, Level, Storage, isa, threads};
use std::sync::Mutex;

/// Numbers from -1 to 1.
struct Random(u64);
impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / 2.0_f64.powi(52) - 1.0
    }
}

fn wide<E: Storage>(x: E) -> f64 {
    x.widen().to_f64()
}

fn narrow<E: Storage>(x: f64) -> E {
    E::narrow(E::Float::from_f64(x))
}

#[derive(Debug, Clone, Copy)]
struct Case {
    shape: [usize; 4],
    pairs: usize,
    samples: usize,
    neighbours: bool,
    inverse: bool,
    /// Elements between rows beyond the width.
    gap: usize,
}

fn angle(case: Case, batch: usize, token: usize, pair: usize) -> f64 {
    let sample = if case.samples == 1 { 0 } else { batch };
    (7 * sample + token) as f64 * 0.37_f64.powi(pair as i32)
}

fn table<T: Float>(case: Case) -> Vec<T> {
    let mut table = Vec::new();
    for sample in 0..case.samples {
        for token in 0..case.shape[2] {
            let angles: Vec<f64> = (0..case.pairs).map(|pair| angle(case, sample, token, pair)).collect();
            if case.neighbours {
                table.extend(angles.iter().flat_map(|a| [T::from_f64(a.cos()); 2]));
                table.extend(angles.iter().flat_map(|a| [T::from_f64(-a.sin()), T::from_f64(a.sin())]));
            } else {
                table.extend(angles.iter().map(|a| T::from_f64(a.cos())));
                table.extend(angles.iter().map(|a| T::from_f64(a.sin())));
            }
        }
    }
    table
}

/// `x`, and what comes of it.
fn run<E: AttentionKernels>(case: Case) -> (Vec<E>, Vec<E>) {
    let [batch, heads, tokens, width] = case.shape;
    let row = width + case.gap;
    let strides = Strides { batch: heads * tokens * row, head: row, row: heads * row };
    let mut random = Random(9);
    let x: Vec<E> = (0..batch * heads * tokens * row).map(|_| narrow(random.next())).collect();
    let mut out = vec![narrow::<E>(3.0); x.len()];
    let table = table::<E::Float>(case);
    let rotation = Rotation::new(&table, [case.samples, tokens, case.pairs], case.neighbours).unwrap();
    let view = View::new("x", &x, case.shape, strides).unwrap();
    let to = ViewMut::new("out", &mut out, case.shape, strides).unwrap();
    E::rotate(view, &rotation, case.inverse, to).unwrap();
    (x, out)
}

/// `relative` is half a step of what is stored, `absolute` the same below the smallest normal number.
fn check<E: AttentionKernels>(case: Case, relative: f64, absolute: f64) {
    let [batch, heads, tokens, width] = case.shape;
    let row = width + case.gap;
    let eps = E::Float::EPSILON.to_f64();
    let (x, out) = run::<E>(case);
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..tokens).map(move |i| (b, h, i))))
    {
        let at = ((b * tokens + i) * heads + h) * row;
        let feature = |pair: usize, second: usize| {
            at + if case.neighbours { 2 * pair + second } else { pair + second * case.pairs }
        };
        for pair in 0..case.pairs {
            let (a, c) = (feature(pair, 0), feature(pair, 1));
            let (re, im) = (wide(x[a]), wide(x[c]));
            let angle = angle(case, b, i, pair) * if case.inverse { -1.0 } else { 1.0 };
            let (cos, sin) = (angle.cos(), angle.sin());
            let want = [re * cos - im * sin, re * sin + im * cos];
            // Half a step for each table entry, product and sum; and what storing rounds.
            for (at, want) in [(a, want[0]), (c, want[1])] {
                let bound = 2.0 * eps * (re.abs() + im.abs());
                let bound = bound + relative * (want.abs() + bound) + absolute;
                let error = (wide(out[at]) - want).abs();
                assert!(error <= bound, "{case:?} {b} {h} {i} {pair}: {error:e} > {bound:e}");
            }
        }
        for at in at + 2 * case.pairs..at + width {
            assert_eq!(out[at], x[at], "{case:?}");
        }
        assert!(out[at + width..at + row].iter().all(|&x| wide(x) == 3.0), "{case:?} wrote between the rows");
    }
}

#[test]
fn agrees_with_complex_numbers() {
    let _held = LEVEL.lock().unwrap();
    for level in Level::available() {
        isa::set_level(level);
        for (shape, pairs) in [
            ([1, 1, 1, 2], 1),
            ([2, 3, 5, 64], 32),
            ([2, 1, 7, 48], 12),
            ([1, 2, 3, 130], 65),
            ([3, 2, 4, 37], 17),
            ([1, 1, 2, 5], 0),
            ([0, 2, 3, 4], 2),
        ] {
            for code in 0..8 {
                let samples = if code & 4 == 0 { 1 } else { shape[0] };
                let (neighbours, inverse, gap) = (code & 1 == 1, code & 2 == 2, code);
                let case = Case { shape, pairs, samples, neighbours, inverse, gap };
                check::<f32>(case, 0.0, 0.0);
                check::<f64>(case, 0.0, 0.0);
                check::<Bf16>(case, 2.0_f64.powi(-8), 2.0_f64.powi(-134));
                check::<F16>(case, 2.0_f64.powi(-11), 2.0_f64.powi(-25));
            }
        }
    }
    isa::set_level(Level::Avx512);
}

/// One test at a time where the level must hold.
static LEVEL: Mutex<()> = Mutex::new(());

#[test]
fn threads_change_no_bit() {
    let _held = LEVEL.lock().unwrap();
    let case =
        Case { shape: [2, 3, 1000, 64], pairs: 32, samples: 2, neighbours: false, inverse: false, gap: 1 };
    let mut results = Vec::new();
    for count in [1, 4] {
        let before = threads::set_local_num_threads(count);
        results.push(run::<f32>(case).1);
        threads::set_local_num_threads(before);
    }
    assert!(results[0] == results[1]);
}

#[test]
fn errors_name_the_argument() {
    let table = vec![0.0_f32; 2 * 5 * 2 * 3];
    let short = Rotation::new(&table, [2, 5, 4], false).unwrap_err();
    assert_eq!(short.to_string(), "table has 60 elements, expected 80");
    let words = |shape: [usize; 4], sizes| {
        let rotation = Rotation::new(&table, sizes, false).unwrap();
        let x = vec![0.0_f32; shape.iter().product()];
        let mut out = x.clone();
        let strides = Strides::contiguous(shape);
        let view = View::new("x", &x, shape, strides).unwrap();
        let to = ViewMut::new("out", &mut out, shape, strides).unwrap();
        f32::rotate(view, &rotation, false, to).map_err(|e| e.to_string())
    };
    assert_eq!(words([2, 1, 5, 6], [2, 5, 3]), Ok(()));
    assert_eq!(words([3, 1, 5, 6], [2, 5, 3]).unwrap_err(), "positions are of 2 samples, expected 1 or B=3");
    assert_eq!(words([2, 1, 6, 6], [2, 5, 3]).unwrap_err(), "positions are 5, expected 6 or more for x");
    assert_eq!(words([2, 1, 5, 5], [2, 5, 3]).unwrap_err(), "rotary turns 6 features, and x has D=5");
}
