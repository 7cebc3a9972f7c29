//! Problems in, ends out: blocks of problems go to threads, and through the lanes of each.

use crate::laws::{Family, Law, with_law};
use crate::newton::{BEGIN, Lanes, Model, Points, lanes, with_lane};
use crate::real::Real;
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::{self, Disjoint};
use sensorium_core::{Error, Float, Kernel, MAX_LANES, Result, Simd};

/// Problems that a task takes: enough that lanes are seldom empty at its end, few enough that threads share them.
const BLOCK: usize = 128;

/// Points that laws are fitted to.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    /// Points.
    pub points: usize,
    /// `(points, features)`.
    pub x: &'a [f64],
    /// `(rows of y, points)`: what is predicted.
    pub y: &'a [f64],
    /// `(rows of weights, points)`, at least 0.
    pub weights: &'a [f64],
}

/// What is to be solved: each problem begins somewhere, and has a row of `y` and one of weights.
#[derive(Debug, Clone, Copy)]
pub struct Problems<'a> {
    /// `(problems, parameters)`.
    pub starts: &'a [f64],
    /// Row of `y` for each problem; all have the first where it is empty.
    pub y_row: &'a [usize],
    /// Row of weights for each problem; all have the first where it is empty.
    pub weight_row: &'a [usize],
}

/// How to solve.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Huber's `delta`: infinity for least squares.
    pub delta: f64,
    /// Which parameters move.
    pub free: &'a [bool],
    /// Most steps.
    pub steps: usize,
}

/// Where problems ended, a row for each.
#[derive(Debug)]
pub struct Ends<'a> {
    /// `(problems, parameters)`.
    pub theta: &'a mut [f64],
    /// `(problems,)`: the objective.
    pub objective: &'a mut [f64],
    /// `(problems, parameters)`: its gradient.
    pub gradient: &'a mut [f64],
    /// `(problems, P (P + 1) / 2)`: the lower half of its second derivatives.
    pub hessian: &'a mut [f64],
    /// `(problems,)`: steps taken; negative where the last was not at a stationary point.
    pub steps: &'a mut [i32],
}

/// Solves all problems of a law. A parameter that is not free has gradient 0 and a row and column of the identity.
///
/// # Errors
/// [`Error`] naming the argument that does not fit.
pub fn minimise(
    family: Family,
    data: Data<'_>,
    problems: Problems<'_>,
    options: Options<'_>,
    ends: &mut Ends<'_>,
) -> Result<()> {
    let (parameters, features) = family.sizes();
    let count = check(parameters, features, data, problems, options)?;
    check_len("theta", ends.theta, count * parameters)?;
    check_len("objective", ends.objective, count)?;
    check_len("gradient", ends.gradient, count * parameters)?;
    check_len("hessian", ends.hessian, count * parameters * (parameters + 1) / 2)?;
    check_len("steps", ends.steps, count)?;
    let all = Shared {
        data,
        problems,
        options,
        count,
        theta: Disjoint::new(ends.theta),
        objective: Disjoint::new(ends.objective),
        gradient: Disjoint::new(ends.gradient),
        hessian: Disjoint::new(ends.hessian),
        steps: Disjoint::new(ends.steps),
    };
    with_law!(family, |law, P, H| all.run::<_, P, H>(law));
    Ok(())
}

/// The number of problems, where everything fits.
fn check(
    parameters: usize,
    features: usize,
    data: Data<'_>,
    problems: Problems<'_>,
    options: Options<'_>,
) -> Result<usize> {
    let value = |arg, what: String| Err(Error::Value { arg, what });
    check_len("x", data.x, product("x", &[data.points, features])?)?;
    for (arg, rows) in [("y", data.y), ("weights", data.weights)] {
        if data.points == 0 || rows.is_empty() || !rows.len().is_multiple_of(data.points) {
            return value(arg, format!("must have whole rows of {} points", data.points));
        }
    }
    if !problems.starts.len().is_multiple_of(parameters) {
        return value("starts", format!("must have rows of {parameters} parameters"));
    }
    let count = problems.starts.len() / parameters;
    product("starts", &[count, parameters * (parameters + 1)])?;
    for (arg, rows, of) in
        [("y_row", problems.y_row, data.y), ("weight_row", problems.weight_row, data.weights)]
    {
        if !rows.is_empty() {
            check_len(arg, rows, count)?;
            let most = of.len() / data.points;
            if let Some(row) = rows.iter().find(|&&row| row >= most) {
                return value(arg, format!("names row {row} of {most}"));
            }
        }
    }
    check_len("free", options.free, parameters)?;
    if options.delta.is_nan() || options.delta <= 0.0 {
        return value("delta", format!("must be above 0, not {}", options.delta));
    }
    if options.steps > i32::MAX as usize {
        return value("steps", format!("must be at most {}", i32::MAX));
    }
    Ok(count)
}

/// Everything, for any thread.
struct Shared<'a, 'b> {
    data: Data<'a>,
    problems: Problems<'a>,
    options: Options<'a>,
    count: usize,
    theta: Disjoint<'b, f64>,
    objective: Disjoint<'b, f64>,
    gradient: Disjoint<'b, f64>,
    hessian: Disjoint<'b, f64>,
    steps: Disjoint<'b, i32>,
}

