//! The tree: its nodes, what it counts, and what is read from it.

use crate::config::Config;
use crate::error::{Result, value};
use crate::nodes::{NONE, Nodes, flag};
use crate::open::Family;
use crate::random::Draws;
use sensorium_core::error::check_len;

/// The most simulations of a tree: counts stay exact as 32-bit integers with a sign.
pub const MAX_SIMULATIONS: usize = i32::MAX as usize;

/// A search tree.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(crate) config: Config,
    pub(crate) nodes: Nodes,
    pub(crate) draws: Draws,
    /// Leaves handed out whose values have not been told.
    pub(crate) handed_out: usize,
    /// Whether any node has a bit of [`flag::SPECIAL`].
    pub(crate) special: bool,
    /// The smallest and the largest mean return so far.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Scratch: as wide as the widest node.
    pub(crate) scores: Vec<f64>,
    pub(crate) scratch: Vec<f64>,
    /// Scratch of a call: leaves that were met twice.
    pub(crate) collided: Vec<u32>,
    /// Scratch: what is known of siblings that do not lie side by side.
    pub(crate) family: Family,
}

impl Tree {
    /// A tree of one node, the root.
    ///
    /// # Errors
    /// Where a setting is out of range.
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        let nodes = Nodes::root(&config);
        nodes.check_room(0, nodes.width(), config.max_nodes, config.max_bytes)?;
        Ok(Self {
            config,
            nodes,
            draws: Draws::new(config.seed),
            handed_out: 0,
            special: false,
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            scores: Vec::new(),
            scratch: Vec::new(),
            collided: Vec::new(),
            family: Family::default(),
        })
    }

    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Its nodes.
    #[must_use]
    pub const fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Walks whose values were told, and those under way.
    #[must_use]
    pub fn simulations(&self) -> usize {
        self.nodes.visits[0] as usize + self.nodes.waiting[0] as usize
    }

    /// Number of leaves handed out whose values have not been told.
    #[must_use]
    pub const fn handed_out(&self) -> usize {
        self.handed_out
    }

    /// Those leaves, in order.
    #[must_use]
    pub fn waiting(&self) -> Vec<u32> {
        let flags = self.nodes.flags.iter().enumerate();
        flags.filter(|(_, flags)| **flags & flag::WAITING != 0).map(|(node, _)| node as u32).collect()
    }

    /// Mean value of a node as its own player sees it; 0 without visits.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, node: usize) -> f64 {
        let visits = self.nodes.visits[node];
        if visits == 0 {
            return 0.0;
        }
        let mean = self.nodes.sums[node] / f64::from(visits);
        if node == 0 {
            return mean;
        }
        let gamma = self.config.gamma();
        if gamma == 0.0 { 0.0 } else { (mean - self.nodes.reward(node)) / gamma }
    }

    /// The child to take: the most visited, the larger mean among equals, unless a proven one gives at least as much as
    /// that mean. [`NONE`] where no child was visited or proven.
    #[must_use]
    pub fn best_child(&self, node: usize) -> u32 {
        let nodes = &self.nodes;
        let mean = |child: usize| nodes.sums[child] / f64::from(nodes.visits[child].max(1));
        let (mut most, mut proven) = (None, None);
        for child in nodes.children(node) {
            let flags = nodes.flags[child];
            if flags & flag::BARRED != 0 {
                continue;
            }
            if flags & flag::PROVEN != 0 {
                if proven.is_none_or(|best: usize| nodes.exact[child] > nodes.exact[best]) {
                    proven = Some(child);
                }
            } else if nodes.visits[child] > 0
                && most.is_none_or(|best: usize| {
                    nodes.visits[child] > nodes.visits[best]
                        || (nodes.visits[child] == nodes.visits[best] && mean(child) > mean(best))
                })
            {
                most = Some(child);
            }
        }
        match (most, proven) {
            (None, None) => NONE,
            (Some(child), None) | (None, Some(child)) => child as u32,
            (Some(most), Some(proven)) => {
                if nodes.exact[proven] >= mean(most) {
                    proven as u32
                } else {
                    most as u32
                }
            }
        }
    }

    /// The nodes from `node` down along [`best_child`](Self::best_child), without `node` itself.
    ///
    /// # Errors
    /// Where there is no such node.
    pub fn best_path(&self, node: i64) -> Result<Vec<u32>> {
        let mut node = self.check_id("node", node)?;
        let mut path = Vec::new();
        loop {
            let child = self.best_child(node);
            if child == NONE {
                return Ok(path);
            }
            path.push(child);
            node = child as usize;
        }
    }

    /// The nodes from the root to `node`, without the root.
    ///
    /// # Errors
    /// Where there is no such node.
    pub fn path(&self, node: i64) -> Result<Vec<u32>> {
        let mut node = self.check_id("node", node)? as u32;
        let mut path = Vec::new();
        while node != 0 {
            path.push(node);
            node = self.nodes.parents[node as usize];
        }
        path.reverse();
        Ok(path)
    }

    /// Numbers the actions that lead to `ids`.
    ///
    /// # Errors
    /// Where there is no such node, one is the root, or memory does not suffice.
    pub fn name(&mut self, ids: &[i64], actions: &[i32]) -> Result<()> {
        check_len("actions", actions, ids.len())?;
        for &id in ids {
            if self.check_id("nodes", id)? == 0 {
                return Err(value("nodes", "names the root, which no action leads to"));
            }
        }
        if self.nodes.actions.is_empty() {
            let width = self.nodes.width() + size_of::<i32>();
            self.nodes.check_room(0, width, self.config.max_nodes, self.config.max_bytes)?;
            self.nodes.begin_actions()?;
        }
        for (&id, &action) in ids.iter().zip(actions) {
            self.nodes.actions[id as usize] = action;
        }
        Ok(())
    }

    /// Allows or forbids the actions that lead to `ids`.
    ///
    /// # Errors
    /// Where there is no such node, or one is the root.
    pub fn forbid(&mut self, ids: &[i64], forbidden: bool) -> Result<()> {
        for &id in ids {
            if self.check_id("nodes", id)? == 0 {
                return Err(value("nodes", "names the root, which no action leads to"));
            }
        }
        for &id in ids {
            let node = id as usize;
            if forbidden {
                self.nodes.flags[node] |= flag::FORBIDDEN;
                self.special = true;
            } else {
                self.nodes.flags[node] &= !flag::FORBIDDEN;
            }
            self.reconsider(self.nodes.parents[node], !forbidden);
        }
        Ok(())
    }

    /// After a change among the children of `node`: proves it and what lies above anew. Where an action was allowed,
    /// nodes that had failed for want of one have one again.
    fn reconsider(&mut self, node: u32, allowed: bool) {
        let mut at = node;
        while at != NONE {
            let i = at as usize;
            self.nodes.flags[i] &= !flag::PROVEN;
            if allowed {
                self.nodes.flags[i] &= !flag::FAILED;
            }
            at = self.nodes.parents[i];
        }
        at = node;
        while at != NONE {
            self.prove_from(at as usize);
            at = self.nodes.parents[at as usize];
        }
    }
}
