//! The nodes, a column for each thing that is known of them.
//!
//! Siblings lie side by side, so that a policy reads its block of each column in order; where walks add children one
//! at a time, each names the next. A child comes after its parent. Columns that no caller needs stay empty: a node then takes 29 bytes.

use crate::config::Config;
use crate::error::{Error, Result};

/// No node.
pub const NONE: u32 = u32::MAX;

/// Bits of [`Nodes::flags`].
pub mod flag {
    /// There are no actions here: a walk that arrives is over.
    pub const TERMINAL: u8 = 1;
    /// The action may not be taken.
    pub const FORBIDDEN: u8 = 2;
    /// It could not be evaluated, or nothing below it can be.
    pub const FAILED: u8 = 4;
    /// Its return is known exactly.
    pub const PROVEN: u8 = 8;
    /// It was handed out, and its value has not been told.
    pub const WAITING: u8 = 16;
    /// Seen during the call that is under way.
    pub(crate) const SEEN: u8 = 32;
    /// No walk goes there.
    pub(crate) const BARRED: u8 = FORBIDDEN | FAILED;
    /// What a policy must look at beside the statistics.
    pub(crate) const SPECIAL: u8 = BARRED | PROVEN;
}

/// Columns; index 0 is the root.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nodes {
    /// The node above; [`NONE`] for the root.
    pub parents: Vec<u32>,
    /// First child; the others follow. 0 where there are none.
    pub firsts: Vec<u32>,
    /// Number of children.
    pub counts: Vec<u32>,
    /// Values told, here and below.
    pub visits: Vec<u32>,
    /// Leaves handed out, here and below, whose values have not been told.
    pub waiting: Vec<u32>,
    /// Sum of returns.
    pub sums: Vec<f64>,
    /// Bits of [`flag`].
    pub flags: Vec<u8>,
    /// Sum of squared returns, or empty.
    pub squares: Vec<f64>,
    /// Probability of the action, or empty: siblings are alike.
    pub priors: Vec<f32>,
    /// Reward of the action, or empty: 0.
    pub rewards: Vec<f64>,
    /// The return where proven, or empty.
    pub exact: Vec<f64>,
    /// What evaluations here and below cost, or empty.
    pub costs: Vec<f64>,
    /// The action's number, or empty: the position among siblings.
    pub actions: Vec<i32>,
    /// The next sibling, [`NONE`] after the last, in trees whose walks add children; else empty.
    pub nexts: Vec<u32>,
    /// The return of the node's own evaluation, or empty.
    pub owns: Vec<f64>,
}

/// Runs `$body` for each column that holds something, with `$column` its name.
macro_rules! each_column {
    ($nodes:expr, $column:ident => $body:expr) => {{
        each_column!(@ $nodes, $column => $body,
            parents firsts counts visits waiting sums flags squares priors rewards exact costs actions nexts owns)
    }};
    (@ $nodes:expr, $column:ident => $body:expr, $($name:ident)*) => {{
        $(if !$nodes.$name.is_empty() {
            let $column = &mut $nodes.$name;
            $body;
        })*
    }};
}

fn width<T>(column: &[T]) -> usize {
    if column.is_empty() { 0 } else { size_of::<T>() }
}

fn grow<T: Clone>(column: &mut Vec<T>, capacity: usize, len: usize, fill: T) -> Result<()> {
    if column.capacity() < capacity && column.try_reserve_exact(capacity - column.len()).is_err() {
        return Err(Error::Memory(format!("there is no memory for {capacity} nodes")));
    }
    column.resize(len, fill);
    Ok(())
}

impl Nodes {
    /// A root that nothing is known of.
    pub(crate) fn root(config: &Config) -> Self {
        let mut nodes = Self {
            parents: vec![NONE],
            firsts: vec![0],
            counts: vec![0],
            visits: vec![0],
            waiting: vec![0],
            sums: vec![0.0],
            flags: vec![0],
            ..Self::default()
        };
        if config.policy.needs_squares() {
            nodes.squares.push(0.0);
        }
        if config.win.is_some() {
            nodes.exact.push(0.0);
        }
        if config.open() {
            nodes.nexts.push(NONE);
            nodes.actions.push(0);
        }
        if config.policy.branches() {
            nodes.owns.push(0.0);
        }
        nodes
    }

    /// The children of `node`, in the order in which they came.
    #[must_use]
    pub fn children(&self, node: usize) -> Children<'_> {
        Children { at: self.firsts[node] as usize, left: self.counts[node], nexts: &self.nexts }
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Whether there is no node; never in a tree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// Bytes that a node takes.
    #[must_use]
    pub fn width(&self) -> usize {
        29 + width(&self.squares)
            + width(&self.priors)
            + width(&self.rewards)
            + width(&self.exact)
            + width(&self.costs)
            + width(&self.actions)
            + width(&self.nexts)
            + width(&self.owns)
    }

