//! What becomes of leaves that were handed out: a value, none yet, or none ever.

use crate::config::LARGEST;
use crate::error::{Result, value};
use crate::nodes::{NONE, flag};
use crate::tree::Tree;
use sensorium_core::error::{Error as Argument, check_len};

impl Tree {
    /// Adds the values of `leaves`, each as the player sees it who is to move there, along their ways to the root.
    ///
    /// The return of a leaf that was proven meanwhile, or that is terminal and has one, is what is known instead.
    ///
    /// # Errors
    /// Where an id or a value cannot be used, or a leaf is not handed out; nothing is added then.
    pub fn backup(&mut self, leaves: &[i64], values: &[f64], costs: Option<&[f64]>) -> Result<()> {
        check_len("values", values, leaves.len())?;
        let mut shares = self.config.policy.needs_shares();
        shares &= self.nodes.rewards.is_empty();
        for (&leaf, &got) in leaves.iter().zip(values) {
            if !(-LARGEST..=LARGEST).contains(&got) {
                let what = format!(
                    "has {got} for leaf {leaf}, expected a number of at most 1e100; fail() takes leaves that cannot \
                     be evaluated"
                );
                return Err(value("values", what));
            }
            if shares && !(0.0..=1.0).contains(&got) {
                return Err(value("values", format!("has {got} for leaf {leaf}, the policy takes 0 to 1")));
            }
        }
        if let Some(costs) = costs {
            check_len("cost", costs, leaves.len())?;
            for (&leaf, &got) in leaves.iter().zip(costs) {
                if !(0.0..=LARGEST).contains(&got) {
                    return Err(value(
                        "cost",
                        format!("has {got} for leaf {leaf}, expected from 0 to 1e100"),
                    ));
                }
            }
        }
        self.check_waiting(leaves)?;
        if costs.is_some() && self.nodes.costs.is_empty() {
            let width = self.nodes.width() + size_of::<f64>();
            self.nodes.check_room(0, width, self.config.max_nodes, self.config.max_bytes)?;
            self.nodes.begin_costs()?;
        }
        let gamma = self.config.gamma();
        for i in 0..leaves.len() {
            let leaf = leaves[i] as usize;
            let flags = self.nodes.flags[leaf];
            let mut g = values[i];
            if leaf != 0 {
                g = self.nodes.reward(leaf) + gamma * g;
            }
            if flags & flag::PROVEN != 0 || (flags & flag::TERMINAL != 0 && self.nodes.visits[leaf] > 0) {
                g = self.known(leaf);
            }
            self.nodes.flags[leaf] &= !flag::WAITING;
            if !self.nodes.owns.is_empty() && self.nodes.visits[leaf] == 0 {
                self.nodes.owns[leaf] = g;
            }
            self.add(leaf, g, 1);
            if let Some(costs) = costs {
                let mut node = leaf as u32;
                while node != NONE {
                    self.nodes.costs[node as usize] += costs[i];
                    node = self.nodes.parents[node as usize];
                }
            }
            if self.config.win.is_some()
                && self.nodes.flags[leaf] & (flag::TERMINAL | flag::PROVEN) == flag::TERMINAL
            {
                self.prove(leaf, g);
            }
        }
        self.handed_out -= leaves.len();
        Ok(())
    }

    /// Takes leaves back: they count as if they had never been handed out.
    ///
    /// # Errors
    /// Where an id cannot be used or a leaf is not handed out; all leaves stay as they were then.
    pub fn release(&mut self, leaves: &[i64]) -> Result<()> {
        self.check_waiting(leaves)?;
        for &leaf in leaves {
            self.nodes.flags[leaf as usize] &= !flag::WAITING;
            self.unmark(leaf as usize);
        }
        self.handed_out -= leaves.len();
        Ok(())
    }

    /// Takes leaves back that cannot be evaluated: no walk goes there again.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn fail(&mut self, leaves: &[i64]) -> Result<()> {
        self.release(leaves)?;
        for &leaf in leaves {
            self.nodes.flags[leaf as usize] |= flag::FAILED;
            self.special = true;
        }
        Ok(())
    }

    /// Adds the return `g` of `leaf` and what it makes of the nodes above, and takes `under_way` marks back.
    #[inline(always)]
    pub(crate) fn add(&mut self, leaf: usize, g: f64, under_way: u32) {
        let gamma = self.config.gamma();
        let (mut node, mut g) = (leaf, g);
        loop {
            let nodes = &mut self.nodes;
            nodes.visits[node] += 1;
            nodes.waiting[node] -= under_way;
            nodes.sums[node] += g;
            if !nodes.squares.is_empty() {
                nodes.squares[node] += g * g;
            }
            let parent = nodes.parents[node];
            if parent == NONE {
                return;
            }
            if self.config.normalise {
                let mean = nodes.sums[node] / f64::from(nodes.visits[node]);
                self.low = self.low.min(mean);
                self.high = self.high.max(mean);
            }
            node = parent as usize;
            if node != 0 {
                g = self.nodes.reward(node) + gamma * g;
            }
        }
    }

    /// The return of a node that is terminal or proven.
    #[inline(always)]
    pub(crate) fn known(&self, node: usize) -> f64 {
        if self.nodes.flags[node] & flag::PROVEN != 0 {
            return self.nodes.exact[node];
        }
        match self.nodes.visits[node] {
            // After the end nothing comes.
            0 => self.nodes.reward(node),
            visits => self.nodes.sums[node] / f64::from(visits),
        }
    }

    /// Sees that `leaves` are handed out, each named once.
    fn check_waiting(&mut self, leaves: &[i64]) -> Result<()> {
        self.check_each(leaves, |tree, leaf, node| match tree.nodes.flags[node] {
            flags if flags & flag::SEEN != 0 => Err(format!("names leaf {leaf} twice")),
            flags if flags & flag::WAITING == 0 => {
                Err(format!("names node {leaf}, which is not handed out: take leaves from select()"))
            }
            _ => Ok(()),
        })
    }

    /// Checks leaves one after the other; those that are seen already have [`flag::SEEN`] meanwhile. `check` takes the
    /// leaf and its index, and returns what is wrong with it.
    pub(crate) fn check_each(
        &mut self,
        leaves: &[i64],
        check: impl Fn(&Self, i64, usize) -> std::result::Result<(), String>,
    ) -> Result<()> {
        let mut done = 0;
        let mut found = Ok(());
        for &leaf in leaves {
            found = self.check_id("leaves", leaf).and_then(|node| {
                check(self, leaf, node).map_err(|what| value("leaves", what))?;
                self.nodes.flags[node] |= flag::SEEN;
                Ok(())
            });
            if found.is_err() {
                break;
            }
            done += 1;
        }
        for &leaf in &leaves[..done] {
            self.nodes.flags[leaf as usize] &= !flag::SEEN;
        }
        found
    }

    /// The index that `id` names.
    ///
    /// # Errors
    /// Where there is no such node.
    pub fn check_id(&self, arg: &'static str, id: i64) -> Result<usize> {
        match usize::try_from(id) {
            Ok(node) if node < self.nodes.len() => Ok(node),
            _ => {
                let what = format!("names node {id}, the tree has {} nodes", self.nodes.len());
                Err(Argument::Value { arg, what }.into())
            }
        }
    }
}
