//! Walks that add children, one at a time, where a state has more actions than can be listed: a generator's answers.
//!
//! A new child is handed out like any leaf, before it is known what it will be; its value says that it is there. Only
//! children that are there are walked through. One that was released is handed out again before another is added.
//!
//! Progressive widening adds a child while there are fewer than `ceil(k N^alpha)`. Adaptive branching draws: from the
//! posterior of what new children of the node were worth when they came, and from that of all that came below them.
//! The larger says whether to add one, or to go on to the child of the largest draw. Thompson draws differ, and new
//! children are apart by themselves, so leaves under way count as nothing here.

use crate::config::{Policy, Widening};
use crate::error::Result;
use crate::nodes::{NONE, flag};
use crate::score::{Block, largest, score};
use crate::select::COLLISIONS;
use crate::tree::Tree;

/// What is known of the children of a node that are there, gathered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    ids: Vec<u32>,
    visits: Vec<u32>,
    waiting: Vec<u32>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// A child that is not there and not handed out.
    spare: Option<usize>,
    /// The last child.
    last: Option<usize>,
    /// Children that are there or may yet be.
    alive: usize,
    /// Of what children were worth when they came: number, sum, sum of squares.
    came: (u32, f64, f64),
    /// Of what came below them.
    below: (u32, f64, f64),
}

/// What a walk does at a node.
enum Step {
    Add,
    Go(usize),
    /// All children are under way.
    Wait,
}

