//! Gradients of the scan: spans run in parallel as in the forward, each from its last tile to its first.
//!
//! `dB` and `dC` are sums over channels. A task adds its blocks up in vectors, whose lanes are added once a tile; the
//! sums of tasks are added in the order of channels after every round of [`ROUND`] tiles, so that none of them is as
//! long as the sequence. What goes from round to round (`carry`, sums over tokens) is kept in memory by task.

use super::forward::{Outputs, forward};
use super::stage::turn;
use super::tiles::{TILE, Tile, Tiles};
use super::view::{View, ViewMut};
use super::{Coefficients, Dims, Inputs, Run, UNIT, runs};
use crate::Sequences;
use crate::scratch::Scratch;
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, Result, Simd};

/// Gradient of `B` or `C`, in the form of the coefficients.
#[derive(Debug)]
pub enum CoefficientGradient<'a, T> {
    /// `(batch, group, token, state)`.
    Varying(ViewMut<'a, T>),
    /// `(D, S)`.
    Constant(&'a mut [T]),
}

/// What the backward writes, all of it. Gradients of what the inputs have not are `None`.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// As `u`.
    pub u: ViewMut<'a, T>,
    /// As `delta`.
    pub delta: ViewMut<'a, T>,
    /// `(D, S)`.
    pub a: &'a mut [T],
    /// As `B`.
    pub b: CoefficientGradient<'a, T>,
    /// As `C`.
    pub c: CoefficientGradient<'a, T>,
    /// `(D,)`.
    pub d: Option<&'a mut [T]>,
    /// As `z`.
    pub z: Option<ViewMut<'a, T>>,
    /// `(D,)`.
    pub delta_bias: Option<&'a mut [T]>,
    /// As the initial states.
    pub initial: Option<&'a mut [T]>,
}

/// Tiles after which tasks meet: 1,024 tokens.
const ROUND: usize = 16;
/// Tasks that are enough for any number of threads; each has sums over its channels of its own.
const TASKS: usize = 16;
/// Most units of a task.
const MOST_UNITS: usize = 16;
/// States whose trace over a tile is kept at once where a gate needs all of `y` first: 128 kB.
pub(super) const KEPT: usize = 16;
/// Work of a token, channel and state, in floating-point operations.
const WORK: usize = 40;

impl<T: Float> Gradients<'_, T> {
    fn check(&self, dims: &Dims, inputs: &Inputs<'_, T>, states: usize) -> Result<()> {
        let missing =
            |arg, what: &str| Error::Value { arg, what: format!("must be there exactly where {what} is") };
        self.u.check_shape("grad_u", dims.inputs())?;
        self.delta.check_shape("grad_delta", dims.inputs())?;
        check_len("grad_A", self.a, dims.channels * dims.states)?;
        for (arg, coefficients, gradient) in [("grad_B", &inputs.b, &self.b), ("grad_C", &inputs.c, &self.c)]
        {
            match (coefficients, gradient) {
                (Coefficients::Varying(_), CoefficientGradient::Varying(view)) => {
                    view.check_shape(arg, dims.coefficients())?;
                }
                (Coefficients::Constant(_), CoefficientGradient::Constant(data)) => {
                    check_len(arg, data, dims.channels * dims.states)?;
                }
                _ => {
                    return Err(Error::Value { arg, what: "must be in the form of the coefficients".into() });
                }
            }
        }
        match (&inputs.z, &self.z) {
            (Some(_), Some(z)) => z.check_shape("grad_z", dims.inputs())?,
            (None, None) => {}
            _ => return Err(missing("grad_z", "z")),
        }
        for (arg, of, input, gradient, want) in [
            ("grad_D", "D", inputs.d, &self.d, dims.channels),
            ("grad_delta_bias", "delta_bias", inputs.delta_bias, &self.delta_bias, dims.channels),
            ("grad_initial_state", "initial_state", inputs.initial, &self.initial, states),
        ] {
            match (input, gradient) {
                (Some(_), Some(data)) => check_len(arg, data, want)?,
                (None, None) => {}
                _ => return Err(missing(arg, of)),
            }
        }
        Ok(())
    }
}

