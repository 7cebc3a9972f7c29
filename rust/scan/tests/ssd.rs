//! The chunked scan against the recurrence, token by token.

use sensorium_core::{Level, isa};
use sensorium_scan::ssd::{self, Dims, Grads, Inputs, Rows, Steps, Upstream};
use sensorium_scan::{ScanKernels, Sequences};

struct Case {
    dims: Dims,
    x: Vec<f64>,
    dt: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    d: Vec<f64>,
    z: Vec<f64>,
    initial: Vec<f64>,
}

fn case(dims: Dims, states: usize) -> Case {
    let mut seed = 12_345_u64;
    let mut draw = |n: usize| -> Vec<f64> {
        (0..n)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                f64::from((seed >> 40) as f32 / (1 << 24) as f32) - 0.5
            })
            .collect()
    };
    let Dims { batch, length, heads, width, groups, state } = dims;
    Case {
        dims,
        x: draw(batch * length * heads * width),
        dt: draw(batch * length * heads).iter().map(|v| (v + 0.5) * 0.2).collect(),
        a: draw(heads).iter().map(|v| -4.0 * (v + 0.6)).collect(),
        b: draw(batch * length * groups * state),
        c: draw(batch * length * groups * state),
        d: draw(heads),
        z: draw(batch * length * heads * width),
        initial: draw(states * heads * width * state),
    }
}

fn narrow<T: ScanKernels>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

/// Token by token.
fn recurrence(case: &Case, sequences: &Sequences) -> (Vec<f64>, Vec<f64>) {
    let Dims { length, heads, width, groups, state, .. } = case.dims;
    let mut y = vec![0.0; case.x.len()];
    let mut last = vec![0.0; sequences.states() * heads * width * state];
    for sequence in sequences.list() {
        for h in 0..heads {
            let g = h / (heads / groups);
            let mut hidden = vec![0.0; width * state];
            if let Some(from) = sequence.initial {
                let at = (from * heads + h) * width * state;
                hidden.copy_from_slice(&case.initial[at..at + width * state]);
            }
            for t in sequence.start..sequence.end {
                let token = sequence.row * length + t;
                let dt = case.dt[token * heads + h];
                let inner = (token * groups + g) * state;
                for p in 0..width {
                    let at = (token * heads + h) * width + p;
                    let mut sum = 0.0;
                    for s in 0..state {
                        let value = &mut hidden[p * state + s];
                        *value = (dt * case.a[h]).exp() * *value + dt * case.b[inner + s] * case.x[at];
                        sum += case.c[inner + s] * *value;
                    }
                    let z = case.z[at];
                    y[at] = (sum + case.d[h] * case.x[at]) * z / (1.0 + (-z).exp());
                }
            }
            if let Some(to) = sequence.last {
                let at = (to * heads + h) * width * state;
                last[at..at + width * state].copy_from_slice(&hidden);
            }
        }
    }
    (y, last)
}

fn check<T: ScanKernels>(dims: Dims, sequences: &Sequences, chunk: usize, error: f64) {
    let case = case(dims, sequences.states());
    let (want, want_last) = recurrence(&case, sequences);
    let all: Vec<Vec<T>> = [&case.x, &case.dt, &case.a, &case.b, &case.c, &case.d, &case.z, &case.initial]
        .map(|x| narrow(x))
        .into();
    let inputs = Inputs {
        x: Rows::contiguous("x", &all[0], dims.tokens()).unwrap(),
        steps: Steps {
            dt: &all[1],
            bias: None,
            softplus: false,
            limit: (T::ZERO, T::from_f64(f64::INFINITY)),
        },
        a: &all[2],
        b: Rows::contiguous("B", &all[3], dims.inner()).unwrap(),
        c: Rows::contiguous("C", &all[4], dims.inner()).unwrap(),
        skip: Some(&all[5]),
        gate: Some(Rows::contiguous("z", &all[6], dims.tokens()).unwrap()),
        initial: Some(&all[7]),
    };
    let mut y = vec![T::from_f64(f64::NAN); case.x.len()];
    let mut last = vec![T::from_f64(f64::NAN); case.initial.len()];
    T::ssd_forward(dims, sequences, chunk, &inputs, &mut y, Some(&mut last), None).unwrap();
    let worst = |got: &[T], want: &[f64]| {
        got.iter().zip(want).map(|(g, w)| (g.to_f64() - w).abs()).fold(0.0, |a, b| if b <= a { a } else { b })
    };
    let (e, f) = (worst(&y, &want), worst(&last, &want_last));
    assert!(e <= error && f <= error, "{dims:?} chunk {chunk}: {e:e} {f:e}");

    // With `y` and the last states as gradients of themselves.
    let grad_y = Rows::contiguous("grad_out", &y, dims.tokens()).unwrap();
    let mut kept = vec![T::ZERO; ssd::checkpoints(dims, sequences, chunk).unwrap()];
    T::ssd_forward(dims, sequences, chunk, &inputs, &mut y.clone(), None, Some(&mut kept)).unwrap();
    let wants = gradients(&case, sequences, &want, &want_last);
    for checkpoints in [None, Some(&kept[..])] {
        let upstream = Upstream { y: grad_y, last: Some(&last), checkpoints };
        let mut grads: Vec<Vec<T>> = wants.iter().map(|w| vec![T::from_f64(f64::NAN); w.len()]).collect();
        let [x, dt, a, b, c, skip, gate, initial] = &mut grads[..] else { unreachable!() };
        let (skip, gate, initial) = (Some(&mut skip[..]), Some(&mut gate[..]), Some(&mut initial[..]));
        let to = Grads { x, dt, a, b, c, skip, gate, bias: None, initial };
        T::ssd_backward(dims, sequences, chunk, &inputs, upstream, to).unwrap();
        for (i, (got, want)) in grads.iter().zip(&wants).enumerate() {
            let size = want.iter().fold(1.0_f64, |m, w| m.max(w.abs()));
            let e = worst(got, want);
            assert!(e <= 4.0 * error * size, "{dims:?} chunk {chunk} gradient {i}: {e:e} of {size:e}");
        }
    }
}

