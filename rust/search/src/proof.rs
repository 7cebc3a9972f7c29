//! Exact returns: of the end of a game, and of what follows from them (Winands, Björnsson and Saito 2008).
//!
//! A node is proven when a child is proven to give the largest return that there is, or when all children are proven.

use crate::nodes::{NONE, flag};
use crate::tree::Tree;

impl Tree {
    /// The return of `node` is `g`; proves what follows above.
    pub(crate) fn prove(&mut self, node: usize, g: f64) {
        self.nodes.exact[node] = g;
        self.nodes.flags[node] |= flag::PROVEN;
        self.special = true;
        let parent = self.nodes.parents[node];
        if parent != NONE {
            self.prove_from(parent as usize);
        }
    }

    /// Proves `node` and the nodes above as far as their children tell.
    pub(crate) fn prove_from(&mut self, node: usize) {
        let gamma = self.config.gamma();
        let mut node = node;
        loop {
            if self.nodes.flags[node] & flag::PROVEN != 0 {
                return;
            }
            let Some(v) = self.implied(node) else { return };
            let parent = self.nodes.parents[node];
            let g = if parent == NONE { v } else { self.nodes.reward(node) + gamma * v };
            self.nodes.exact[node] = g;
            self.nodes.flags[node] |= flag::PROVEN;
            self.special = true;
            if parent == NONE {
                return;
            }
            node = parent as usize;
        }
    }

    /// The value that the children of `node` prove, as its own player sees it.
    fn implied(&self, node: usize) -> Option<f64> {
        let win = self.config.win?;
        let (mut best, mut all, mut any) = (f64::NEG_INFINITY, true, false);
        for child in self.nodes.children(node) {
            let flags = self.nodes.flags[child];
            if flags & flag::FORBIDDEN != 0 {
                continue;
            }
            if flags & flag::PROVEN == 0 {
                all = false;
            } else {
                any = true;
                best = best.max(self.nodes.exact[child]);
            }
        }
        (any && (all || best >= win)).then_some(best)
    }
}
