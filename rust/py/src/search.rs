//! Bindings of `sensorium-search`.
//!
//! A tree is behind a lock. Whoever holds it calls nothing of Python's, and waits for nobody: a call of a few walks
//! keeps the interpreter, a longer one lets it go first.

use crate::array::{Input, optional};
use crate::door::{self, ArgumentError, MemoryLimitError, SensoriumError};
use numpy::{Element, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict, PyInt};
use sensorium_search::{
    Config, Counters, Counts, Error, Expansion, NONE, Nodes, Policy, Result, Tree, Widening,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

type Array<'py> = Bound<'py, PyAny>;

/// Walks or leaves of a call from which on it lets the interpreter go: some microseconds.
const LONG: usize = 128;

/// A search tree; `sensorium.search.Tree` is its public face.
#[pyclass(frozen, module = "sensorium._core")]
pub(crate) struct SearchTree {
    tree: Mutex<Tree>,
}

fn translate(error: Error) -> PyErr {
    match error {
        Error::Argument(error) => door::translate(error),
        error => MemoryLimitError::new_err(error.to_string()),
    }
}

/// `f()`, with errors and panics made exceptions.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => done.map_err(translate),
        Err(panic) => Err(door::internal(panic.as_ref())),
    }
}

fn array<'py, T: Element>(py: Python<'py>, of: &[T]) -> Array<'py> {
    PyArray1::from_slice(py, of).into_any()
}

fn ids(of: &[u32]) -> Vec<i64> {
    of.iter().map(|&id| i64::from(id)).collect()
}

/// The policy of that name, and how children are added: `widening+` before the name of another, and two numbers more.
fn policy(name: &str, p: &[Option<f64>]) -> PyResult<(Policy, Option<Widening>)> {
    if let (Some(name), &[Some(k), Some(alpha), ref p @ ..]) = (name.strip_prefix("widening+"), p) {
        return Ok((plain_policy(name, p)?, Some(Widening { k, alpha })));
    }
    Ok((plain_policy(name, p)?, None))
}

fn plain_policy(name: &str, p: &[Option<f64>]) -> PyResult<Policy> {
    Ok(match (name, p) {
        ("ucb1", &[Some(c)]) => Policy::Ucb1 { c },
        ("ucb1_tuned", &[]) => Policy::Ucb1Tuned,
        ("puct", &[Some(c), base, unvisited]) => Policy::Puct { c, base, unvisited },
        ("epsilon_greedy", &[Some(epsilon)]) => Policy::EpsilonGreedy { epsilon },
        ("thompson_gaussian", &[Some(mean), Some(strength), Some(shape), Some(scale)]) => {
            Policy::ThompsonGaussian { mean, strength, shape, scale }
        }
        ("branch_gaussian", &[Some(mean), Some(strength), Some(shape), Some(scale)]) => {
            Policy::BranchGaussian { mean, strength, shape, scale }
        }
        ("branch_beta", &[Some(alpha), Some(beta)]) => Policy::BranchBeta { alpha, beta },
        ("thompson_beta", &[Some(alpha), Some(beta)]) => Policy::ThompsonBeta { alpha, beta },
        _ => {
            return Err(ArgumentError::new_err(format!("policy {name:?} is unknown, or has other settings")));
        }
    })
}

impl SearchTree {
    /// `f` of the tree, the interpreter released where that takes long.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        long: bool,
        f: impl FnOnce(&mut Tree) -> Result<T> + Send,
    ) -> PyResult<T> {
        let run = || {
            // A panic while the lock was held may have left anything.
            let mut tree = self.tree.lock().map_err(|_| SensoriumError::new_err("the tree is broken"))?;
            caught(|| f(&mut tree))
        };
        if long { py.detach(run) } else { run() }
    }

    /// What `f` reads from the tree.
    fn read<T: Send>(&self, py: Python<'_>, f: impl FnOnce(&Tree) -> Result<T> + Send) -> PyResult<T> {
        self.with(py, false, |tree| f(tree))
    }
}

