use super::*;
use crate::jet::at;
use crate::laws::LAWS;
use crate::predict::predict;
use sensorium_core::rng::Stream;
use sensorium_core::{Level, isa};
use std::sync::{Mutex, PoisonError};

/// The level belongs to the process: who changes it, or compares bits, holds this.
static LEVEL: Mutex<()> = Mutex::new(());

/// Plausible parameters of each law.
fn planted(family: Family) -> Vec<f64> {
    match family {
        Family::Chinchilla => vec![0.5, 6.0, 6.1, 0.34, 0.28],
        Family::Kaplan => vec![20.0, 23.0, 0.3, 0.4],
        Family::DataConstrained => vec![0.5, 6.0, 6.1, 0.34, 0.28, 2.7],
        Family::OverTraining => vec![0.5, 6.0, 7.0, 0.15],
        Family::Power => vec![2.0, 0.3],
        Family::PowerFloor => vec![0.5, 6.0, 0.35],
        Family::BrokenPower => vec![-1.0, 1.0, 0.1, 0.4, 6.0, -0.5],
        Family::JointCompute => vec![-2.0, 3.0, 0.2, 0.1],
        Family::SaturatingExponential => vec![0.8, -1.5],
        Family::InverseRoot => vec![0.9, -0.5, 0.7],
        Family::Sigmoid => vec![0.2, 0.9, 1.3, 2.0],
    }
}

/// Features of points, spread as they would be.
fn features(family: Family, points: usize, seed: u64) -> Vec<f64> {
    let (_, width) = family.sizes();
    let mut x = vec![0.0; points * width];
    Stream::new(seed, 1).uniform(0, &mut x);
    let (least, most) = match family {
        Family::Chinchilla | Family::Kaplan | Family::DataConstrained | Family::OverTraining => (10.0, 24.0),
        Family::BrokenPower => (0.0, 12.0),
        Family::PowerFloor => (8.0, 24.0),
        Family::Sigmoid => (-2.0, 6.0),
        _ => (0.0, 8.0),
    };
    for (i, value) in x.iter_mut().enumerate() {
        *value = if family == Family::DataConstrained && i % width == 2 {
            40.0 * *value
        } else if family == Family::OverTraining && i % width == 1 {
            1.0 + 6.0 * *value
        } else {
            least + (most - least) * *value
        };
    }
    x
}

#[derive(Debug, Clone, PartialEq)]
struct Solved {
    theta: Vec<f64>,
    objective: Vec<f64>,
    gradient: Vec<f64>,
    hessian: Vec<f64>,
    steps: Vec<i32>,
}

fn solve(family: Family, data: Data<'_>, problems: Problems<'_>, options: Options<'_>) -> Result<Solved> {
    let parameters = family.sizes().0;
    let count = problems.starts.len() / parameters;
    let mut solved = Solved {
        theta: vec![0.0; count * parameters],
        objective: vec![0.0; count],
        gradient: vec![0.0; count * parameters],
        hessian: vec![0.0; count * parameters * (parameters + 1) / 2],
        steps: vec![0; count],
    };
    let mut ends = Ends {
        theta: &mut solved.theta,
        objective: &mut solved.objective,
        gradient: &mut solved.gradient,
        hessian: &mut solved.hessian,
        steps: &mut solved.steps,
    };
    minimise(family, data, problems, options, &mut ends)?;
    Ok(solved)
}

/// What a law predicts for one point.
fn value(family: Family, theta: &[f64], x: &[f64]) -> f64 {
    let mut out = [0.0];
    predict(family, theta, x, &mut out, None).unwrap();
    out[0]
}

/// Each law, written as people write it.
fn plainly(family: Family, t: &[f64], x: &[f64]) -> f64 {
    match family {
        Family::Chinchilla => {
            (t[0].exp() + t[1].exp() * (-t[3] * x[0]).exp() + t[2].exp() * (-t[4] * x[1]).exp()).ln()
        }
        Family::Kaplan => {
            let (n, d) = ((t[0] - x[0]).exp(), (t[1] - x[1]).exp());
            (n.powf(t[2] / t[3]) + d).powf(t[3]).ln()
        }
        Family::DataConstrained => {
            let (r, u) = (t[5].exp(), x[1].exp());
            let worth = u * (1.0 + r * (1.0 - (-x[2] / r).exp()));
            (t[0].exp() + t[1].exp() * x[0].exp().powf(-t[3]) + t[2].exp() * worth.powf(-t[4])).ln()
        }
        Family::OverTraining => {
            let (c, m) = (x[0].exp(), x[1].exp());
            (t[0].exp() + (t[1].exp() * m.powf(t[3]) + t[2].exp() * m.powf(-t[3])) * c.powf(-t[3])).ln()
        }
        Family::Power => (t[0].exp() * x[0].exp().powf(-t[1])).ln(),
        Family::PowerFloor => (t[0].exp() + t[1].exp() * x[0].exp().powf(-t[2])).ln(),
        Family::BrokenPower => {
            let (z, f) = (x[0].exp(), t[5].exp());
            let bend = (1.0 + (z / t[4].exp()).powf(1.0 / f)).powf(-t[3] * f);
            (t[0].exp() + t[1].exp() * z.powf(-t[2]) * bend).ln()
        }
        Family::JointCompute => (t[0].exp() + t[1].exp() * (-t[2] * x[0]).exp() * (-t[3] * x[1]).exp()).ln(),
        Family::SaturatingExponential => t[0] * (1.0 - (-t[1].exp() * x[0]).exp()),
        Family::InverseRoot => t[0] - t[1].exp() * x[0].exp().powf(-t[2]),
        Family::Sigmoid => t[0] + (t[1] - t[0]) / (1.0 + (-t[2] * (x[0] - t[3])).exp()),
    }
}

