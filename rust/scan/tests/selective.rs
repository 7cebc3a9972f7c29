//! The selective scan against a loop over everything in `f64`, and its gradients against differences, at every level.

use sensorium_core::{Level, isa};
use sensorium_scan::selective::{
    CoefficientGradient, Coefficients, Dims, Gradients, Inputs, Outputs, Step, Strides, View, ViewMut,
    checkpoints,
};
use sensorium_scan::{ScanKernels, Sequences, selective};
use std::sync::{Mutex, MutexGuard};

/// The level is the process's: tests that set it take turns.
fn at(level: Level) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let guard = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    isa::set_level(level);
    guard
}

/// Numbers without pattern in `[-1, 1)`.
struct Random(u64);
impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / 2f64.powi(52) - 1.0
    }
    fn many(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Everything that a scan reads, in `f64`, channels last.
#[derive(Clone)]
struct Case {
    dims: Dims,
    sequences: Sequences,
    u: Vec<f64>,
    delta: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    constant: (bool, bool),
    d: Option<Vec<f64>>,
    z: Option<Vec<f64>>,
    bias: Option<Vec<f64>>,
    initial: Option<Vec<f64>>,
}

impl Case {
    fn new(dims: Dims, sequences: Sequences, constant: (bool, bool), options: bool, seed: u64) -> Self {
        let mut random = Random(seed);
        let Dims { batch, channels, length, states, groups } = dims;
        let tokens = batch * length;
        let count = |constant: bool| if constant { channels * states } else { tokens * groups * states };
        let state = sequences.states() * channels * states;
        Self {
            dims,
            u: random.many(tokens * channels),
            delta: random.many(tokens * channels).iter().map(|x| x - 0.5).collect(),
            a: random.many(channels * states).iter().map(|x| -1.2 - x).collect(),
            b: random.many(count(constant.0)),
            c: random.many(count(constant.1)),
            constant,
            d: options.then(|| random.many(channels)),
            z: options.then(|| random.many(tokens * channels)),
            bias: options.then(|| random.many(channels)),
            initial: options.then(|| random.many(state)),
            sequences,
        }
    }

    /// Results and last states.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let Dims { channels, length, states, groups, .. } = self.dims;
        let mut y = vec![0.0; self.u.len()];
        let mut last = vec![0.0; self.sequences.states() * channels * states];
        for sequence in self.sequences.list() {
            for d in 0..channels {
                let group = d * groups / channels;
                let mut h: Vec<f64> = match (&self.initial, sequence.initial) {
                    (Some(initial), Some(i)) => initial[(i * channels + d) * states..][..states].to_vec(),
                    _ => vec![0.0; states],
                };
                for t in sequence.start..sequence.end {
                    let at = (sequence.row * length + t) * channels + d;
                    let raw = self.delta[at] + self.bias.as_ref().map_or(0.0, |bias| bias[d]);
                    let delta = raw.exp().ln_1p();
                    let mut sum = 0.0;
                    for (n, h) in h.iter_mut().enumerate() {
                        let varying = ((sequence.row * length + t) * groups + group) * states + n;
                        let of = |constant: bool| if constant { d * states + n } else { varying };
                        *h = (delta * self.a[d * states + n]).exp() * *h
                            + delta * self.u[at] * self.b[of(self.constant.0)];
                        sum += *h * self.c[of(self.constant.1)];
                    }
                    sum += self.d.as_ref().map_or(0.0, |skip| skip[d] * self.u[at]);
                    y[at] = sum * self.z.as_ref().map_or(1.0, |z| z[at] / (1.0 + (-z[at]).exp()));
                }
                if let Some(i) = sequence.last {
                    last[(i * channels + d) * states..][..states].copy_from_slice(&h);
                }
            }
        }
        (y, last)
    }
}

/// A case's numbers as `T`, in one of the two layouts.
struct Held<T> {
    case: Case,
    last: bool,
    tensors: [Vec<T>; 5],
    options: [Option<Vec<T>>; 4],
}