/// The integer that `name` names.
fn integer(tree: &Tree, name: &str, node: usize) -> Option<i64> {
    let nodes = tree.nodes();
    Some(match name {
        "actions" => i64::from(nodes.action(node)),
        "counts" => i64::from(nodes.counts[node]),
        "firsts" => i64::from(nodes.firsts[node]),
        "flags" => i64::from(nodes.flags[node]),
        "ids" => node as i64,
        "parents" if nodes.parents[node] == NONE => -1,
        "parents" => i64::from(nodes.parents[node]),
        "visits" => i64::from(nodes.visits[node]),
        "waiting" => i64::from(nodes.waiting[node]),
        _ => return None,
    })
}

/// The number that `name` names.
fn float(tree: &Tree, name: &str, node: usize) -> Option<f64> {
    let nodes = tree.nodes();
    let held = |column: &[f64]| column.get(node).copied().unwrap_or(0.0);
    Some(match name {
        "costs" => held(&nodes.costs),
        "exact" if nodes.flags[node] & sensorium_search::flag::PROVEN == 0 => f64::NAN,
        "exact" => held(&nodes.exact),
        "means" | "values" if nodes.visits[node] == 0 => f64::NAN,
        "means" => nodes.sums[node] / f64::from(nodes.visits[node]),
        "priors" => f64::from(nodes.prior(node)),
        "rewards" => held(&nodes.rewards),
        "squares" => held(&nodes.squares),
        "sums" => nodes.sums[node],
        "values" => tree.value(node),
        _ => return None,
    })
}

/// Either kind of column.
enum Column {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

/// What `name` names, of each of `nodes`.
fn column(tree: &Tree, name: &str, nodes: impl Iterator<Item = usize> + Clone) -> Result<Column> {
    if let Some(of) = nodes.clone().map(|node| integer(tree, name, node)).collect() {
        return Ok(Column::Integers(of));
    }
    if let Some(of) = nodes.map(|node| float(tree, name, node)).collect() {
        return Ok(Column::Floats(of));
    }
    let what = format!("must not be {name:?}");
    Err(Error::Argument(sensorium_core::Error::Value { arg: "name", what }))
}

fn into_array<'py>(py: Python<'py>, column: &Column) -> Array<'py> {
    match column {
        Column::Integers(of) => array(py, of),
        Column::Floats(of) => array(py, of),
    }
}

macro_rules! columns {
    ($action:ident) => {
        $action! {
            parents: u32, firsts: u32, counts: u32, visits: u32, waiting: u32, sums: f64, flags: u8,
            squares: f64, priors: f32, rewards: f64, exact: f64, costs: f64, actions: i32, nexts: u32, owns: f64
        }
    };
}