    /// Room for `more` nodes beyond those there, in columns that together take `width` bytes a node.
    pub(crate) fn check_room(
        &self,
        more: usize,
        width: usize,
        max_nodes: usize,
        max_bytes: usize,
    ) -> Result<()> {
        let len = self.len().saturating_add(more);
        if len > max_nodes {
            return Err(Error::Memory(format!("the tree would have {len} nodes, max_nodes is {max_nodes}")));
        }
        let bytes = len.saturating_mul(width);
        if bytes > max_bytes {
            return Err(Error::Memory(format!(
                "the tree would take {bytes} bytes, max_bytes is {max_bytes}"
            )));
        }
        Ok(())
    }

    /// Adds `more` empty nodes. Capacities double, within the limits.
    pub(crate) fn extend(&mut self, more: usize, max_nodes: usize, max_bytes: usize) -> Result<()> {
        let before = self.len();
        let len = before + more;
        let mut capacity = self.parents.capacity();
        if capacity < len {
            let most = max_nodes.min(max_bytes / self.width());
            capacity = len.max((2 * capacity).max(256).min(most));
        }
        let mut grown = Ok(());
        each_column!(self, column => {
            if grown.is_ok() {
                grown = grow(column, capacity, len, Default::default());
            }
        });
        if grown.is_err() {
            self.truncate(before);
        }
        grown
    }

    fn truncate(&mut self, len: usize) {
        each_column!(self, column => column.truncate(len));
    }

    /// Keeps the nodes for which `keep` holds, in order.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        each_column!(self, column => {
            let mut kept = 0;
            for i in 0..keep.len() {
                if keep[i] {
                    column[kept] = column[i];
                    kept += 1;
                }
            }
            column.truncate(kept);
        });
    }

    /// Begins the column of priors: siblings are alike so far.
    pub(crate) fn begin_priors(&mut self) -> Result<()> {
        grow(&mut self.priors, self.parents.capacity(), self.parents.len(), 1.0)?;
        for node in 0..self.len() {
            let (first, count) = (self.firsts[node] as usize, self.counts[node] as usize);
            self.priors[first..first + count].fill(even(count));
        }
        self.priors[0] = 1.0;
        Ok(())
    }

    /// Begins the column of actions: positions among siblings so far.
    pub(crate) fn begin_actions(&mut self) -> Result<()> {
        grow(&mut self.actions, self.parents.capacity(), self.parents.len(), 0)?;
        for node in 0..self.len() {
            let first = self.firsts[node] as usize;
            for i in 0..self.counts[node] as usize {
                // Trees whose siblings are not side by side have the column from the beginning.
                self.actions[first + i] = i as i32;
            }
        }
        Ok(())
    }

    /// Begins the column of rewards: none so far.
    pub(crate) fn begin_rewards(&mut self) -> Result<()> {
        grow(&mut self.rewards, self.parents.capacity(), self.parents.len(), 0.0)
    }

    /// Begins the column of costs: none so far.
    pub(crate) fn begin_costs(&mut self) -> Result<()> {
        grow(&mut self.costs, self.parents.capacity(), self.parents.len(), 0.0)
    }

    /// The reward of the action that leads to `node`.
    #[inline(always)]
    pub(crate) fn reward(&self, node: usize) -> f64 {
        if self.rewards.is_empty() { 0.0 } else { self.rewards[node] }
    }

    /// The probability of the action that leads to `node`.
    #[must_use]
    pub fn prior(&self, node: usize) -> f32 {
        if !self.priors.is_empty() {
            return self.priors[node];
        }
        match self.parents[node] {
            NONE => 1.0,
            parent => even(self.counts[parent as usize] as usize),
        }
    }

    /// The number of the action that leads to `node`.
    #[must_use]
    pub fn action(&self, node: usize) -> i32 {
        if !self.actions.is_empty() {
            return self.actions[node];
        }
        let parent = self.parents[node];
        if parent == NONE { 0 } else { node as i32 - self.firsts[parent as usize] as i32 }
    }
}

/// Indices of siblings.
#[derive(Debug, Clone)]
pub struct Children<'a> {
    at: usize,
    left: u32,
    nexts: &'a [u32],
}

impl Iterator for Children<'_> {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let child = self.at;
        self.at = self.nexts.get(child).map_or(child + 1, |&next| next as usize);
        Some(child)
    }
}

/// The prior of each of `count` siblings that are alike.
pub(crate) fn even(count: usize) -> f32 {
    1.0 / count.max(1) as f32
}