impl Shared<'_, '_> {
    fn run<L: Law<P, H>, const P: usize, const H: usize>(&self, law: L) {
        let work = BLOCK * self.data.points * 20 * 40 * P;
        threads::for_each(self.count.div_ceil(BLOCK), work, |task| {
            let (first, last) = (task * BLOCK, ((task + 1) * BLOCK).min(self.count));
            <f64 as Float>::dispatch(Block::<_, P, H> { all: self, law, first, last });
        });
    }

    /// The problem's row of a matrix.
    fn row(rows: &[usize], problem: usize) -> usize {
        if rows.is_empty() { 0 } else { rows[problem] }
    }
}

/// The problems of one task.
struct Block<'a, 'b, 'c, L, const P: usize, const H: usize> {
    all: &'c Shared<'a, 'b>,
    law: L,
    first: usize,
    last: usize,
}

impl<L: Law<P, H>, const P: usize, const H: usize> Kernel<f64> for Block<'_, '_, '_, L, P, H> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f64>>(self, s: S) {
        let Data { points, x, .. } = self.all.data;
        let Options { delta, free, steps } = self.all.options;
        let features = x.len() / points;
        let shape = Points { law: self.law, x, features, delta, free };
        let zero = Real::splat(s, 0.0);
        let mut y = vec![0.0; points * S::LANES];
        let mut weights = vec![0.0; points * S::LANES];
        let model = Model { value: zero, gradient: [zero; P], hessian: [zero; H], squares: [zero; H] };
        let mut all =
            Lanes { theta: [zero; P], model, damping: zero, growth: zero.constant(2.0), weight: zero };
        let mut problem = [usize::MAX; MAX_LANES];
        let mut taken = [0_usize; MAX_LANES];
        let mut next = self.first;
        let mut stuck = [0.0; MAX_LANES];
        loop {
            let still = lanes(all.stationary());
            let mut new = false;
            for lane in 0..S::LANES {
                let busy = problem[lane] != usize::MAX;
                if busy && still[lane] == 0.0 && stuck[lane] == 0.0 && taken[lane] < steps {
                    continue;
                }
                if busy {
                    self.keep(&all, lane, problem[lane], taken[lane], still[lane] != 0.0);
                    problem[lane] = usize::MAX;
                }
                if next < self.last {
                    self.begin(&mut all, lane, next, &mut y, &mut weights);
                    problem[lane] = next;
                    taken[lane] = 0;
                    next += 1;
                    new = true;
                }
            }
            if new {
                // Those that were there get the same numbers again.
                all.model = shape.model(s, &all.theta, &y, &weights);
                stuck = [0.0; MAX_LANES];
                continue;
            }
            if problem[..S::LANES].iter().all(|&p| p == usize::MAX) {
                break;
            }
            stuck = lanes(all.step(&shape, &y, &weights));
            for count in &mut taken[..S::LANES] {
                *count += 1;
            }
        }
    }
}

impl<L: Law<P, H>, const P: usize, const H: usize> Block<'_, '_, '_, L, P, H> {
    /// Puts a problem into a lane.
    #[inline(always)]
    fn begin<S: Simd<f64>>(
        &self,
        all: &mut Lanes<S, P, H>,
        lane: usize,
        problem: usize,
        y: &mut [f64],
        weights: &mut [f64],
    ) {
        let Data { points, .. } = self.all.data;
        let Problems { starts, y_row, weight_row } = self.all.problems;
        for j in 0..P {
            all.theta[j] = with_lane(all.theta[j], lane, starts[problem * P + j]);
        }
        all.damping = with_lane(all.damping, lane, BEGIN[0]);
        all.growth = with_lane(all.growth, lane, BEGIN[1]);
        let from = Shared::row(y_row, problem) * points;
        let weighed = Shared::row(weight_row, problem) * points;
        let mut total = 0.0;
        for i in 0..points {
            y[i * S::LANES + lane] = self.all.data.y[from + i];
            weights[i * S::LANES + lane] = self.all.data.weights[weighed + i];
            total += self.all.data.weights[weighed + i];
        }
        all.weight = with_lane(all.weight, lane, total);
    }

    /// Writes where a lane's problem ended.
    #[inline(always)]
    fn keep<S: Simd<f64>>(
        &self,
        all: &Lanes<S, P, H>,
        lane: usize,
        problem: usize,
        taken: usize,
        still: bool,
    ) {
        let ends = self.all;
        // SAFETY: the places of a problem are its own, and one task has it.
        unsafe {
            let theta = ends.theta.slice(problem * P..(problem + 1) * P);
            let gradient = ends.gradient.slice(problem * P..(problem + 1) * P);
            for j in 0..P {
                theta[j] = lanes(all.theta[j])[lane];
                gradient[j] = lanes(all.model.gradient[j])[lane];
            }
            let hessian = ends.hessian.slice(problem * H..(problem + 1) * H);
            for j in 0..H {
                hessian[j] = lanes(all.model.hessian[j])[lane];
            }
            ends.objective.slice(problem..problem + 1)[0] = lanes(all.model.value)[lane];
            let taken = i32::try_from(taken).unwrap_or(i32::MAX);
            ends.steps.slice(problem..problem + 1)[0] = if still { taken } else { -taken.max(1) };
        }
    }
}

#[cfg(test)]
mod tests;