#[pymethods]
impl SearchTree {
    /// A tree with these settings; the root alone, or the nodes of `columns`.
    #[new]
    #[pyo3(signature = (name, parameters, discount, players, normalise, virtual_loss, win, max_nodes, max_bytes, seed,
        columns=None, counters=None))]
    fn new(
        py: Python<'_>,
        name: &str,
        parameters: Vec<Option<f64>>,
        discount: f64,
        players: u8,
        normalise: bool,
        virtual_loss: f64,
        win: Option<f64>,
        max_nodes: usize,
        max_bytes: usize,
        seed: u64,
        columns: Option<&Bound<'_, PyDict>>,
        counters: Option<(u64, f64, f64)>,
    ) -> PyResult<Self> {
        let (policy, widening) = policy(name, &parameters)?;
        let config = Config {
            policy,
            widening,
            discount,
            players,
            normalise,
            virtual_loss,
            win,
            max_nodes,
            max_bytes,
            seed,
        };
        let tree = match columns {
            None => caught(|| Tree::new(config))?,
            Some(columns) => {
                let mut nodes = Nodes::default();
                macro_rules! take {
                    ($($field:ident: $t:ty),*) => {
                        $(if let Some(column) = columns.get_item(stringify!($field))? {
                            nodes.$field = Input::<$t>::new(stringify!($field), &column)?.as_slice().to_vec();
                        })*
                    };
                }
                columns!(take);
                let (draws, low, high) = counters.unwrap_or((0, f64::INFINITY, f64::NEG_INFINITY));
                py.detach(|| caught(|| Tree::restore(config, nodes, Counters { draws, low, high })))?
            }
        };
        Ok(Self { tree: Mutex::new(tree) })
    }

    /// Ids of the leaves that `batch` walks hand out.
    fn select<'py>(&self, py: Python<'py>, batch: usize) -> PyResult<Array<'py>> {
        let mut out = Vec::new();
        self.with(py, batch > LONG, |tree| tree.select(batch, &mut out))?;
        Ok(array(py, &ids(&out)))
    }

    /// Gives leaves children; `counts` is one number for all, or an array.
    #[pyo3(signature = (leaves, counts, actions=None, priors=None, rewards=None, terminal=None, forbidden=None))]
    fn expand<'py>(
        &self,
        py: Python<'py>,
        leaves: Array<'py>,
        counts: Array<'py>,
        actions: Option<Array<'py>>,
        priors: Option<Array<'py>>,
        rewards: Option<Array<'py>>,
        terminal: Option<Array<'py>>,
        forbidden: Option<Array<'py>>,
    ) -> PyResult<()> {
        let leaves = Input::<i64>::new("leaves", &leaves)?;
        let actions = optional::<i32>("actions", actions.as_ref())?;
        let priors = optional::<f64>("priors", priors.as_ref())?;
        let rewards = optional::<f64>("rewards", rewards.as_ref())?;
        let terminal = optional::<bool>("terminal", terminal.as_ref())?;
        let forbidden = optional::<bool>("forbidden", forbidden.as_ref())?;
        let each;
        let counts = if counts.is_instance_of::<PyInt>() {
            Counts::Same(counts.extract()?)
        } else {
            each = Input::<i64>::new("children", &counts)?;
            Counts::Each(each.as_slice())
        };
        let leaves = leaves.as_slice();
        let with = Expansion {
            counts,
            actions: actions.as_ref().map(Input::as_slice),
            priors: priors.as_ref().map(Input::as_slice),
            rewards: rewards.as_ref().map(Input::as_slice),
            terminal: terminal.as_ref().map(Input::as_slice),
            forbidden: forbidden.as_ref().map(Input::as_slice),
        };
        self.with(py, leaves.len() > LONG, |tree| tree.expand(leaves, &with))
    }

    /// Tells the values of leaves.
    #[pyo3(signature = (leaves, values, costs=None))]
    fn backup<'py>(
        &self,
        py: Python<'py>,
        leaves: Array<'py>,
        values: Array<'py>,
        costs: Option<Array<'py>>,
    ) -> PyResult<()> {
        let leaves = Input::<i64>::new("leaves", &leaves)?;
        let values = Input::<f64>::new("values", &values)?;
        let costs = optional::<f64>("cost", costs.as_ref())?;
        let (leaves, values) = (leaves.as_slice(), values.as_slice());
        let costs = costs.as_ref().map(Input::as_slice);
        self.with(py, leaves.len() > LONG, |tree| tree.backup(leaves, values, costs))
    }

    /// Takes leaves back.
    fn release(&self, py: Python<'_>, leaves: Array<'_>) -> PyResult<()> {
        let leaves = Input::<i64>::new("leaves", &leaves)?;
        let leaves = leaves.as_slice();
        self.with(py, leaves.len() > LONG, |tree| tree.release(leaves))
    }

    /// Takes leaves back that cannot be evaluated.
    fn fail(&self, py: Python<'_>, leaves: Array<'_>) -> PyResult<()> {
        let leaves = Input::<i64>::new("leaves", &leaves)?;
        let leaves = leaves.as_slice();
        self.with(py, leaves.len() > LONG, |tree| tree.fail(leaves))
    }

    /// Forbids actions, or allows them again.
    fn forbid(&self, py: Python<'_>, nodes: Array<'_>, forbidden: bool) -> PyResult<()> {
        let nodes = Input::<i64>::new("nodes", &nodes)?;
        let nodes = nodes.as_slice();
        self.with(py, true, |tree| tree.forbid(nodes, forbidden))
    }

    /// Numbers the actions that lead to nodes.
    fn name(&self, py: Python<'_>, nodes: Array<'_>, actions: Array<'_>) -> PyResult<()> {
        let nodes = Input::<i64>::new("nodes", &nodes)?;
        let actions = Input::<i32>::new("actions", &actions)?;
        let (nodes, actions) = (nodes.as_slice(), actions.as_slice());
        self.with(py, nodes.len() > LONG, |tree| tree.name(nodes, actions))
    }

    /// Makes a node the root.
    fn reroot(&self, py: Python<'_>, node: i64) -> PyResult<()> {
        self.with(py, true, |tree| tree.reroot(node))
    }

    /// Number of nodes.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |tree| Ok(tree.nodes().len()))
    }

    /// Walks, those under way included.
    #[getter]
    fn simulations(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |tree| Ok(tree.simulations()))
    }

    /// Bytes that the nodes take, without spare capacity.
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |tree| Ok(tree.nodes().len() * tree.nodes().width()))
    }

    /// Random draws so far, and the smallest and largest mean.
    #[getter]
    fn counters(&self, py: Python<'_>) -> PyResult<(u64, f64, f64)> {
        self.read(py, |tree| {
            let Counters { draws, low, high } = tree.counters();
            Ok((draws, low, high))
        })
    }

    /// Ids of the leaves that are handed out.
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<Array<'py>> {
        Ok(array(py, &ids(&self.read(py, |tree| Ok(tree.waiting()))?)))
    }

    /// The child to take, -1 where there is none.
    fn best_child(&self, py: Python<'_>, node: i64) -> PyResult<i64> {
        self.read(py, |tree| {
            let child = tree.best_child(tree.check_id("node", node)?);
            Ok(if child == NONE { -1 } else { i64::from(child) })
        })
    }

    /// Ids along the best children.
    fn best_path<'py>(&self, py: Python<'py>, node: i64) -> PyResult<Array<'py>> {
        Ok(array(py, &ids(&self.read(py, |tree| tree.best_path(node))?)))
    }

    /// Ids from the root, without it, to a node.
    fn path<'py>(&self, py: Python<'py>, node: i64) -> PyResult<Array<'py>> {
        Ok(array(py, &ids(&self.read(py, |tree| tree.path(node))?)))
    }

    /// A column over the children of a node.
    fn block<'py>(&self, py: Python<'py>, name: &str, node: i64) -> PyResult<Array<'py>> {
        let of = self.read(py, |tree| {
            let node = tree.check_id("node", node)?;
            column(tree, name, tree.nodes().children(node))
        })?;
        Ok(into_array(py, &of))
    }

    /// A column over any nodes.
    fn gather<'py>(&self, py: Python<'py>, name: &str, nodes: Array<'py>) -> PyResult<Array<'py>> {
        let nodes = Input::<i64>::new("nodes", &nodes)?;
        let nodes = nodes.as_slice();
        let of = self.read(py, |tree| {
            for &node in nodes {
                tree.check_id("nodes", node)?;
            }
            column(tree, name, nodes.iter().map(|&node| node as usize))
        })?;
        Ok(into_array(py, &of))
    }

    /// All columns that hold something, by name.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let nodes = self.with(py, true, |tree| Ok(tree.nodes().clone()))?;
        let out = PyDict::new(py);
        macro_rules! give {
            ($($field:ident: $t:ty),*) => {
                $(if !nodes.$field.is_empty() {
                    out.set_item(stringify!($field), PyArray1::from_vec(py, nodes.$field))?;
                })*
            };
        }
        columns!(give);
        Ok(out)
    }
}
