//! Another root: what lies below it stays, with all that is known of it.

use crate::error::{Result, value};
use crate::nodes::{NONE, flag};
use crate::tree::Tree;

impl Tree {
    /// Makes `id` the root and forgets what is not below it. Ids change: nodes keep their order.
    ///
    /// # Errors
    /// Where there is no such node, where leaves are handed out, or where memory does not suffice.
    pub fn reroot(&mut self, id: i64) -> Result<()> {
        let root = self.check_id("node", id)?;
        if self.handed_out > 0 {
            let what = format!("cannot become the root while {} leaves are handed out", self.handed_out);
            return Err(value("node", what));
        }
        if root == 0 {
            return Ok(());
        }
        let own = self.value(root);
        let len = self.nodes.len();
        let mut keep = vec![false; len];
        let mut ids = vec![0_u32; len];
        keep[root] = true;
        let mut kept = 1;
        // A parent comes before its children.
        for node in root + 1..len {
            if keep[self.nodes.parents[node] as usize] {
                keep[node] = true;
                ids[node] = kept;
                kept += 1;
            }
        }
        self.nodes.retain(&keep);
        let nodes = &mut self.nodes;
        for node in 0..nodes.len() {
            let parent = nodes.parents[node];
            nodes.parents[node] = if node == 0 { NONE } else { ids[parent as usize] };
            if nodes.counts[node] > 0 {
                nodes.firsts[node] = ids[nodes.firsts[node] as usize];
            }
            if !nodes.nexts.is_empty() && nodes.nexts[node] != NONE {
                nodes.nexts[node] = if node == 0 { NONE } else { ids[nodes.nexts[node] as usize] };
            }
        }
        self.become_root(own);
        Ok(())
    }

    /// Makes the returns of node 0, whose value is `own`, those of a root.
    fn become_root(&mut self, own: f64) {
        let gamma = self.config.gamma();
        let nodes = &mut self.nodes;
        let n = f64::from(nodes.visits[0]);
        let reward = nodes.reward(0);
        if !nodes.squares.is_empty() {
            // Of ((g - r) / gamma)^2, from sums of g and g^2.
            let square = nodes.squares[0] - 2.0 * reward * nodes.sums[0] + reward * reward * n;
            nodes.squares[0] = if gamma == 0.0 { 0.0 } else { (square / (gamma * gamma)).max(0.0) };
        }
        nodes.sums[0] = own * n;
        if !nodes.exact.is_empty() && nodes.flags[0] & flag::PROVEN != 0 {
            nodes.exact[0] = if gamma == 0.0 { 0.0 } else { (nodes.exact[0] - reward) / gamma };
        }
        nodes.flags[0] &= !flag::BARRED;
        if !nodes.rewards.is_empty() {
            nodes.rewards[0] = 0.0;
        }
        if !nodes.priors.is_empty() {
            nodes.priors[0] = 1.0;
        }
        if !nodes.actions.is_empty() {
            nodes.actions[0] = 0;
        }
        self.special = nodes.flags.iter().any(|flags| flags & flag::SPECIAL != 0);
    }
}