#[test]
fn laws_are_their_formulas_at_every_level() {
    let _held = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    for level in Level::available() {
        isa::set_level(level);
        for (name, family, _, width) in LAWS {
            let theta = planted(family);
            for x in features(family, 20, 3).chunks(width) {
                let (got, want) = (value(family, &theta, x), plainly(family, &theta, x));
                assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "{name} {level:?} {got} {want}");
            }
        }
    }
    isa::set_level(Level::Avx512);
}

#[test]
fn derivatives_are_those_of_the_objective() {
    for (name, family, parameters, _) in LAWS {
        let x = features(family, 7, 5);
        let y = vec![0.3; 7];
        let weights: Vec<f64> = (0..7).map(|i| 0.5 + f64::from(i)).collect();
        let data = Data { points: 7, x: &x, y: &y, weights: &weights };
        // No point lies so near the kink that a difference goes over it.
        let options = Options { delta: 0.37, free: &vec![true; parameters], steps: 0 };
        let at_point = |theta: &[f64]| {
            solve(family, data, Problems { starts: theta, y_row: &[], weight_row: &[] }, options).unwrap()
        };
        let theta = planted(family);
        let here = at_point(&theta);
        let (mut values, mut slopes) = (vec![0.0; 7], vec![0.0; 7 * parameters]);
        predict(family, &theta, &x, &mut values, Some(&mut slopes)).unwrap();
        for i in 0..parameters {
            let of_objective: f64 = (0..7)
                .map(|k| weights[k] * (values[k] - y[k]).clamp(-0.37, 0.37) * slopes[k * parameters + i])
                .sum();
            assert!(
                (of_objective - here.gradient[i]).abs() < 1e-10 * (1.0 + of_objective.abs()),
                "{name} {i}"
            );
            let h = 1e-5;
            let (mut up, mut down) = (theta.clone(), theta.clone());
            up[i] += h;
            down[i] -= h;
            let (up, down) = (at_point(&up), at_point(&down));
            let slope = (up.objective[0] - down.objective[0]) / (2.0 * h);
            let scale = here.gradient.iter().fold(1.0_f64, |m, g| m.max(g.abs()));
            assert!((here.gradient[i] - slope).abs() < 1e-6 * scale, "{name} {i}");
            for j in 0..parameters {
                let bend = (up.gradient[j] - down.gradient[j]) / (2.0 * h);
                let place = at(i.max(j), i.min(j));
                let scale = here.hessian.iter().fold(1.0_f64, |m, g| m.max(g.abs()));
                assert!((here.hessian[place] - bend).abs() < 1e-5 * scale, "{name} {i} {j}");
            }
        }
    }
}

#[test]
fn planted_parameters_are_found() {
    for (name, family, parameters, width) in LAWS {
        let points = 60;
        let x = features(family, points, 7);
        let theta = planted(family);
        let y: Vec<f64> = x.chunks(width).map(|x| plainly(family, &theta, x)).collect();
        let weights = vec![1.0; points];
        let data = Data { points, x: &x, y: &y, weights: &weights };
        // Starts around what was planted.
        let mut starts = vec![0.0; 16 * parameters];
        Stream::new(11, 0).normal(0, &mut starts);
        for (i, start) in starts.iter_mut().enumerate() {
            *start = theta[i % parameters] + 0.1 * *start;
        }
        let problems = Problems { starts: &starts, y_row: &[], weight_row: &[] };
        let options = Options { delta: f64::INFINITY, free: &vec![true; parameters], steps: 500 };
        let found = solve(family, data, problems, options).unwrap();
        let found_by = found
            .theta
            .chunks(parameters)
            .filter(|found| found.iter().zip(&theta).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs())));
        assert!(found_by.count() >= 12, "{name} {:?}", &found.theta[..parameters]);
    }
}

/// Noisy points of Chinchilla's law, and starts that are far away too.
fn chinchilla(points: usize, starts: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let x = features(Family::Chinchilla, points, 1);
    let theta = planted(Family::Chinchilla);
    let mut noise = vec![0.0; points];
    Stream::new(2, 0).normal(0, &mut noise);
    let y = x.chunks(2).zip(&noise).map(|(x, e)| plainly(Family::Chinchilla, &theta, x) + 0.01 * e).collect();
    let mut from = vec![0.0; starts * 5];
    Stream::new(3, 0).uniform(0, &mut from);
    for row in from.chunks_mut(5) {
        for (value, (low, high)) in
            row.iter_mut().zip([(-1.0, 1.0), (0.0, 25.0), (0.0, 25.0), (0.0, 2.0), (0.0, 2.0)])
        {
            *value = low + (high - low) * *value;
        }
    }
    (x, y, from)
}

