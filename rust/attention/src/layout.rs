//! Which query sees which key, by segments.
//!
//! A row of tokens is one or more samples, a sample is a list of segments. A query sees its own segment by the
//! segment's [`Inner`] rule and other segments of its sample whole or not at all. By the rules, segment `s` sees an
//! earlier `r` that is not `hidden` where there is no window, `s - r <= window`, or `r` is an `anchor`; a given
//! relation between segments replaces the rules.
//!
//! The canonical form is what everything else reads: per segment, the key ranges outside it that all its queries
//! see, ascending and merged. It takes `O(S + ranges)` memory, never `N x N`.

use sensorium_core::{Error, Result};
use std::ops::Range;

/// How a query sees its own segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Inner {
    /// Not at all.
    None = 0,
    /// Itself alone.
    Diagonal = 1,
    /// Itself and what comes before it.
    Causal = 2,
    /// All of it.
    Full = 3,
}

/// A run of tokens that others see whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// How it sees itself.
    pub inner: Inner,
    /// Tokens, at least one.
    pub length: usize,
    /// Not seen by later segments.
    pub hidden: bool,
    /// Seen by later segments beyond the window.
    pub anchor: bool,
}

/// Segments that may see one another.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// In order.
    pub segments: &'a [Segment],
    /// Distance in segments up to which a segment is seen; none means any.
    pub window: Option<usize>,
    /// Row-major `(S, S)`: whether segment `s` sees segment `r`; replaces the rules. The diagonal says nothing.
    pub visible: Option<&'a [bool]>,
}

/// The canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where each segment starts, and the end of the last.
    starts: Vec<u32>,
    inner: Vec<Inner>,
    /// Where the ranges of each segment start in `ranges`, and the end of the last.
    first: Vec<usize>,
    ranges: Vec<Range<u32>>,
}

/// Most tokens in a row: positions are 32 bits wide.
const MAX_TOKENS: usize = i32::MAX as usize;
/// Most ranges of all segments together (512 MB); hidden segments that alternate with visible ones cost `S / 2` each.
const MAX_RANGES: usize = 1 << 26;

impl Layout {
    /// Builds the canonical form of samples in one row.
    ///
    /// # Errors
    /// [`Error::Value`] for a segment of no tokens, more than 2^31 - 1 tokens, or more than 2^26 ranges;
    /// [`Error::Len`] for a relation of another size than `S x S`.
    pub fn new(samples: &[Sample<'_>]) -> Result<Self> {
        let mut layout = Self { starts: vec![0], inner: Vec::new(), first: vec![0], ranges: Vec::new() };
        for sample in samples {
            layout.push(sample)?;
        }
        Ok(layout)
    }

    fn push(&mut self, sample: &Sample<'_>) -> Result<()> {
        let base = self.inner.len();
        for segment in sample.segments {
            if segment.length == 0 {
                return Err(Error::Value { arg: "length", what: "must be at least 1, not 0".into() });
            }
            let end = self.len().checked_add(segment.length).filter(|&n| n <= MAX_TOKENS);
            let end = end.ok_or_else(|| Error::Value {
                arg: "segments",
                what: format!("hold more than {MAX_TOKENS} tokens"),
            })?;
            self.starts.push(end as u32);
            self.inner.push(segment.inner);
        }
        let segments = sample.segments.len();
        if let Some(visible) = sample.visible {
            let want = sensorium_core::error::product("visible", &[segments, segments])?;
            sensorium_core::error::check_len("visible", visible, want)?;
            for s in 0..segments {
                let row = &visible[s * segments..(s + 1) * segments];
                self.push_ranges(base, (0..segments).filter(|&r| r != s && row[r]))?;
            }
            return Ok(());
        }
        let window = sample.window.unwrap_or(usize::MAX);
        let mut anchors: Vec<usize> = Vec::new();
        for s in 0..segments {
            let near = s.saturating_sub(window);
            // Segments that have just left the window stay where they are anchors.
            if near > 0 && s > window {
                let left = &sample.segments[near - 1];
                if left.anchor && !left.hidden {
                    anchors.push(near - 1);
                }
            }
            let near = (near..s).filter(|&r| !sample.segments[r].hidden);
            self.push_ranges(base, anchors.iter().copied().chain(near))?;
        }
        Ok(())
    }

    /// Appends the ranges of the next segment: those of `seen` segments, ascending, counted from `base`.
    fn push_ranges(&mut self, base: usize, seen: impl Iterator<Item = usize>) -> Result<()> {
        let first = self.ranges.len();
        for r in seen {
            let (start, end) = (self.starts[base + r], self.starts[base + r + 1]);
            match self.ranges[first..].last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => self.ranges.push(start..end),
            }
        }
        if self.ranges.len() > MAX_RANGES {
            return Err(Error::Value {
                arg: "segments",
                what: format!("see more than {MAX_RANGES} separate key ranges in all"),
            });
        }
        self.first.push(self.ranges.len());
        Ok(())
    }

