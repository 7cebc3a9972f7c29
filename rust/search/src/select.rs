//! Walks from the root to leaves.
//!
//! A walk ends at a leaf that the caller must evaluate, or at a node whose return is known, which is told at once. Of
//! two walks to one leaf the second is given up; its mark stays until the call ends, so that the next goes elsewhere.
//!
//! Cost: of each node on the way, the columns of its children, one after the other.

use crate::config::Policy;
use crate::error::{Error, Result, value};
use crate::nodes::{NONE, flag};
use crate::score::{Block, Scale, largest, score};
use crate::tree::{MAX_SIMULATIONS, Tree};
use sensorium_core::{Float, Kernel, Simd};

/// Walks to leaves that are handed out already, before a call gives up.
pub(crate) const COLLISIONS: (usize, usize) = (8, 64);

/// Where a walk ends.
enum End {
    /// At a node without children, which may have been handed out.
    Leaf(usize),
    /// At a node whose return is known.
    Known(usize),
    /// At a node of whose children none may be taken.
    Closed(usize),
}

/// `batch` walks, compiled for the level in force.
struct Walks<'a> {
    tree: &'a mut Tree,
    batch: usize,
    out: &'a mut Vec<u32>,
}

impl Kernel<f64> for Walks<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f64>>(self, _: S) {
        let Self { tree, batch, out } = self;
        let most = batch.clamp(COLLISIONS.0, COLLISIONS.1);
        let mut known = 0;
        while out.len() + known < batch && tree.collided.len() < most {
            match tree.walk() {
                End::Leaf(leaf) if tree.nodes.flags[leaf] & flag::WAITING == 0 => {
                    tree.nodes.flags[leaf] |= flag::WAITING;
                    tree.mark(leaf);
                    tree.handed_out += 1;
                    out.push(leaf as u32);
                }
                End::Leaf(leaf) => {
                    tree.mark(leaf);
                    tree.collided.push(leaf as u32);
                }
                End::Known(node) => {
                    let g = tree.known(node);
                    tree.add(node, g, 0);
                    known += 1;
                }
                End::Closed(node) => {
                    tree.nodes.flags[node] |= flag::FAILED;
                    tree.special = true;
                    if node == 0 {
                        break;
                    }
                }
            }
        }
        while let Some(leaf) = tree.collided.pop() {
            tree.unmark(leaf as usize);
        }
    }
}

impl Tree {
    /// Makes `batch` walks and appends the leaves to evaluate to `out`: fewer where walks end at known returns, or
    /// where leaves are handed out already. Each leaf is handed out once.
    ///
    /// # Errors
    /// Where the tree has no leaf left that may be taken.
    pub fn select(&mut self, batch: usize, out: &mut Vec<u32>) -> Result<()> {
        let room = MAX_SIMULATIONS - self.simulations();
        if batch > room {
            return Err(value("batch", format!("must be at most {room}, a tree has 2^31 - 1 simulations")));
        }
        if self.nodes.flags[0] & flag::FAILED == 0 {
            out.try_reserve(batch.min(self.nodes.len()))
                .map_err(|_| Error::Memory("there is no memory for the leaves".into()))?;
            if self.config.open() {
                return self.select_open(batch, out);
            }
            f64::dispatch(Walks { tree: self, batch, out });
        }
        if batch > 0 && out.is_empty() && self.nodes.flags[0] & flag::FAILED != 0 {
            return Err(value("batch", "cannot be had: every action is forbidden or failed"));
        }
        Ok(())
    }

    #[inline(always)]
    fn walk(&mut self) -> End {
        let mut node = 0;
        loop {
            if self.nodes.flags[node] & (flag::TERMINAL | flag::PROVEN) != 0 {
                return End::Known(node);
            }
            if self.nodes.counts[node] == 0 {
                return End::Leaf(node);
            }
            let child = self.choose(node);
            if child == NONE {
                return End::Closed(node);
            }
            node = child as usize;
        }
    }

    /// What policies see instead of returns, now.
    #[inline(always)]
    pub(crate) fn scale(&self) -> Scale {
        let span = if self.config.normalise && self.high > self.low { self.high - self.low } else { 0.0 };
        Scale { loss: self.config.virtual_loss, low: self.low, span }
    }

    #[inline(always)]
    fn choose(&mut self, node: usize) -> u32 {
        let first = self.nodes.firsts[node] as usize;
        let count = self.nodes.counts[node] as usize;
        let range = first..first + count;
        let scale = self.scale();
        let total = f64::from((self.nodes.visits[node] + self.nodes.waiting[node]).max(1));
        let own = match self.config.policy {
            Policy::Puct { unvisited: None, .. } => scale.of(self.value(node)),
            _ => 0.0,
        };
        let (nodes, special) = (&self.nodes, self.special);
        let block = Block {
            visits: &nodes.visits[range.clone()],
            waiting: &nodes.waiting[range.clone()],
            sums: &nodes.sums[range.clone()],
            squares: if nodes.squares.is_empty() { &[] } else { &nodes.squares[range.clone()] },
            priors: if nodes.priors.is_empty() { &[] } else { &nodes.priors[range.clone()] },
        };
        let scores = &mut self.scores[..count];
        let n = &mut self.scratch[..count];
        score(self.config.policy, block, scale, total, own, &mut self.draws, n, scores);
        if special {
            let flags = &nodes.flags[range];
            for i in 0..count {
                if flags[i] & flag::BARRED != 0 {
                    scores[i] = f64::NEG_INFINITY;
                } else if flags[i] & flag::PROVEN != 0 {
                    scores[i] = scale.of(nodes.exact[first + i]);
                }
            }
        }
        match largest(scores) {
            Some(i) => (first + i) as u32,
            None => NONE,
        }
    }

    /// Counts a leaf under way, from `leaf` to the root.
    #[inline(always)]
    pub(crate) fn mark(&mut self, leaf: usize) {
        let mut node = leaf as u32;
        while node != NONE {
            self.nodes.waiting[node as usize] += 1;
            node = self.nodes.parents[node as usize];
        }
    }

    /// Takes back what [`mark`](Self::mark) counted.
    #[inline(always)]
    pub(crate) fn unmark(&mut self, leaf: usize) {
        let mut node = leaf as u32;
        while node != NONE {
            self.nodes.waiting[node as usize] -= 1;
            node = self.nodes.parents[node as usize];
        }
    }
}