/// Gradients by x, dt, A, B, C, D, z and the initial states, token by token.
fn gradients(case: &Case, sequences: &Sequences, gy: &[f64], glast: &[f64]) -> Vec<Vec<f64>> {
    let Dims { length, heads, width, groups, state, .. } = case.dims;
    let sizes = [&case.x, &case.dt, &case.a, &case.b, &case.c, &case.d, &case.z, &case.initial];
    let mut grads: Vec<Vec<f64>> = sizes.iter().map(|x| vec![0.0; x.len()]).collect();
    for sequence in sequences.list() {
        for h in 0..heads {
            let g = h / (heads / groups);
            for p in 0..width {
                let mut states = vec![vec![0.0; state]];
                let mut grad = vec![0.0; state];
                if let Some(from) = sequence.initial {
                    let at = ((from * heads + h) * width + p) * state;
                    states[0].copy_from_slice(&case.initial[at..at + state]);
                }
                if let Some(to) = sequence.last {
                    let at = ((to * heads + h) * width + p) * state;
                    grad.copy_from_slice(&glast[at..at + state]);
                }
                let place = |t: usize| {
                    let token = sequence.row * length + t;
                    (token * heads + h, (token * groups + g) * state, (token * heads + h) * width + p)
                };
                for t in sequence.start..sequence.end {
                    let (step, inner, at) = place(t);
                    let (dt, before) = (case.dt[step], states.last().unwrap().clone());
                    states.push(
                        (0..state)
                            .map(|s| (dt * case.a[h]).exp() * before[s] + dt * case.b[inner + s] * case.x[at])
                            .collect(),
                    );
                }
                for t in (sequence.start..sequence.end).rev() {
                    let (step, inner, at) = place(t);
                    let (dt, x, z) = (case.dt[step], case.x[at], case.z[at]);
                    let (before, now) = (&states[t - sequence.start], &states[t - sequence.start + 1]);
                    let gate = 1.0 / (1.0 + (-z).exp());
                    let y: f64 = (0..state).map(|s| case.c[inner + s] * now[s]).sum::<f64>() + case.d[h] * x;
                    grads[6][at] = gy[at] * y * gate * (1.0 + z * (1.0 - gate));
                    let dy = gy[at] * z * gate;
                    grads[0][at] += dy * case.d[h];
                    grads[5][h] += dy * x;
                    let decay = (dt * case.a[h]).exp();
                    for s in 0..state {
                        grad[s] += dy * case.c[inner + s];
                        grads[4][inner + s] += dy * now[s];
                        grads[3][inner + s] += grad[s] * dt * x;
                        grads[0][at] += grad[s] * dt * case.b[inner + s];
                        let da = grad[s] * decay * before[s];
                        grads[1][step] += grad[s] * case.b[inner + s] * x + case.a[h] * da;
                        grads[2][h] += dt * da;
                        grad[s] *= decay;
                    }
                }
                if let Some(from) = sequence.initial {
                    let at = ((from * heads + h) * width + p) * state;
                    grads[7][at..at + state].copy_from_slice(&grad);
                }
            }
        }
    }
    grads
}

#[test]
fn the_chunked_scan_is_the_recurrence() {
    for level in Level::available() {
        isa::set_level(level);
        for (batch, length, heads, width, groups, state) in [
            (1, 5, 1, 1, 1, 1),
            (2, 70, 4, 16, 2, 16),
            (1, 100, 2, 5, 1, 3),
            (1, 33, 3, 64, 3, 128),
            (1, 0, 2, 4, 1, 4),
            (2, 37, 2, 40, 1, 0),
            (1, 2100, 1, 3, 1, 2),
        ] {
            let dims = Dims { batch, length, heads, width, groups, state };
            for chunk in [1, 7, 64, 1000] {
                // Chunks of one token are slow, and long rows are there for their windows.
                if (chunk == 1 && state > 16) || (chunk < 64 && length > 1000) {
                    continue;
                }
                let whole = Sequences::whole(batch, length);
                check::<f64>(dims, &whole, chunk, 1e-12);
                check::<f32>(dims, &whole, chunk, 2e-5);
                let ids: Vec<i64> = (0..batch * length).map(|i| i as i64 / 11).collect();
                let packed = Sequences::from_ids(batch, length, &ids).unwrap();
                check::<f64>(dims, &packed, chunk, 1e-12);
                if batch == 1 {
                    let offsets = [0, 0, length as i64 / 3, length as i64 / 2, length as i64];
                    check::<f64>(dims, &Sequences::from_offsets(length, &offsets).unwrap(), chunk, 1e-12);
                }
            }
        }
    }
    isa::set_level(Level::Avx512);
}
