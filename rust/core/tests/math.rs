//! Elementary functions against references of twice the precision, at every instruction-set level.
#![allow(clippy::float_cmp)] // Edges are exact.

mod double;

use double::Double;
use sensorium_core::{Float, Kernel, Level, Simd, math};

/// A function under test.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Exp,
    ExpNonpositive,
    Exp2,
    Exp2Nonpositive,
    Log,
    Log1p,
    Sigmoid,
    /// And the first result of `silu_slope`.
    Silu,
    Softplus,
    Tanh,
    /// The first and the second result of `tanh_derivative`.
    TanhBeside,
    TanhDerivative,
}
use Function::{
    Exp, Exp2, Exp2Nonpositive, ExpNonpositive, Log, Log1p, Sigmoid, Silu, Softplus, Tanh, TanhBeside,
    TanhDerivative,
};

struct Apply<'a, T>(Function, &'a [T], &'a mut [T]);
impl<T: Float> Kernel<T> for Apply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self(function, x, out) = self;
        macro_rules! each {
            ($($name:ident => $f:ident),*) => {
                match function {
                    $($name => math::map(s, x, out, #[inline(always)] |v| math::$f(s, v)),)*
                    TanhBeside => math::map(s, x, out, #[inline(always)] |v| math::tanh_derivative(s, v).0),
                    TanhDerivative => math::map(s, x, out, #[inline(always)] |v| math::tanh_derivative(s, v).1),
                }
            };
        }
        each!(Exp => exp, ExpNonpositive => exp_nonpositive, Exp2 => exp2, Exp2Nonpositive => exp2_nonpositive,
            Log => log, Log1p => log1p, Sigmoid => sigmoid, Silu => silu, Softplus => softplus, Tanh => tanh);
    }
}

fn apply<T: Float>(level: Level, function: Function, x: &[T]) -> Vec<T> {
    let mut out = vec![T::from_f64(7.0); x.len()];
    T::dispatch_at(level, Apply(function, x, &mut out));
    out
}

const LN2: Double = Double { hi: std::f64::consts::LN_2, lo: 2.319_046_813_846_299_6e-17 };

/// The true value for an `f64` as `m * 2^n`, so that it may lie below the normal numbers.
fn truth(function: Function, x: f64) -> (Double, i32) {
    let x = Double::new(x);
    match function {
        Exp | ExpNonpositive => x.exp_scaled(),
        Exp2 | Exp2Nonpositive => {
            let n = x.hi.round();
            let (m, more) = LN2.mul(Double::new(x.hi - n)).exp_scaled();
            (m, n as i32 + more)
        }
        Log => (
            x.scale(if x.hi < 1e-300 { 200 } else { 0 }).ln().add(if x.hi < 1e-300 {
                LN2.mul(Double::new(-200.0))
            } else {
                Double::new(0.0)
            }),
            0,
        ),
        Log1p => (x.ln_1p(), 0),
        // There the denominator is 1 to 57 bits, and the logarithm's second term below them.
        Sigmoid | Softplus if x.hi < -40.0 => x.exp_scaled(),
        Sigmoid => (Double::new(1.0).div(x.neg().exp().add(Double::new(1.0))), 0),
        Silu if x.hi < -40.0 => {
            let (m, n) = x.exp_scaled();
            (x.mul(m), n)
        }
        Silu => (x.div(x.neg().exp().add(Double::new(1.0))), 0),
        Softplus => (x.add(Double::new(0.0)).max_zero().add(x.abs().neg().exp().ln_1p()), 0),
        TanhDerivative if x.hi.abs() > 40.0 => {
            let (m, n) = x.abs().scale(1).neg().exp_scaled();
            (m, n + 2)
        }
        TanhDerivative => {
            let z = x.abs().scale(1).neg().exp();
            let sum = z.add(Double::new(1.0));
            (z.scale(2).div(sum).div(sum), 0)
        }
        Tanh | TanhBeside if x.hi.abs() > 40.0 => (Double::new(x.hi.signum()), 0),
        Tanh | TanhBeside => {
            let m = x.scale(1).expm1();
            (m.div(m.add(Double::new(2.0))), 0)
        }
    }
}

/// The true value for an `f32`: the platform's `f64`, good to 2^-28 ulp of the `f32`.
fn truth_f32(function: Function, x: f64) -> f64 {
    match function {
        Exp | ExpNonpositive => x.exp(),
        Exp2 | Exp2Nonpositive => x.exp2(),
        Log => x.ln(),
        Log1p => x.ln_1p(),
        Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Silu => x / (1.0 + (-x).exp()),
        Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Tanh | TanhBeside => x.tanh(),
        TanhDerivative => {
            let z = (-2.0 * x.abs()).exp();
            4.0 * z / ((1.0 + z) * (1.0 + z))
        }
    }
}

/// Distance of `got` from the truth, in units in the last place of `T` at the truth.
fn ulps<T: Float>(got: T, (m, n): (Double, i32)) -> f64 {
    let exponent = n + (m.hi.abs().log2().floor() as i32);
    let least = 1 - T::MAX_EXPONENT as i32;
    let ulp = exponent.max(least) - T::MANTISSA as i32;
    // got / ulp and truth / ulp, neither of which overflows; the steps keep denormal factors out.
    let scale = |x: Double, n: i32| x.scale(n / 2).scale(n - n / 2);
    let got = scale(Double::new(got.to_f64()), -ulp);
    let want = scale(m, n - ulp);
    got.add(want.neg()).hi.abs()
}

/// Largest error of `function` over `x`, with where it is; where the truth is below `2^zero_below`, 0 is right too.
fn worst(level: Level, function: Function, x: &[f64], zero_below: f64) -> (f64, f64) {
    let mut worst = (0.0, 0.0);
    for (&x, y) in x.iter().zip(apply(level, function, x)) {
        let (m, n) = truth(function, x);
        if y == 0.0 && m.hi.log2() + f64::from(n) <= zero_below {
            continue;
        }
        let error = ulps(y, (m, n));
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

/// [`worst`] for `f32`, whose true value an `f64` holds.
fn worst_f32(level: Level, function: Function, x: &[f32], zero_below: f64) -> (f64, f32) {
    let (mut worst, zero_below) = ((0.0, 0.0), zero_below.exp2());
    for (&x, y) in x.iter().zip(apply(level, function, x)) {
        let want = truth_f32(function, f64::from(x));
        if y == 0.0 && want.abs() <= zero_below {
            continue;
        }
        let leading = f64::from_bits(want.to_bits() & f64::INFINITY.to_bits());
        let ulp = leading.max(f64::from(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
        let error = (f64::from(y) - want).abs() / ulp;
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

/// Whole numbers without pattern (Steele, Lea and Flood 2014).
fn mix(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Every `stride`-th `f32` of all exponents and both signs that `keep` keeps.
fn f32_sweep(stride: usize, keep: impl Fn(f32) -> bool) -> Vec<f32> {
    (0..=u32::MAX).step_by(stride).map(f32::from_bits).filter(|x| x.is_finite() && keep(*x)).collect()
}

/// `n` numbers within `range`: half evenly spread, half spread over the exponents.
fn f64_sample(n: usize, range: std::ops::Range<f64>) -> Vec<f64> {
    let mut seed = 1;
    let mut unit = move || mix(&mut seed) as f64 / 2f64.powi(64);
    let mut out = Vec::with_capacity(n);
    while out.len() < n {
        let even = range.start + unit() * (range.end - range.start);
        let sign = if unit() < 0.5 { -1.0 } else { 1.0 };
        let spread = sign * (unit() * 80.0 - 70.0).exp2();
        out.extend([even, spread].into_iter().filter(|x| range.contains(x)));
    }
    out
}

/// A function, the arguments it is tested on, and its bound in units in the last place.
type Case = (Function, std::ops::Range<f32>, std::ops::Range<f64>, f64);

const EXPONENTIALS: [Case; 4] = [
    (Exp, -110.0..88.722_84, -750.0..709.782_71, 1.1),
    (ExpNonpositive, -200.0..88.0, -1500.0..709.0, 1.1),
    (Exp2, -160.0..127.999_99, -1100.0..1_023.999_9, 1.3),
    (Exp2Nonpositive, -300.0..127.0, -3000.0..1023.0, 1.3),
];
const LOGARITHMS: [Case; 3] = [
    (Log, f32::MIN_POSITIVE..f32::MAX, f64::MIN_POSITIVE..1e300, 1.0),
    (Log, 1e-45..1.5, 5e-324..1.5, 1.0),
    (Log1p, -0.999_999_9..f32::MAX, -0.999_999_999..1e300, 1.0),
];
const SIGMOIDS: [Case; 6] = [
    (Sigmoid, -110.0..f32::MAX, -750.0..1000.0, 2.5),
    (Silu, -87.0..f32::MAX, -700.0..1000.0, 2.75),
    (Softplus, -110.0..f32::MAX, -750.0..1000.0, 2.25),
    (Tanh, f32::MIN..f32::MAX, -1000.0..1000.0, 2.75),
    (TanhBeside, f32::MIN..f32::MAX, -1000.0..1000.0, 3.25),
    (TanhDerivative, f32::MIN..f32::MAX, -1000.0..1000.0, 6.0),
];

/// Powers of two below which the result may be zero.
fn zero_below(function: Function) -> (f64, f64) {
    match function {
        ExpNonpositive | Exp2Nonpositive => (-126.5, -1022.5),
        TanhDerivative => (-124.5, -1020.5),
        _ => (-150.0, -1075.0),
    }
}

fn hold_to(cases: &[Case]) {
    for (function, range_f32, range_f64, bound) in cases {
        let x32 = f32_sweep(1009, |x| range_f32.contains(&x));
        let x64 = f64_sample(20_000, range_f64.clone());
        for level in Level::available() {
            let (error, at) = worst_f32(level, *function, &x32, zero_below(*function).0);
            println!("{function:?} f32 {level:?}: {error:.3} ulp at {at:e}");
            assert!(error <= *bound, "{function:?} f32 {level:?}: {error} ulp at {at:e}");
            let (error, at) = worst(level, *function, &x64, zero_below(*function).1);
            println!("{function:?} f64 {level:?}: {error:.3} ulp at {at:e}");
            assert!(error <= *bound, "{function:?} f64 {level:?}: {error} ulp at {at:e}");
        }
    }
}

#[test]
fn exponentials_are_within_their_bounds() {
    hold_to(&EXPONENTIALS);
}

#[test]
fn logarithms_are_within_their_bounds() {
    hold_to(&LOGARITHMS);
}

#[test]
fn sigmoids_are_within_their_bounds() {
    hold_to(&SIGMOIDS);
}

fn at_the_edges<T: Float>(level: Level, function: Function, cases: &[(f64, f64)]) {
    for &(x, want) in cases {
        // Alone, so in a partial vector; and nine times, so in a whole one.
        for n in [1, 33] {
            for y in apply(level, function, &vec![T::from_f64(x); n]) {
                let same = y.to_f64() == want && y.to_f64().is_sign_negative() == want.is_sign_negative();
                assert!(same || want.is_nan() && y.to_f64().is_nan(), "{function:?}({x}) = {y} at {level:?}");
            }
        }
    }
}

#[test]
fn edges() {
    const INF: f64 = f64::INFINITY;
    let nan = (f64::NAN, f64::NAN);
    for level in Level::available() {
        let exp =
            [nan, (0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1e30, INF), (-1e30, 0.0), (1e-40, 1.0)];
        at_the_edges::<f32>(level, Exp, &exp);
        at_the_edges::<f64>(level, Exp, &exp);
        at_the_edges::<f32>(level, Exp, &[(88.73, INF), (-103.98, 0.0), (-103.0, 1.401_298_464_324_817e-45)]);
        at_the_edges::<f64>(level, Exp, &[(709.79, INF), (-745.14, 0.0), (-745.0, 5e-324)]);
        at_the_edges::<f32>(level, Exp2, &exp);
        at_the_edges::<f64>(level, Exp2, &exp);
        at_the_edges::<f32>(
            level,
            Exp2,
            &[(128.0, INF), (-3e38, 0.0), (3e38, INF), (10.0, 1024.0), (-149.0, 1.401_298_464_324_817e-45)],
        );
        at_the_edges::<f64>(level, Exp2, &[(1024.0, INF), (-1e300, 0.0), (1e300, INF), (-1074.0, 5e-324)]);
        let nonpositive = [nan, (0.0, 1.0), (-0.0, 1.0), (-INF, 0.0), (-1e30, 0.0), (-1e-40, 1.0)];
        for function in [ExpNonpositive, Exp2Nonpositive] {
            at_the_edges::<f32>(level, function, &nonpositive);
            at_the_edges::<f64>(level, function, &nonpositive);
        }
        let log =
            [nan, (0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, f64::NAN), (-INF, f64::NAN), (1.0, 0.0)];
        at_the_edges::<f32>(level, Log, &log);
        at_the_edges::<f64>(level, Log, &log);
        let log1p =
            [nan, (0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-2.0, f64::NAN), (-INF, f64::NAN)];
        at_the_edges::<f32>(level, Log1p, &log1p);
        at_the_edges::<f64>(level, Log1p, &log1p);
        let sigmoid = [nan, (0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (1e30, 1.0), (-1e30, 0.0)];
        at_the_edges::<f32>(level, Sigmoid, &sigmoid);
        at_the_edges::<f64>(level, Sigmoid, &sigmoid);
        let silu = [nan, (0.0, 0.0), (-0.0, -0.0), (INF, INF), (1e30_f32.into(), 1e30_f32.into())];
        at_the_edges::<f32>(level, Silu, &silu);
        at_the_edges::<f64>(level, Silu, &silu);
        let softplus = [nan, (INF, INF), (-INF, 0.0), (1e30_f32.into(), 1e30_f32.into()), (-1e30, 0.0)];
        at_the_edges::<f32>(level, Softplus, &softplus);
        at_the_edges::<f64>(level, Softplus, &softplus);
        let tanh = [nan, (0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e30, 1.0), (-1e30, -1.0)];
        for function in [Tanh, TanhBeside] {
            at_the_edges::<f32>(level, function, &tanh);
            at_the_edges::<f64>(level, function, &tanh);
        }
        let derivative = [nan, (0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 0.0), (1e30, 0.0), (-1e30, 0.0)];
        at_the_edges::<f32>(level, TanhDerivative, &derivative);
        at_the_edges::<f64>(level, TanhDerivative, &derivative);
    }
}

/// Every `f32` in the ranges above, many minutes:
/// `cargo test --release -p sensorium-core --test math -- --ignored --nocapture`.
#[test]
#[ignore = "many minutes; the tests above take every 1009th case of it"]
fn every_f32() {
    for (function, range, _, bound) in EXPONENTIALS.into_iter().chain(LOGARITHMS).chain(SIGMOIDS) {
        for level in Level::available() {
            let mut most = (0.0, 0.0);
            for high in 0..=0xfff_u32 {
                let bits = (0..=0xf_ffff).map(|low| f32::from_bits(high << 20 | low));
                let x: Vec<f32> = bits.filter(|x| range.contains(x)).collect();
                let found = worst_f32(level, function, &x, zero_below(function).0);
                most = if found.0 > most.0 { found } else { most };
            }
            println!("{function:?} f32 {level:?}: {:.4} ulp at {:e}", most.0, most.1);
            assert!(most.0 <= bound);
        }
    }
}
