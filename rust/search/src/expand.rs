//! Children for leaves.

use crate::config::LARGEST;
use crate::error::{Error, Result, value};
use crate::nodes::{even, flag};
use crate::tree::Tree;
use sensorium_core::error::check_len;

/// Numbers of children.
#[derive(Debug, Clone, Copy)]
pub enum Counts<'a> {
    /// As many for each leaf.
    Same(usize),
    /// Of each leaf.
    Each(&'a [i64]),
}

/// What is known of the children of some leaves, those of the first leaf first.
#[derive(Debug, Clone, Copy)]
pub struct Expansion<'a> {
    /// Numbers of children. A leaf without any is terminal.
    pub counts: Counts<'a>,
    /// Numbers of the actions; positions where not given.
    pub actions: Option<&'a [i32]>,
    /// Probabilities; siblings are alike where not given.
    pub priors: Option<&'a [f64]>,
    /// Rewards of the actions, as whoever acts sees them.
    pub rewards: Option<&'a [f64]>,
    /// Whether the action ends it all.
    pub terminal: Option<&'a [bool]>,
    /// Whether the action may not be taken.
    pub forbidden: Option<&'a [bool]>,
}

impl Expansion<'_> {
    fn count(&self, leaf: usize) -> usize {
        match self.counts {
            Counts::Same(count) => count,
            Counts::Each(counts) => counts[leaf] as usize,
        }
    }

    /// Number of children of `leaves` leaves.
    fn total(&self, leaves: usize) -> Result<usize> {
        let too_many = || Error::Memory("children are more than any tree may have".into());
        match self.counts {
            Counts::Same(count) => count.checked_mul(leaves).ok_or_else(too_many),
            Counts::Each(counts) => {
                check_len("children", counts, leaves)?;
                let mut total = 0_usize;
                for &count in counts {
                    let count = usize::try_from(count)
                        .map_err(|_| value("children", format!("has a count of {count}")))?;
                    total = total.checked_add(count).ok_or_else(too_many)?;
                }
                Ok(total)
            }
        }
    }

    fn check(&self, total: usize, shares: bool) -> Result<()> {
        if let Some(actions) = self.actions {
            check_len("actions", actions, total)?;
        }
        if let Some(priors) = self.priors {
            check_len("priors", priors, total)?;
            for &p in priors {
                if !(0.0..=1e30).contains(&p) {
                    return Err(value("priors", format!("has {p}, expected numbers from 0")));
                }
            }
        }
        if let Some(rewards) = self.rewards {
            check_len("rewards", rewards, total)?;
            let (low, high) = if shares { (0.0, 1.0) } else { (-LARGEST, LARGEST) };
            for &r in rewards {
                if !(low..=high).contains(&r) {
                    return Err(value("rewards", format!("has {r}, expected from {low:e} to {high:e}")));
                }
            }
        }
        if let Some(terminal) = self.terminal {
            check_len("terminal", terminal, total)?;
        }
        if let Some(forbidden) = self.forbidden {
            check_len("forbidden", forbidden, total)?;
        }
        Ok(())
    }
}

impl Tree {
    /// Gives `leaves` children.
    ///
    /// # Errors
    /// Where an id or a number cannot be used, a leaf has children already, or memory does not suffice; the tree is as
    /// it was then.
    pub fn expand(&mut self, leaves: &[i64], with: &Expansion) -> Result<()> {
        let total = with.total(leaves.len())?;
        if self.config.open() && total > 0 {
            let what = "must be 0: with this policy select() adds them, one at a time";
            return Err(value("children", what));
        }
        with.check(total, self.config.policy.needs_shares())?;
        self.check_leaves(leaves)?;
        let (priors, rewards) = (with.priors.is_some(), with.rewards.is_some());
        let (of, actions) = (&self.nodes, with.actions.is_some());
        let width = of.width()
            + if priors && of.priors.is_empty() { size_of::<f32>() } else { 0 }
            + if rewards && of.rewards.is_empty() { size_of::<f64>() } else { 0 }
            + if actions && of.actions.is_empty() { size_of::<i32>() } else { 0 };
        of.check_room(total, width, self.config.max_nodes, self.config.max_bytes)?;
        if priors && of.priors.is_empty() {
            self.nodes.begin_priors()?;
        }
        if rewards && self.nodes.rewards.is_empty() {
            self.nodes.begin_rewards()?;
        }
        if actions && self.nodes.actions.is_empty() {
            self.nodes.begin_actions()?;
        }
        let first = self.nodes.len();
        self.nodes.extend(total, self.config.max_nodes, self.config.max_bytes)?;
        self.attach(leaves, with, first);
        if self.config.win.is_some() && with.terminal.is_some() {
            for &leaf in leaves {
                self.prove_from(leaf as usize);
            }
        }
        Ok(())
    }

    /// Writes the children from `first` on.
    fn attach(&mut self, leaves: &[i64], with: &Expansion, first: usize) {
        let nodes = &mut self.nodes;
        let mut at = 0;
        for (i, &leaf) in leaves.iter().enumerate() {
            let (leaf, count) = (leaf as usize, with.count(i));
            if count == 0 {
                nodes.flags[leaf] |= flag::TERMINAL;
                continue;
            }
            let (start, end) = (first + at, first + at + count);
            nodes.firsts[leaf] = start as u32;
            nodes.counts[leaf] = count as u32;
            nodes.parents[start..end].fill(leaf as u32);
            if !nodes.priors.is_empty() {
                match with.priors {
                    None => nodes.priors[start..end].fill(even(count)),
                    Some(priors) => {
                        for j in 0..count {
                            nodes.priors[start + j] = priors[at + j] as f32;
                        }
                    }
                }
            }
            if let Some(rewards) = with.rewards {
                nodes.rewards[start..end].copy_from_slice(&rewards[at..at + count]);
            }
            if !nodes.actions.is_empty() {
                match with.actions {
                    Some(actions) => nodes.actions[start..end].copy_from_slice(&actions[at..at + count]),
                    None => {
                        for j in 0..count {
                            nodes.actions[start + j] = j as i32;
                        }
                    }
                }
            }
            for j in 0..count {
                let child = start + j;
                if with.forbidden.is_some_and(|forbidden| forbidden[at + j]) {
                    nodes.flags[child] |= flag::FORBIDDEN;
                    self.special = true;
                }
                if with.terminal.is_some_and(|terminal| terminal[at + j]) {
                    nodes.flags[child] |= flag::TERMINAL;
                    if self.config.win.is_some() {
                        nodes.flags[child] |= flag::PROVEN;
                        nodes.exact[child] = nodes.reward(child);
                        self.special = true;
                    }
                }
            }
            at += count;
            if self.scores.len() < count {
                self.scores.resize(count, 0.0);
                self.scratch.resize(count, 0.0);
            }
        }
    }

    /// Sees that `leaves` are leaves, each named once.
    fn check_leaves(&mut self, leaves: &[i64]) -> Result<()> {
        self.check_each(leaves, |tree, leaf, node| {
            let flags = tree.nodes.flags[node];
            let why = if flags & flag::SEEN != 0 {
                "twice"
            } else if tree.nodes.counts[node] > 0 {
                "which has children already"
            } else if flags & flag::TERMINAL != 0 {
                "which is terminal"
            } else {
                return Ok(());
            };
            Err(format!("names node {leaf}, {why}"))
        })
    }
}