/// Gradients of [`forward`](super::forward()), given those of `y` and, where it was used, of the last states.
///
/// `checkpoints` are what the forward kept for the same inputs; they are computed where `None`.
///
/// # Errors
/// Where a size does not fit `dims`.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    inputs: &Inputs<'_, T>,
    grad: View<'_, T>,
    grad_last: Option<&[T]>,
    checkpoints: Option<&[T]>,
    gradients: Gradients<'_, T>,
) -> Result<()> {
    inputs.check(&dims, sequences)?;
    let tiles = Tiles::new(sequences);
    let state = dims.channels * dims.states;
    grad.check_shape("grad_out", dims.inputs())?;
    let states = product("grad_last_state", &[sequences.states(), state])?;
    grad_last.map_or(Ok(()), |grad| check_len("grad_last_state", grad, states))?;
    gradients.check(&dims, inputs, states)?;
    let wanted = product("checkpoints", &[tiles.checkpoints, state])?;
    let mut computed = Vec::new();
    let checkpoints = if let Some(given) = checkpoints {
        check_len("checkpoints", given, wanted)?;
        given
    } else {
        computed.resize(wanted, T::ZERO);
        let kept = Outputs { checkpoints: Some(&mut computed), ..Outputs::default() };
        forward(dims, sequences, inputs, kept)?;
        &computed
    };
    let Gradients { u, delta, a, mut b, mut c, d, z, delta_bias, initial } = gradients;
    let plan = Plan::new(dims, &tiles);
    let spans = tiles.spans.len();
    let mut kept = vec![T::ZERO; spans * plan.kept_size()];
    let mut totals = vec![T::ZERO; spans * plan.total_size()];
    let sums = |gradient: &CoefficientGradient<'_, T>| match gradient {
        CoefficientGradient::Varying(_) => vec![T::ZERO; spans * plan.runs.len() * plan.sum_size()],
        CoefficientGradient::Constant(_) => Vec::new(),
    };
    let (mut sums_b, mut sums_c) = (sums(&b), sums(&c));
    {
        let shared = Shared {
            plan: &plan,
            inputs,
            grad: &grad,
            grad_last,
            checkpoints,
            u: &u,
            delta: &delta,
            z: z.as_ref(),
            initial: initial.map(Disjoint::new),
            kept: Disjoint::new(&mut kept),
            totals: Disjoint::new(&mut totals),
            sums_b: Disjoint::new(&mut sums_b),
            sums_c: Disjoint::new(&mut sums_c),
        };
        for round in 0..plan.rounds() {
            for_each(spans * plan.runs.len(), plan.work(), |task| {
                let (span, run) = (task / plan.runs.len(), task % plan.runs.len());
                let tiles = plan.round_of(span, round);
                if !tiles.is_empty() {
                    T::dispatch(Task { shared: &shared, span, run, tiles });
                }
            });
            for (gradient, sums) in [(&mut b, &shared.sums_b), (&mut c, &shared.sums_c)] {
                if let CoefficientGradient::Varying(view) = gradient {
                    // SAFETY: the tasks of this round are done.
                    plan.reduce(
                        round,
                        unsafe { sums.slice(0..spans * plan.runs.len() * plan.sum_size()) },
                        view,
                    );
                }
            }
        }
    }
    let parts = [Some(a), constant(b), constant(c), d, delta_bias];
    plan.add_spans(&totals, parts);
    Ok(())
}

fn constant<T>(gradient: CoefficientGradient<'_, T>) -> Option<&mut [T]> {
    match gradient {
        CoefficientGradient::Constant(data) => Some(data),
        CoefficientGradient::Varying(_) => None,
    }
}

