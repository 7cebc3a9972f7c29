//! The samples of a batch: one plan for all of them, or one each.

use crate::plan::Plan;
use crate::view::Dims;
use sensorium_core::{Error, Result};

/// Tasks of a call, in order: samples, groups of heads of a sample, parts of a group's work.
pub(crate) struct Tasks {
    /// Parts of a group, by plan.
    parts: Vec<usize>,
    /// Tasks before each sample; empty where one plan serves all samples.
    first: Vec<usize>,
    groups: usize,
    /// Tasks in all.
    pub(crate) count: usize,
}

/// Where a task is.
pub(crate) struct Place {
    /// Sample.
    pub(crate) batch: usize,
    /// Which of the plans.
    pub(crate) plan: usize,
    /// Group of heads within the sample.
    pub(crate) group: usize,
    /// Part of the group's work, of `parts`.
    pub(crate) part: usize,
    pub(crate) parts: usize,
}

impl Tasks {
    /// Tasks of `batch` samples with `groups` each; `parts` says how many parts a group has under each plan.
    pub(crate) fn new(batch: usize, groups: usize, parts: Vec<usize>) -> Self {
        let mut first = Vec::new();
        let mut count = 0;
        if let [one] = parts.as_slice() {
            count = batch * groups * one;
        } else {
            for parts in &parts {
                first.push(count);
                count += groups * parts;
            }
        }
        Self { parts, first, groups, count }
    }

    pub(crate) fn place(&self, task: usize) -> Place {
        if self.first.is_empty() {
            let parts = self.parts[0];
            let group = task / parts;
            return Place {
                batch: group / self.groups,
                plan: 0,
                group: group % self.groups,
                part: task % parts,
                parts,
            };
        }
        // A sample of no tasks starts where the next one does.
        let batch = self.first.partition_point(|&first| first <= task) - 1;
        let (parts, at) = (self.parts[batch], task - self.first[batch]);
        Place { batch, plan: batch, group: at / parts, part: at % parts, parts }
    }
}

/// Checks that there is one plan for all samples or one each, and that they are of the call's sizes.
pub(crate) fn check(dims: Dims, plans: &[&Plan]) -> Result<()> {
    if plans.len() != 1 && plans.len() != dims.batch {
        let what = format!("has {} plans, expected 1 or B={}", plans.len(), dims.batch);
        return Err(Error::Value { arg: "layout", what });
    }
    for plan in plans {
        if plan.queries() != dims.queries {
            return Err(Error::Dim { arg: "q", dim: "N", want: plan.queries(), got: dims.queries });
        }
        if plan.keys() != dims.keys {
            return Err(Error::Dim { arg: "k", dim: "N", want: plan.keys(), got: dims.keys });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_its_place() {
        for (batch, parts) in [(3, vec![2]), (3, vec![2, 1, 4]), (1, vec![5]), (2, vec![1, 1])] {
            let tasks = Tasks::new(batch, 2, parts.clone());
            let mut task = 0;
            for b in 0..batch {
                let n = parts[if parts.len() == 1 { 0 } else { b }];
                for (group, part) in (0..2).flat_map(|g| (0..n).map(move |p| (g, p))) {
                    let place = tasks.place(task);
                    assert_eq!((place.batch, place.group, place.part, place.parts), (b, group, part, n));
                    task += 1;
                }
            }
            assert_eq!(task, tasks.count);
        }
    }
}