const HUBER: Options<'_> = Options { delta: 1e-3, free: &[true; 5], steps: 400 };

#[test]
fn every_start_ends_at_a_stationary_point() {
    let (x, y, starts) = chinchilla(80, 200);
    let weights = vec![1.0; 80];
    let data = Data { points: 80, x: &x, y: &y, weights: &weights };
    let problems = Problems { starts: &starts, y_row: &[], weight_row: &[] };
    let found = solve(Family::Chinchilla, data, problems, HUBER).unwrap();
    assert!(found.steps.iter().all(|&steps| steps > 0), "{:?}", found.steps);
    assert!(found.gradient.iter().all(|g| g.abs() < 1e-8), "{:?}", found.gradient);
    let best = found.objective.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(found.objective.iter().filter(|&&o| o < best * (1.0 + 1e-9)).count() > 100);
}

#[test]
fn problems_have_nothing_to_do_with_one_another_or_with_threads() {
    let _held = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    let (x, y, starts) = chinchilla(40, 150);
    let two: Vec<f64> =
        y.iter().chain(&y).enumerate().map(|(i, y)| y + if i < 40 { 0.0 } else { 0.1 }).collect();
    let mut weights = vec![1.0; 120];
    Stream::new(9, 0).uniform(0, &mut weights[40..]);
    let rows: Vec<usize> = (0..150).map(|i| i % 2).collect();
    let weight_rows: Vec<usize> = (0..150).map(|i| i % 3).collect();
    let data = Data { points: 40, x: &x, y: &two, weights: &weights };
    let problems = Problems { starts: &starts, y_row: &rows, weight_row: &weight_rows };
    let before = threads::set_local_num_threads(1);
    let all = solve(Family::Chinchilla, data, problems, HUBER).unwrap();
    threads::set_local_num_threads(3);
    assert_eq!(all, solve(Family::Chinchilla, data, problems, HUBER).unwrap());
    threads::set_local_num_threads(before);
    for i in [0, 1, 77, 149] {
        let alone = Problems {
            starts: &starts[5 * i..5 * i + 5],
            y_row: &rows[i..=i],
            weight_row: &weight_rows[i..=i],
        };
        let alone = solve(Family::Chinchilla, data, alone, HUBER).unwrap();
        assert_eq!(alone.theta, all.theta[5 * i..5 * i + 5]);
        assert_eq!(alone.steps[0], all.steps[i]);
    }
}

#[test]
fn a_point_without_weight_is_not_there_and_a_held_parameter_stays() {
    let _held = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    let (x, y, starts) = chinchilla(40, 8);
    let (mut wrong, mut weights) = (y.clone(), vec![1.0; 40]);
    for i in 30..40 {
        wrong[i] = 50.0;
        weights[i] = 0.0;
    }
    let problems = Problems { starts: &starts, y_row: &[], weight_row: &[] };
    let few = Data { points: 30, x: &x[..60], y: &y[..30], weights: &weights[..30] };
    let want = solve(Family::Chinchilla, few, problems, HUBER).unwrap();
    let got =
        solve(Family::Chinchilla, Data { points: 40, x: &x, y: &wrong, weights: &weights }, problems, HUBER);
    assert_eq!(got.unwrap().theta, want.theta);
    let held = Options { free: &[true, true, true, false, true], ..HUBER };
    let got = solve(Family::Chinchilla, few, problems, held).unwrap();
    for (start, end) in starts.chunks(5).zip(got.theta.chunks(5)) {
        assert_eq!(start[3].to_bits(), end[3].to_bits());
        assert_ne!(start[4].to_bits(), end[4].to_bits());
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (x, y, starts) = chinchilla(4, 1);
    let weights = vec![1.0; 4];
    let data = Data { points: 4, x: &x, y: &y, weights: &weights };
    let problems = Problems { starts: &starts, y_row: &[], weight_row: &[] };
    let words =
        |data, problems, options| solve(Family::Chinchilla, data, problems, options).unwrap_err().to_string();
    assert_eq!(words(Data { x: &x[1..], ..data }, problems, HUBER), "x has 7 elements, expected 8");
    assert_eq!(words(Data { y: &[], ..data }, problems, HUBER), "y must have whole rows of 4 points");
    assert_eq!(words(data, Problems { y_row: &[1], ..problems }, HUBER), "y_row names row 1 of 1");
    assert_eq!(words(data, problems, Options { delta: 0.0, ..HUBER }), "delta must be above 0, not 0");
    assert_eq!(
        words(data, Problems { starts: &starts[1..], ..problems }, HUBER),
        "starts must have rows of 5 parameters"
    );
}