/// `(batch, token, group, feature)` to `(batch, group, feature, token)`.
fn turned<T: ScanKernels>(x: &[f64], [batch, groups, tokens, features]: [usize; 4], last: bool) -> Vec<T> {
    let mut out = vec![T::ZERO; x.len()];
    for b in 0..batch {
        for t in 0..tokens {
            for f in 0..groups * features {
                let from = (b * tokens + t) * groups * features + f;
                let to = if last { from } else { (b * groups * features + f) * tokens + t };
                out[to] = T::from_f64(x[from]);
            }
        }
    }
    out
}

fn turned_back<T: ScanKernels>(
    x: &[T],
    [batch, groups, tokens, features]: [usize; 4],
    last: bool,
) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for b in 0..batch {
        for t in 0..tokens {
            for f in 0..groups * features {
                let to = (b * tokens + t) * groups * features + f;
                let from = if last { to } else { (b * groups * features + f) * tokens + t };
                out[to] = x[from].to_f64();
            }
        }
    }
    out
}

fn strides(shape: [usize; 4], last: bool) -> Strides {
    if last { Strides::channels_last(shape) } else { Strides::channels_first(shape) }
}

impl<T: ScanKernels> Held<T> {
    fn new(case: &Case, last: bool) -> Self {
        let (inputs, coefficients) = (case.dims.inputs(), case.dims.coefficients());
        let plain = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
        let of = |x: &[f64], constant| if constant { plain(x) } else { turned(x, coefficients, last) };
        Self {
            tensors: [
                turned(&case.u, inputs, last),
                turned(&case.delta, inputs, last),
                plain(&case.a),
                of(&case.b, case.constant.0),
                of(&case.c, case.constant.1),
            ],
            options: [
                case.d.as_deref().map(plain),
                case.z.as_ref().map(|z| turned(z, inputs, last)),
                case.bias.as_deref().map(plain),
                case.initial.as_deref().map(plain),
            ],
            case: case.clone(),
            last,
        }
    }

    fn view<'a>(&self, data: &'a [T], shape: [usize; 4]) -> View<'a, T> {
        View::new("x", data, shape, strides(shape, self.last)).unwrap()
    }

    fn inputs(&self) -> Inputs<'_, T> {
        let [u, delta, a, b, c] = &self.tensors;
        let [d, z, bias, initial] = &self.options;
        let coefficients = |data, constant| {
            if constant {
                Coefficients::Constant(data)
            } else {
                Coefficients::Varying(self.view(data, self.case.dims.coefficients()))
            }
        };
        Inputs {
            u: self.view(u, self.case.dims.inputs()),
            delta: self.view(delta, self.case.dims.inputs()),
            a,
            b: coefficients(b, self.case.constant.0),
            c: coefficients(c, self.case.constant.1),
            d: d.as_deref(),
            z: z.as_ref().map(|z| self.view(z, self.case.dims.inputs())),
            delta_bias: bias.as_deref(),
            softplus: true,
            initial: initial.as_deref(),
        }
    }

    /// Results, last states and checkpoints.
    fn forward(&self) -> (Vec<f64>, Vec<f64>, Vec<T>) {
        let (dims, sequences) = (self.case.dims, &self.case.sequences);
        let state = dims.channels * dims.states;
        let shape = dims.inputs();
        let mut y = vec![T::from_f64(7.0); self.tensors[0].len()];
        let mut last = vec![T::ZERO; sequences.states() * state];
        let mut kept = vec![T::ZERO; checkpoints(sequences) * state];
        let outputs = Outputs {
            y: Some(ViewMut::new("y", &mut y, shape, strides(shape, self.last)).unwrap()),
            last: Some(&mut last),
            checkpoints: Some(&mut kept),
        };
        T::selective_forward(dims, sequences, &self.inputs(), outputs).unwrap();
        (turned_back(&y, shape, self.last), last.iter().map(|x| x.to_f64()).collect(), kept)
    }

    /// Gradients of `u, delta, A, B, C, D, z, bias, initial`, the first three tensors of tokens channels last.
    fn backward(&self, grad: &[f64], grad_last: &[f64], kept: Option<&[T]>) -> Vec<Vec<f64>> {
        let dims = self.case.dims;
        let (inputs, coefficients) = (dims.inputs(), dims.coefficients());
        let grad: Vec<T> = turned(grad, inputs, self.last);
        let grad_last: Vec<T> = grad_last.iter().map(|&x| T::from_f64(x)).collect();
        let [mut u, mut delta, mut a, mut b, mut c] = self.tensors.clone();
        let [mut d, mut z, mut bias, mut initial] = self.options.clone();
        let of = |name, data, shape| ViewMut::new(name, data, shape, strides(shape, self.last)).unwrap();
        let gradients = Gradients {
            u: of("u", &mut u, inputs),
            delta: of("delta", &mut delta, inputs),
            a: &mut a,
            b: if self.case.constant.0 {
                CoefficientGradient::Constant(&mut b)
            } else {
                CoefficientGradient::Varying(of("B", &mut b, coefficients))
            },
            c: if self.case.constant.1 {
                CoefficientGradient::Constant(&mut c)
            } else {
                CoefficientGradient::Varying(of("C", &mut c, coefficients))
            },
            d: d.as_deref_mut(),
            z: z.as_mut().map(|z| of("z", z, inputs)),
            delta_bias: bias.as_deref_mut(),
            initial: initial.as_deref_mut(),
        };
        let view = self.view(&grad, inputs);
        T::selective_backward(
            dims,
            &self.case.sequences,
            &self.inputs(),
            view,
            Some(&grad_last),
            kept,
            gradients,
        )
        .unwrap();
        let plain = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let of =
            |x: &[T], constant| if constant { plain(x) } else { turned_back(x, coefficients, self.last) };
        let mut all = vec![
            turned_back(&u, inputs, self.last),
            turned_back(&delta, inputs, self.last),
            plain(&a),
            of(&b, self.case.constant.0),
            of(&c, self.case.constant.1),
        ];
        all.extend(d.as_deref().map(plain));
        all.extend(z.map(|z| turned_back(&z, inputs, self.last)));
        all.extend(bias.as_deref().map(plain));
        all.extend(initial.as_deref().map(plain));
        all
    }
}

