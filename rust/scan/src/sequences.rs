//! Where the sequences of a batch begin, end, and keep their states.
//!
//! A batch has `batch` rows of `length` tokens. Either a state belongs to a row: its first sequence begins from the
//! initial state of the row, its last one leaves the row's last state, and those between begin from zero. Or the
//! batch is one row of packed sequences, each with states of its own.

use sensorium_core::{Error, Result};

/// One sequence: tokens `start..end` of row `row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Row of the batch.
    pub row: usize,
    /// First token.
    pub start: usize,
    /// Token after the last one; `start` where the sequence is empty.
    pub end: usize,
    /// Which initial state it begins from; from zero where `None`.
    pub initial: Option<usize>,
    /// Which last state it leaves; none where `None`.
    pub last: Option<usize>,
}

/// All sequences of a batch, in order of rows and tokens. Together they hold every token once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    list: Vec<Sequence>,
    batch: usize,
    length: usize,
    states: usize,
}

impl Sequences {
    /// One sequence a row.
    #[must_use]
    pub fn whole(batch: usize, length: usize) -> Self {
        let list = (0..batch)
            .map(|row| Sequence { row, start: 0, end: length, initial: Some(row), last: Some(row) })
            .collect();
        Self { list, batch, length, states: batch }
    }

    /// A sequence begins at every token of `ids (batch, length)` that differs from the one before.
    ///
    /// # Errors
    /// [`Error::Len`] where `ids` has another size.
    pub fn from_ids(batch: usize, length: usize, ids: &[i64]) -> Result<Self> {
        sensorium_core::error::check_len("seq_idx", ids, batch * length)?;
        if length == 0 {
            return Ok(Self::whole(batch, length));
        }
        let mut list = Vec::with_capacity(batch);
        for (row, ids) in ids.chunks_exact(length).enumerate() {
            let mut start = 0;
            for end in 1..=length {
                if end == length || ids[end] != ids[end - 1] {
                    let initial = (start == 0).then_some(row);
                    let last = (end == length).then_some(row);
                    list.push(Sequence { row, start, end, initial, last });
                    start = end;
                }
            }
        }
        Ok(Self { list, batch, length, states: batch })
    }

    /// One row of packed sequences: sequence `i` holds tokens `offsets[i]..offsets[i + 1]` and has states of its own.
    ///
    /// # Errors
    /// [`Error::Value`] where the offsets do not rise from 0 to `length`.
    pub fn from_offsets(length: usize, offsets: &[i64]) -> Result<Self> {
        let wrong = |what| Error::Value { arg: "cu_seqlens", what };
        if offsets.first() != Some(&0) {
            return Err(wrong("must begin with 0".into()));
        }
        if offsets.last().map(|&last| usize::try_from(last)) != Some(Ok(length)) {
            return Err(wrong(format!("must end with the length, {length}")));
        }
        let mut list = Vec::with_capacity(offsets.len() - 1);
        for (i, pair) in offsets.windows(2).enumerate() {
            let [start, end] = [pair[0] as usize, pair[1] as usize];
            if pair[1] < pair[0] {
                return Err(wrong(format!("must not fall, but {} follows {}", pair[1], pair[0])));
            }
            list.push(Sequence { row: 0, start, end, initial: Some(i), last: Some(i) });
        }
        Ok(Self { states: list.len(), list, batch: 1, length })
    }

    /// The sequences.
    #[must_use]
    pub fn list(&self) -> &[Sequence] {
        &self.list
    }

    /// Rows.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of a row.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Initial states, and last states: as many as rows, or as packed sequences.
    #[must_use]
    pub fn states(&self) -> usize {
        self.states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_begin_a_sequence_where_they_change() {
        let s = Sequences::from_ids(2, 3, &[4, 4, 1, 7, 7, 7]).unwrap();
        assert_eq!(
            s.list(),
            [
                Sequence { row: 0, start: 0, end: 2, initial: Some(0), last: None },
                Sequence { row: 0, start: 2, end: 3, initial: None, last: Some(0) },
                Sequence { row: 1, start: 0, end: 3, initial: Some(1), last: Some(1) },
            ]
        );
        assert_eq!(s.states(), 2);
        assert_eq!(Sequences::from_ids(2, 0, &[]).unwrap(), Sequences::whole(2, 0));
        assert!(Sequences::from_ids(1, 3, &[0, 0]).is_err());
    }

    #[test]
    fn offsets_give_each_sequence_its_states() {
        let s = Sequences::from_offsets(5, &[0, 2, 2, 5]).unwrap();
        assert_eq!(s.states(), 3);
        assert_eq!(s.list()[1], Sequence { row: 0, start: 2, end: 2, initial: Some(1), last: Some(1) });
        for (offsets, words) in [
            (&[][..], "cu_seqlens must begin with 0"),
            (&[1, 5], "cu_seqlens must begin with 0"),
            (&[0, 4], "cu_seqlens must end with the length, 5"),
            (&[0, -5], "cu_seqlens must end with the length, 5"),
            (&[0, 4, 3, 5], "cu_seqlens must not fall, but 3 follows 4"),
            (&[0, 9, 5], "cu_seqlens must not fall, but 5 follows 9"),
        ] {
            assert_eq!(Sequences::from_offsets(5, offsets).unwrap_err().to_string(), words);
        }
        assert_eq!(Sequences::from_offsets(0, &[0]).unwrap().states(), 0);
    }
}