/// How the work is cut, and where its parts lie in the buffers that tasks share.
pub(super) struct Plan<'a> {
    pub(super) dims: Dims,
    pub(super) tiles: &'a Tiles,
    pub(super) runs: Vec<Run>,
    /// Units of all runs.
    units: usize,
    /// Units before each run.
    pub(super) before: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(dims: Dims, tiles: &'a Tiles) -> Self {
        let runs = runs(&dims, tiles.spans.len(), TASKS, MOST_UNITS);
        let mut units = 0;
        let before = runs
            .iter()
            .map(|run| {
                let before = units;
                units += run.count.div_ceil(UNIT);
                before
            })
            .collect();
        Self { dims, tiles, runs, units, before }
    }
    fn rounds(&self) -> usize {
        self.tiles.spans.iter().map(|span| span.len().div_ceil(ROUND)).max().unwrap_or(0)
    }
    /// Tiles of a span in a round, the last ones first.
    fn round_of(&self, span: usize, round: usize) -> &'a [Tile] {
        let span = &self.tiles.spans[span];
        let end = span.len().saturating_sub(round * ROUND);
        &self.tiles.list[span.start + end.saturating_sub(ROUND)..span.start + end]
    }
    fn work(&self) -> usize {
        let channels = self.runs.first().map_or(0, |run| run.count);
        ROUND.min(self.tiles.list.len()) * TILE * channels * (self.dims.states + 1) * WORK
    }
    /// Elements of a unit that are kept from round to round: four of every state, two of every channel.
    pub(super) fn kept_unit(&self) -> usize {
        UNIT * (4 * self.dims.states + 2)
    }
    pub(super) fn kept_size(&self) -> usize {
        self.units * self.kept_unit()
    }
    /// Elements of `dA`, constant `dB` and `dC`, `dD` and the gradient of the bias.
    pub(super) fn total_size(&self) -> usize {
        self.dims.channels * (3 * self.dims.states + 2)
    }
    /// Where in the totals of a span each of the five begins; the end last.
    pub(super) fn total_parts(&self) -> [usize; 6] {
        let (channels, states) = (self.dims.channels, self.dims.channels * self.dims.states);
        [0, states, 2 * states, 3 * states, 3 * states + channels, 3 * states + 2 * channels]
    }
    /// Elements of `dB` or `dC` of a round.
    pub(super) fn sum_size(&self) -> usize {
        ROUND.min(self.tiles.list.len()) * TILE * self.dims.states
    }

    /// Adds up the sums of all runs of a group, in order, and writes them where they belong.
    fn reduce<T: Float>(&self, round: usize, sums: &[T], gradient: &ViewMut<'_, T>) {
        let (spans, groups, states) = (self.tiles.spans.len(), self.dims.groups, self.dims.states);
        let per_group = self.runs.len() / groups.max(1);
        let most = ROUND.min(self.tiles.list.len());
        for_each(spans * groups * most, per_group * TILE * states, |task| {
            let (place, index) = (task / most, task % most);
            let (span, group) = (place / groups, place % groups);
            let Some(&tile) = self.round_of(span, round).get(index) else { return };
            let first = span * self.runs.len() + group * per_group;
            let parts =
                (first..first + per_group).map(|run| &sums[run * self.sum_size() + index * TILE * states..]);
            T::dispatch(Reduce { parts, size: tile.tokens * states, states, group, tile, gradient });
        });
    }

    /// Adds up the totals of spans, in order.
    fn add_spans<T: Float>(&self, totals: &[T], parts: [Option<&mut [T]>; 5]) {
        let places = self.total_parts();
        for (i, out) in parts.into_iter().enumerate() {
            let Some(out) = out else { continue };
            out.fill(T::ZERO);
            for span in totals.chunks_exact(self.total_size().max(1)) {
                for (sum, x) in out.iter_mut().zip(&span[places[i]..places[i + 1]]) {
                    *sum += *x;
                }
            }
        }
    }
}

/// Sums of one tile over the runs of a group.
struct Reduce<'a, T, I> {
    parts: I,
    size: usize,
    states: usize,
    group: usize,
    tile: Tile,
    gradient: &'a ViewMut<'a, T>,
}

impl<'a, T: Float, I: Iterator<Item = &'a [T]>> Kernel<T> for Reduce<'_, T, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let Self { parts, size, states, group, tile, gradient } = self;
        let mut scratch = Scratch::new::<T>(&[size]);
        let sum = scratch.take::<T>(size);
        // SAFETY: the buffer has these elements, and this task alone writes those of its tile and group.
        unsafe {
            let total = std::slice::from_raw_parts_mut(sum, size);
            total.fill(T::ZERO);
            for part in parts {
                for (sum, x) in total.iter_mut().zip(&part[..size]) {
                    *sum += *x;
                }
            }
            let (strides, to) = (gradient.strides(), gradient.at(tile.sequence.row, group, tile.start, 0));
            turn(sum, (states, 1), tile.tokens, states, to, (strides.token, strides.feature));
        }
    }
}

/// What all tasks have in common.
pub(super) struct Shared<'a, T> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) inputs: &'a Inputs<'a, T>,
    pub(super) grad: &'a View<'a, T>,
    pub(super) grad_last: Option<&'a [T]>,
    pub(super) checkpoints: &'a [T],
    pub(super) u: &'a ViewMut<'a, T>,
    pub(super) delta: &'a ViewMut<'a, T>,
    pub(super) z: Option<&'a ViewMut<'a, T>>,
    pub(super) initial: Option<Disjoint<'a, T>>,
    pub(super) kept: Disjoint<'a, T>,
    pub(super) totals: Disjoint<'a, T>,
    pub(super) sums_b: Disjoint<'a, T>,
    pub(super) sums_c: Disjoint<'a, T>,
}

/// A run of channels through the tiles of a round.
pub(super) struct Task<'a, T> {
    pub(super) shared: &'a Shared<'a, T>,
    pub(super) span: usize,
    pub(super) run: usize,
    pub(super) tiles: &'a [Tile],
}