impl Tree {
    /// As [`select`](Self::select), where walks add children. A refusal takes back the leaves of this call.
    pub(crate) fn select_open(&mut self, batch: usize, out: &mut Vec<u32>) -> Result<()> {
        let most = batch.clamp(COLLISIONS.0, COLLISIONS.1);
        let (mut told, mut waits) = (0, 0);
        while out.len() + told + waits < batch && waits < most {
            match self.walk_open() {
                Ok(Some((node, true))) => {
                    let g = self.known(node);
                    self.add(node, g, 0);
                    told += 1;
                }
                Ok(Some((leaf, false))) => {
                    self.nodes.flags[leaf] |= flag::WAITING;
                    self.mark(leaf);
                    self.handed_out += 1;
                    out.push(leaf as u32);
                }
                Ok(None) => waits += 1,
                Err(error) => {
                    for leaf in out.drain(..) {
                        self.nodes.flags[leaf as usize] &= !flag::WAITING;
                        self.unmark(leaf as usize);
                        self.handed_out -= 1;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The node where a walk ends, and whether its return is known; nothing where all is under way.
    fn walk_open(&mut self) -> Result<Option<(usize, bool)>> {
        let mut node = 0;
        loop {
            if self.nodes.flags[node] & flag::TERMINAL != 0 {
                return Ok(Some((node, true)));
            }
            self.gather(node);
            match self.step(node) {
                Step::Go(child) => node = child,
                Step::Wait => return Ok(None),
                Step::Add => {
                    return match self.family.spare {
                        Some(child) => Ok(Some((child, false))),
                        None => self.add_child(node).map(|child| Some((child, false))),
                    };
                }
            }
        }
    }

    /// Reads the children of `node` into `family`.
    fn gather(&mut self, node: usize) {
        let Self { nodes, family, .. } = self;
        let mut of = std::mem::take(family);
        of.ids.clear();
        of.visits.clear();
        of.waiting.clear();
        of.sums.clear();
        of.squares.clear();
        (of.spare, of.last, of.alive) = (None, None, 0);
        (of.came, of.below) = ((0, 0.0, 0.0), (0, 0.0, 0.0));
        for child in nodes.children(node) {
            of.last = Some(child);
            let flags = nodes.flags[child];
            let square = nodes.squares.get(child).copied().unwrap_or(0.0);
            if nodes.visits[child] > 0 && !nodes.owns.is_empty() {
                // What came counts, even where it may not be taken any more.
                let (visits, sum, own) = (nodes.visits[child], nodes.sums[child], nodes.owns[child]);
                of.came = (of.came.0 + 1, of.came.1 + own, of.came.2 + own * own);
                let below = (sum - own, square - own * own);
                of.below = (of.below.0 + visits - 1, of.below.1 + below.0, of.below.2 + below.1);
            }
            if flags & flag::BARRED != 0 {
                continue;
            }
            of.alive += 1;
            if nodes.visits[child] > 0 {
                of.ids.push(child as u32);
                of.visits.push(nodes.visits[child]);
                of.waiting.push(nodes.waiting[child]);
                of.sums.push(nodes.sums[child]);
                of.squares.push(square);
            } else if flags & flag::WAITING == 0 && of.spare.is_none() {
                of.spare = Some(child);
            }
        }
        self.family = of;
    }

    /// What to do at `node`, whose children are in `family`.
    fn step(&mut self, node: usize) -> Step {
        let branches = self.config.policy.branches();
        if let Some(Widening { k, alpha }) = self.config.widening {
            // This walk counts.
            let n = f64::from(self.nodes.visits[node]) + f64::from(self.nodes.waiting[node]) + 1.0;
            if (self.family.alive as f64) < (k * n.powf(alpha)).ceil() || self.family.spare.is_some() {
                return Step::Add;
            }
            if self.family.ids.is_empty() {
                return Step::Wait;
            }
        } else {
            if self.family.ids.is_empty() {
                return Step::Add;
            }
            let new = self.draw(self.family.came);
            let old = self.draw(self.family.below);
            if new >= old {
                return Step::Add;
            }
        }
        let scale = self.scale();
        let total = f64::from((self.nodes.visits[node] + self.nodes.waiting[node]).max(1));
        let own = match self.config.policy {
            Policy::Puct { unvisited: None, .. } => scale.of(self.value(node)),
            _ => 0.0,
        };
        let Self { family, scores, scratch, draws, config, .. } = self;
        let count = family.ids.len();
        if branches {
            family.waiting.fill(0);
        }
        if scores.len() < count {
            scores.resize(2 * count, 0.0);
            scratch.resize(2 * count, 0.0);
        }
        let block = Block {
            visits: &family.visits,
            waiting: &family.waiting,
            sums: &family.sums,
            squares: &family.squares,
            priors: &[],
        };
        score(config.policy, block, scale, total, own, draws, &mut scratch[..count], &mut scores[..count]);
        // Scores are finite or infinity, never minus infinity: all these children may be taken.
        largest(&scores[..count]).map_or(Step::Wait, |i| Step::Go(family.ids[i] as usize))
    }

    /// A draw from the posterior of the mean, given number, sum and sum of squares.
    fn draw(&mut self, (n, sum, square): (u32, f64, f64)) -> f64 {
        let block = Block { visits: &[n], waiting: &[0], sums: &[sum], squares: &[square], priors: &[] };
        let mut out = [0.0];
        let scale = self.scale();
        score(self.config.policy, block, scale, 1.0, 0.0, &mut self.draws, &mut [0.0], &mut out);
        out[0]
    }

    /// A new last child of `node`, whose children are in `family`.
    fn add_child(&mut self, node: usize) -> Result<usize> {
        let (max_nodes, max_bytes) = (self.config.max_nodes, self.config.max_bytes);
        self.nodes.check_room(1, self.nodes.width(), max_nodes, max_bytes)?;
        let child = self.nodes.len();
        self.nodes.extend(1, max_nodes, max_bytes)?;
        let nodes = &mut self.nodes;
        nodes.parents[child] = node as u32;
        nodes.nexts[child] = NONE;
        nodes.actions[child] = nodes.counts[node] as i32;
        nodes.counts[node] += 1;
        match self.family.last {
            Some(last) => nodes.nexts[last] = child as u32,
            None => nodes.firsts[node] = child as u32,
        }
        Ok(child)
    }
}
