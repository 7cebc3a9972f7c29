//! A tree from its columns, which may come from anywhere: everything is held against everything.

use crate::config::{Config, LARGEST};
use crate::error::{Result, value};
use crate::nodes::{NONE, Nodes, flag};
use crate::tree::{MAX_SIMULATIONS, Tree};
use sensorium_core::error::check_len;

/// What a tree counts beside its nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counters {
    /// Random draws so far.
    pub draws: u64,
    /// The smallest mean return so far.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Tree {
    /// What it counts beside its nodes.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        Counters { draws: self.draws.position, low: self.low, high: self.high }
    }

    /// The tree whose columns these are. Leaves that were handed out are no longer.
    ///
    /// # Errors
    /// Where the columns are not those of a tree; the words name the column.
    pub fn restore(config: Config, nodes: Nodes, counters: Counters) -> Result<Self> {
        let mut tree = Self::new(config)?;
        check_lengths(&nodes)?;
        if nodes.squares.is_empty() == config.policy.needs_squares() {
            return Err(value("squares", "must be there exactly where the policy needs them"));
        }
        if nodes.exact.is_empty() == config.win.is_some() {
            return Err(value("exact", "must be there exactly where there is a win"));
        }
        if nodes.nexts.is_empty() == config.open() {
            return Err(value("nexts", "must be there exactly where walks add children"));
        }
        if nodes.owns.is_empty() == config.policy.branches() {
            return Err(value("owns", "must be there exactly where the policy needs them"));
        }
        if config.open() && nodes.actions.is_empty() {
            return Err(value("actions", "must be there where walks add children"));
        }
        nodes.check_room(0, nodes.width(), config.max_nodes, config.max_bytes)?;
        let widest = check_links(&nodes)?;
        check_numbers(&nodes)?;
        if counters.low.is_nan() || counters.high.is_nan() {
            return Err(value("counters", "have NaN"));
        }
        tree.nodes = nodes;
        tree.nodes.waiting.fill(0);
        for flags in &mut tree.nodes.flags {
            *flags &= !(flag::WAITING | flag::SEEN);
        }
        tree.special = tree.nodes.flags.iter().any(|flags| flags & flag::SPECIAL != 0);
        tree.scores = vec![0.0; widest];
        tree.scratch = vec![0.0; widest];
        tree.draws.position = counters.draws;
        (tree.low, tree.high) = (counters.low, counters.high);
        Ok(tree)
    }
}

fn check_lengths(nodes: &Nodes) -> Result<()> {
    let len = nodes.len();
    if len == 0 || len >= NONE as usize {
        return Err(value("parents", format!("has {len} nodes, expected from 1 to {}", NONE - 1)));
    }
    check_len("firsts", &nodes.firsts, len)?;
    check_len("counts", &nodes.counts, len)?;
    check_len("visits", &nodes.visits, len)?;
    check_len("waiting", &nodes.waiting, len)?;
    check_len("sums", &nodes.sums, len)?;
    check_len("flags", &nodes.flags, len)?;
    macro_rules! optional {
        ($($name:ident)*) => {
            $(if !nodes.$name.is_empty() {
                check_len(stringify!($name), &nodes.$name, len)?;
            })*
        };
    }
    optional!(squares priors rewards exact costs actions nexts owns);
    Ok(())
}

/// Sees that every node but the root is in exactly one block of siblings, after its parent; returns the widest block.
fn check_links(nodes: &Nodes) -> Result<usize> {
    let len = nodes.len();
    if nodes.parents[0] != NONE {
        return Err(value("parents", "gives the root a parent"));
    }
    let (mut widest, mut linked) = (0, 0);
    let mut seen = vec![false; len];
    for node in 0..len {
        let (first, count) = (nodes.firsts[node] as usize, nodes.counts[node] as usize);
        if count == 0 {
            continue;
        }
        let misplaced = || value("firsts", format!("and counts place the children of node {node} wrongly"));
        if first <= node || count > len {
            return Err(misplaced());
        }
        if nodes.flags[node] & flag::TERMINAL != 0 {
            return Err(value("flags", format!("has node {node} terminal, which has children")));
        }
        for child in nodes.children(node) {
            if child <= node || child >= len || seen[child] {
                return Err(misplaced());
            }
            if nodes.parents[child] as usize != node {
                return Err(value(
                    "parents",
                    format!("does not give the children of node {node} back to it"),
                ));
            }
            seen[child] = true;
        }
        linked += count;
        widest = widest.max(count);
    }
    if linked != len - 1 {
        return Err(value("counts", format!("hold {linked} nodes, expected {}", len - 1)));
    }
    Ok(widest)
}

fn check_numbers(nodes: &Nodes) -> Result<()> {
    // The sum of as many of the largest returns, each a reward and a discounted return.
    let most = LARGEST * LARGEST.sqrt();
    for node in 0..nodes.len() {
        let mut below = 0_u64;
        for child in nodes.children(node) {
            below += u64::from(nodes.visits[child]);
        }
        // A new root keeps visits from before it was expanded.
        if u64::from(nodes.visits[node]) < below || nodes.visits[node] as usize > MAX_SIMULATIONS {
            return Err(value("visits", format!("has {} for node {node}", nodes.visits[node])));
        }
        let flags = nodes.flags[node];
        let known = flag::TERMINAL | flag::BARRED | flag::PROVEN | flag::WAITING;
        if flags & !known != 0 || (flags & flag::PROVEN != 0 && nodes.exact.is_empty()) {
            return Err(value("flags", format!("has {flags} for node {node}")));
        }
        if !within(nodes.sums[node], most) {
            return Err(value("sums", format!("has {} for node {node}", nodes.sums[node])));
        }
        if !nodes.squares.is_empty() && !(0.0..=most * most).contains(&nodes.squares[node]) {
            return Err(value("squares", format!("has {} for node {node}", nodes.squares[node])));
        }
        if !nodes.priors.is_empty() && !(0.0..=1e30).contains(&nodes.priors[node]) {
            return Err(value("priors", format!("has {} for node {node}", nodes.priors[node])));
        }
        if !within(nodes.reward(node), LARGEST) {
            return Err(value("rewards", format!("has {} for node {node}", nodes.reward(node))));
        }
        if !nodes.exact.is_empty() && !within(nodes.exact[node], most) {
            return Err(value("exact", format!("has {} for node {node}", nodes.exact[node])));
        }
        if !nodes.owns.is_empty() && !within(nodes.owns[node], most) {
            return Err(value("owns", format!("has {} for node {node}", nodes.owns[node])));
        }
        if !nodes.costs.is_empty() && !(0.0..=most).contains(&nodes.costs[node]) {
            return Err(value("costs", format!("has {} for node {node}", nodes.costs[node])));
        }
    }
    Ok(())
}

/// Whether `x` is a number of at most `most`.
fn within(x: f64, most: f64) -> bool {
    (-most..=most).contains(&x)
}
