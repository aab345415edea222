//! Which of the student's hidden states is compared with which of the teacher's.
//!
//! States are numbered as DistillKit does, which is transformers' `hidden_states`: 0 is the embedding's output, i that
//! of block i (counted from 1), and the number of blocks L the last block's output after the final norm.

use std::collections::BTreeSet;

/// `layer_mapping` of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerMapping {
    /// `all`, as DistillKit's: state i with state i, for i from 0 (the embeddings) to the student's layers - 1; its
    /// final state is left out.
    All,
    /// `last`: the final state with the final state.
    Last,
    /// `uniform`: state i of the student, from 1 to its last, with state i L / l of the teacher, rounded (TinyBERT's
    /// map, arXiv 1909.10351, for any two depths).
    Uniform,
    /// `[[student, teacher], ...]`; a negative number counts from the end, -1 being the final state.
    Pairs(Vec<[i64; 2]>),
}

impl LayerMapping {
    /// The pairs [student's state, teacher's state] for models of so many blocks, or every reason why there are none.
    pub fn pairs(&self, student: usize, teacher: usize) -> Result<Vec<[usize; 2]>, Vec<String>> {
        match self {
            LayerMapping::All => resolve((0..student as i64).map(|i| [i, i]), student, teacher),
            LayerMapping::Last => Ok(vec![[student, teacher]]),
            LayerMapping::Uniform => {
                Ok((1..=student).map(|i| [i, (2 * i * teacher + student) / (2 * student)]).collect())
            }
            LayerMapping::Pairs(pairs) => resolve(pairs.iter().copied(), student, teacher),
        }
    }
}

/// The map of a student that was made of some layers (from 0) of a teacher of `teacher` blocks: each block's output
/// with that of the block it was, the final state with the final state.
pub fn kept_layers(layers: &[usize], teacher: usize) -> Vec<[usize; 2]> {
    let last = layers.len().saturating_sub(1);
    let own = |(i, &layer): (usize, &usize)| if i == last { [i + 1, teacher] } else { [i + 1, layer + 1] };
    layers.iter().enumerate().map(own).collect()
}

fn resolve(
    pairs: impl Iterator<Item = [i64; 2]>,
    student: usize,
    teacher: usize,
) -> Result<Vec<[usize; 2]>, Vec<String>> {
    let (mut found, mut problems, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for pair in pairs {
        let sides = [("student", pair[0], student), ("teacher", pair[1], teacher)];
        let states = sides.map(|(who, index, layers)| {
            let from_start = if index < 0 { index.saturating_add(layers as i64 + 1) } else { index };
            let state = usize::try_from(from_start).ok().filter(|state| *state <= layers);
            if state.is_none() {
                problems.push(format!("[{}, {}]: the {who} has states 0 to {layers}", pair[0], pair[1]));
            }
            state
        });
        if let [Some(student), Some(teacher)] = states {
            if !seen.insert([student, teacher]) {
                problems.push(format!("[{}, {}] a second time", pair[0], pair[1]));
            }
            found.push([student, teacher]);
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_follow_their_conventions() {
        assert_eq!(LayerMapping::All.pairs(3, 3).unwrap(), [[0, 0], [1, 1], [2, 2]]);
        assert_eq!(LayerMapping::Last.pairs(3, 8).unwrap(), [[3, 8]]);
        // TinyBERT: 4 of 12 layers, g(m) = 3 m.
        assert_eq!(LayerMapping::Uniform.pairs(4, 12).unwrap(), [[1, 3], [2, 6], [3, 9], [4, 12]]);
        assert_eq!(LayerMapping::Uniform.pairs(3, 4).unwrap(), [[1, 1], [2, 3], [3, 4]]);
        assert_eq!(LayerMapping::Uniform.pairs(4, 2).unwrap(), [[1, 1], [2, 1], [3, 2], [4, 2]]);
        let pairs = LayerMapping::Pairs(vec![[0, 0], [-1, -1], [2, -3]]);
        assert_eq!(pairs.pairs(3, 8).unwrap(), [[0, 0], [3, 8], [2, 6]]);
        assert_eq!(kept_layers(&[0, 4, 7], 8), [[1, 1], [2, 5], [3, 8]]);
        assert_eq!(kept_layers(&[0, 4], 8), [[1, 1], [2, 8]]);
    }

    #[test]
    fn every_problem_is_listed() {
        let pairs = LayerMapping::Pairs(vec![[4, 2], [1, 9], [1, 1], [1, 1], [-5, i64::MIN]]);
        let problems = pairs.pairs(3, 8).unwrap_err();
        let expected = [
            "[4, 2]: the student has states 0 to 3",
            "[1, 9]: the teacher has states 0 to 8",
            "[1, 1] a second time",
            "[-5, -9223372036854775808]: the student has states 0 to 3",
            "[-5, -9223372036854775808]: the teacher has states 0 to 8",
        ];
        assert_eq!(problems, expected);
        let shallow = LayerMapping::All.pairs(4, 2).unwrap_err();
        assert_eq!(shallow, ["[3, 3]: the teacher has states 0 to 2"]);
    }
}
