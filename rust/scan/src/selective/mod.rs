//! The selective scan of Mamba (S6; Gu and Dao 2023, arXiv:2312.00752), forward, backward and one step.
//!
//! For each row of the batch, channel `d` and state `n`:
//! `h_t = exp(delta_t A_dn) h_(t-1) + delta_t B_tn u_t`, `y_t = sum_n C_tn h_t + D_d u_t`, `y_t silu(z_t)` where there
//! is a gate; `delta <- softplus(delta + bias)` where asked for.
//!
//! Time is `L B D S` exponentials; memory beside inputs and results is a few tiles a thread, and for the backward the
//! state at every 64th token. Channels are independent: blocks of them run in parallel, and sequences that are packed
//! in a row do. Every step of a channel is computed alike wherever a tile or a call begins, so that a sequence may be cut
//! anywhere: states and results are the same bits.

mod backward;
mod coefficients;
mod forward;
mod recurrence;
mod reverse;
mod stage;
mod step;
mod through;
mod tiles;
mod view;

pub use backward::{CoefficientGradient, Gradients};
pub use forward::{Outputs, checkpoints};
pub use step::Step;
pub use view::{Shape, Strides, View, ViewMut};
pub(crate) use {backward::backward, forward::forward, step::step};

use crate::Sequences;
use sensorium_core::error::{check_len, product};
use sensorium_core::{Error, Float, Result};

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// `B`, rows of the batch.
    pub batch: usize,
    /// `D`, channels.
    pub channels: usize,
    /// `L`, tokens of a row.
    pub length: usize,
    /// `S`, states of a channel.
    pub states: usize,
    /// `G`, groups of `D / G` channels that share `B` and `C`.
    pub groups: usize,
}

impl Dims {
    /// Shape of `u`, whose channels are one group.
    #[must_use]
    pub fn inputs(&self) -> Shape {
        [self.batch, 1, self.length, self.channels]
    }
    /// Shape of `B` and `C`.
    #[must_use]
    pub fn coefficients(&self) -> Shape {
        [self.batch, self.groups, self.length, self.states]
    }
    fn channels_of_group(&self) -> usize {
        self.channels.checked_div(self.groups).unwrap_or(0)
    }
}

/// `B` or `C`.
#[derive(Debug, Clone, Copy)]
pub enum Coefficients<'a, T> {
    /// Of every token and group, `(batch, group, token, state)`.
    Varying(View<'a, T>),
    /// Of every channel, `(D, S)`.
    Constant(&'a [T]),
}

impl<T> Coefficients<'_, T> {
    fn varies(&self) -> bool {
        matches!(self, Self::Varying(_))
    }
}

/// What a scan reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `(batch, 1, token, channel)`.
    pub u: View<'a, T>,
    /// As `u`.
    pub delta: View<'a, T>,
    /// `(D, S)`.
    pub a: &'a [T],
    /// Into the state.
    pub b: Coefficients<'a, T>,
    /// Out of the state.
    pub c: Coefficients<'a, T>,
    /// `(D,)`, past the state.
    pub d: Option<&'a [T]>,
    /// Gate, as `u`.
    pub z: Option<View<'a, T>>,
    /// `(D,)`, added to `delta`.
    pub delta_bias: Option<&'a [T]>,
    /// Whether `delta` goes through a softplus.
    pub softplus: bool,
    /// `(states, D, S)` of [`Sequences::states`]; zero where `None`.
    pub initial: Option<&'a [T]>,
}

impl<T: Float> Inputs<'_, T> {
    /// Whether a number of `B` and one of `C` serve all channels of a group.
    fn shared(&self) -> bool {
        self.b.varies() && self.c.varies()
    }

    fn check(&self, dims: &Dims, sequences: &Sequences) -> Result<()> {
        let Dims { batch, channels, length, states, groups } = *dims;
        for (arg, sizes) in [("u", [batch, channels, length]), ("B", [batch, groups, length])] {
            product(arg, &sizes)?;
        }
        if channels > 0 && (groups == 0 || channels % groups != 0) {
            return Err(Error::Value {
                arg: "B",
                what: format!("has G={groups} groups, which do not divide D={channels}"),
            });
        }
        if (sequences.batch(), sequences.length()) != (batch, length) {
            let (want, got) = (length, sequences.length());
            return Err(Error::Dim { arg: "sequences", dim: "L", want, got });
        }
        self.u.check_shape("u", dims.inputs())?;
        self.delta.check_shape("delta", dims.inputs())?;
        self.z.map_or(Ok(()), |z| z.check_shape("z", dims.inputs()))?;
        check_len("A", self.a, product("A", &[channels, states])?)?;
        for (arg, coefficients) in [("B", self.b), ("C", self.c)] {
            match coefficients {
                Coefficients::Varying(view) => view.check_shape(arg, dims.coefficients())?,
                Coefficients::Constant(data) => check_len(arg, data, channels * states)?,
            }
        }
        self.d.map_or(Ok(()), |d| check_len("D", d, channels))?;
        self.delta_bias.map_or(Ok(()), |bias| check_len("delta_bias", bias, channels))?;
        let states = product("initial_state", &[sequences.states(), channels, states])?;
        self.initial.map_or(Ok(()), |initial| check_len("initial_state", initial, states))
    }
}

/// Channels `first..first + count` of a group, the part of a task.
#[derive(Debug, Clone, Copy)]
struct Run {
    group: usize,
    /// Among all channels.
    first: usize,
    count: usize,
}

impl Run {
    /// First channel and number of channels of a block of so many lanes.
    #[inline(always)]
    fn block(&self, block: usize, lanes: usize) -> (usize, usize) {
        (self.first + block * lanes, lanes.min(self.count - block * lanes))
    }
}

/// Channels that are not divided further: lanes of the widest vector.
const UNIT: usize = 16;

/// Channels of every task: runs of whole units, about `tasks` of them together with `others`, which run in parallel
/// too. The cut depends on the sizes alone.
fn runs(dims: &Dims, others: usize, tasks: usize, most: usize) -> Vec<Run> {
    let width = dims.channels_of_group();
    let units = width.div_ceil(UNIT) * dims.groups * others.max(1);
    let run = units.div_ceil(tasks).clamp(1, most) * UNIT;
    let mut list = Vec::new();
    for group in 0..dims.groups {
        for start in (0..width).step_by(run) {
            list.push(Run { group, first: group * width + start, count: run.min(width - start) });
        }
    }
    list
}