fn far(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

fn cases() -> Vec<Case> {
    let mut list = Vec::new();
    let mut seed = 0;
    for (batch, channels, length, states, groups) in [
        (1, 1, 1, 1, 1),
        (2, 16, 70, 16, 1),
        (1, 40, 130, 5, 2),
        (1, 9, 9, 20, 3),
        (2, 33, 65, 1, 1),
        (1, 6, 0, 4, 1),
    ] {
        for options in [false, true] {
            for constant in [(false, false), (true, false), (false, true), (true, true)] {
                seed += 1;
                let dims = Dims { batch, channels, length, states, groups };
                let whole = Sequences::whole(batch, length);
                list.push(Case::new(dims, whole, constant, options, seed));
            }
            let dims = Dims { batch, channels, length, states, groups };
            let ids: Vec<i64> = (0..batch * length).map(|i| (i * i / 40) as i64 % 3).collect();
            let packed = Sequences::from_ids(batch, length, &ids).unwrap();
            list.push(Case::new(dims, packed, (false, false), options, seed));
            if batch == 1 {
                let n = length as i64;
                let packed = Sequences::from_offsets(length, &[0, n / 3, n / 3, n]).unwrap();
                list.push(Case::new(dims, packed, (false, false), options, seed));
            }
        }
    }
    list
}

#[test]
fn results_and_states_are_the_loops() {
    for level in Level::available() {
        let _turn = at(level);
        for case in cases() {
            let (y, last) = case.reference();
            for channels_last in [false, true] {
                let (got, got_last, _) = Held::<f64>::new(&case, channels_last).forward();
                assert!(far(&got, &y) < 1e-13 && far(&got_last, &last) < 1e-13, "{:?} {level:?}", case.dims);
                let (got, got_last, _) = Held::<f32>::new(&case, channels_last).forward();
                assert!(far(&got, &y) < 2e-5 && far(&got_last, &last) < 2e-5, "{:?} {level:?}", case.dims);
            }
        }
    }
}

/// The loss that `grad` and `grad_last` are the gradients of.
fn loss(case: &Case, grad: &[f64], grad_last: &[f64]) -> f64 {
    let (y, last) = case.reference();
    y.iter().zip(grad).chain(last.iter().zip(grad_last)).map(|(a, b)| a * b).sum()
}

/// The arrays that have gradients, in the order of [`Held::backward`].
fn arrays(case: &mut Case) -> Vec<&mut Vec<f64>> {
    let Case { u, delta, a, b, c, d, z, bias, initial, .. } = case;
    let mut all = vec![u, delta, a, b, c];
    all.extend([d, z, bias, initial].into_iter().filter_map(Option::as_mut));
    all
}

#[test]
fn gradients_are_those_of_differences() {
    for level in Level::available() {
        let _turn = at(level);
        for case in cases() {
            let mut random = Random(5);
            let grad = random.many(case.u.len());
            let grad_last = random.many(case.sequences.states() * case.dims.channels * case.dims.states);
            let held = Held::<f64>::new(&case, true);
            let (_, _, kept) = held.forward();
            let got = held.backward(&grad, &grad_last, Some(&kept));
            assert_eq!(got, held.backward(&grad, &grad_last, None), "checkpoints");
            let first = Held::<f64>::new(&case, false).backward(&grad, &grad_last, None);
            let single = Held::<f32>::new(&case, true).backward(&grad, &grad_last, None);
            for (i, got) in got.iter().enumerate() {
                assert!(far(got, &first[i]) < 1e-12, "layouts, array {i} {:?}", case.dims);
                let most = got.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
                assert!(far(got, &single[i]) < 1e-4 * most, "single, array {i} {:?} {level:?}", case.dims);
                // Along one random direction of each array.
                let direction = random.many(got.len());
                let step = 1e-5;
                let moved = |sign: f64| {
                    let mut case = case.clone();
                    for (x, d) in arrays(&mut case)[i].iter_mut().zip(&direction) {
                        *x += sign * step * d;
                    }
                    loss(&case, &grad, &grad_last)
                };
                let want = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                let along: f64 = got.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let scale = got.iter().map(|g| g.abs()).sum::<f64>() + 1.0;
                assert!((along - want).abs() < 1e-8 * scale, "array {i}: {along} {want} {:?}", case.dims);
            }
        }
    }
}

#[test]
fn one_step_is_a_scan_of_one_token() {
    for level in Level::available() {
        let _turn = at(level);
        for (batch, channels, states, groups) in [(1, 1, 1, 1), (2, 40, 16, 2), (1, 33, 5, 1), (3, 8, 20, 4)]
        {
            let dims = Dims { batch, channels, length: 1, states, groups };
            let case = Case::new(dims, Sequences::whole(batch, 1), (false, false), true, 3);
            let held = Held::<f32>::new(&case, true);
            let (want, want_state, _) = held.forward();
            let [x, delta, a, b, c] = &held.tensors;
            let [d, z, delta_bias, initial] = &held.options;
            let mut state = initial.clone().unwrap();
            let mut y = vec![0.0; x.len()];
            let (d, z, delta_bias) = (d.as_deref(), z.as_deref(), delta_bias.as_deref());
            let inputs = Step { x, delta, a, b, c, d, z, delta_bias, softplus: true };
            f32::selective_step(dims, &mut state, &inputs, &mut y).unwrap();
            let state: Vec<f64> = state.iter().map(|&x| f64::from(x)).collect();
            assert_eq!(state, want_state, "the same bits");
            let y: Vec<f64> = y.iter().map(|&x| f64::from(x)).collect();
            assert!(far(&y, &want) < 1e-5);
        }
    }
}

#[test]
fn sizes_are_checked() {
    let dims = Dims { batch: 1, channels: 3, length: 2, states: 4, groups: 2 };
    let case = Case::new(Dims { groups: 1, ..dims }, Sequences::whole(1, 2), (false, false), false, 1);
    let held = Held::<f32>::new(&case, true);
    let error =
        f32::selective_forward(dims, &case.sequences, &held.inputs(), Outputs::default()).unwrap_err();
    assert_eq!(error.to_string(), "B has G=2 groups, which do not divide D=3");
    let error = f32::selective_forward(
        Dims { states: 5, groups: 1, ..dims },
        &case.sequences,
        &held.inputs(),
        Outputs::default(),
    );
    assert_eq!(error.unwrap_err().to_string(), "A has 12 elements, expected 15");
    let whole = Sequences::whole(1, 3);
    let error = f32::selective_forward(case.dims, &whole, &held.inputs(), Outputs::default()).unwrap_err();
    assert_eq!(error.to_string(), "sequences has L=3, expected L=2");
    assert_eq!(selective::checkpoints(&Sequences::whole(2, 129)), 4);
}