    /// Tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts[self.starts.len() - 1] as usize
    }

    /// Whether it has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.inner.len()
    }

    /// Tokens of segment `s`.
    #[must_use]
    pub fn span(&self, s: usize) -> Range<u32> {
        self.starts[s]..self.starts[s + 1]
    }

    /// How segment `s` sees itself.
    #[must_use]
    pub fn inner(&self, s: usize) -> Inner {
        self.inner[s]
    }

    /// Key ranges outside segment `s` that all its queries see.
    #[must_use]
    pub fn ranges(&self, s: usize) -> &[Range<u32>] {
        &self.ranges[self.first[s]..self.first[s + 1]]
    }

    /// Segment of token `i`.
    pub(crate) fn segment_of(&self, i: u32) -> usize {
        self.starts.partition_point(|&start| start <= i) - 1
    }

    /// Keys of its own segment that query `i` of segment `s` sees.
    pub(crate) fn own(&self, s: usize, i: u32) -> Range<u32> {
        let span = self.span(s);
        match self.inner[s] {
            Inner::None => span.start..span.start,
            Inner::Diagonal => i..i + 1,
            Inner::Causal => span.start..i + 1,
            Inner::Full => span,
        }
    }

    /// Visible pairs of a query and a key.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        (0..self.segments())
            .map(|s| {
                let n = u64::from(self.span(s).end - self.span(s).start);
                let own = match self.inner[s] {
                    Inner::None => 0,
                    Inner::Diagonal => n,
                    Inner::Causal => n * (n + 1) / 2,
                    Inner::Full => n * n,
                };
                own + n * self.ranges(s).iter().map(|r| u64::from(r.end - r.start)).sum::<u64>()
            })
            .sum()
    }

    /// Writes the mask, row-major `(N, N)`: whether query `i` sees key `j`.
    ///
    /// # Errors
    /// [`Error::Len`] where `mask` has not `N * N` elements.
    pub fn dense(&self, mask: &mut [bool]) -> Result<()> {
        let n = self.len();
        let want = sensorium_core::error::product("mask", &[n, n])?;
        sensorium_core::error::check_len("mask", mask, want)?;
        mask.fill(false);
        for s in 0..self.segments() {
            for i in self.span(s) {
                let row = &mut mask[i as usize * n..][..n];
                for r in self.ranges(s).iter().cloned().chain([self.own(s, i)]) {
                    row[r.start as usize..r.end as usize].fill(true);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(inner: Inner, length: usize) -> Segment {
        Segment { inner, length, hidden: false, anchor: false }
    }

    fn mask(layout: &Layout) -> String {
        let n = layout.len();
        let mut dense = vec![false; n * n];
        layout.dense(&mut dense).unwrap();
        assert_eq!(dense.iter().filter(|&&x| x).count() as u64, layout.pairs());
        let row =
            |i: usize| dense[i * n..][..n].iter().map(|&x| if x { '1' } else { '.' }).collect::<String>();
        (0..n).map(row).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn text_then_image() {
        let segments = [segment(Inner::Causal, 2), segment(Inner::Full, 2)];
        let layout = Layout::new(&[Sample { segments: &segments, window: None, visible: None }]).unwrap();
        assert_eq!(mask(&layout), "1... 11.. 1111 1111");
        assert_eq!(layout.ranges(1), std::slice::from_ref(&(0..2)));
    }

    #[test]
    fn window_and_anchor_and_hidden() {
        let mut segments = vec![segment(Inner::Full, 1); 5];
        segments[0].anchor = true;
        segments[3].hidden = true;
        let layout = Layout::new(&[Sample { segments: &segments, window: Some(1), visible: None }]).unwrap();
        assert_eq!(mask(&layout), "1.... 11... 111.. 1.11. 1...1");
    }

    #[test]
    fn samples_do_not_see_each_other_and_a_relation_replaces_the_rules() {
        let segments = [segment(Inner::Diagonal, 1), segment(Inner::None, 2)];
        let visible = [false, true, false, true];
        let layout = Layout::new(&[
            Sample { segments: &segments, window: None, visible: None },
            Sample { segments: &segments, window: None, visible: Some(&visible) },
        ])
        .unwrap();
        assert_eq!(mask(&layout), "1..... 1..... 1..... ...111 ...... ......");
    }

    #[test]
    fn errors_name_the_argument() {
        let build = |segments: &[Segment], visible| {
            Layout::new(&[Sample { segments, window: None, visible }]).unwrap_err().to_string()
        };
        assert_eq!(build(&[segment(Inner::Full, 0)], None), "length must be at least 1, not 0");
        let half = segment(Inner::Full, MAX_TOKENS / 2 + 1);
        assert_eq!(build(&[half, half], None), "segments hold more than 2147483647 tokens");
        assert_eq!(
            build(&[segment(Inner::Full, 1)], Some(&[true, false])),
            "visible has 2 elements, expected 1"
        );
    }
}
