//! Tensor handles: an id, a shape and a dtype. Data lives elsewhere.

use crate::formats::Dtype;
use std::fmt;
use std::ops::Deref;

/// Element type on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float; the f64 oracle widens these.
    F32,
    /// 32-bit unsigned: token ids, positions, ranges, packed records.
    U32,
    /// A frozen matrix in the blocks of its file's type (see `formats/packed.rs`), which ops read as u32 words.
    Packed(Dtype),
}

impl DType {
    /// Bytes of a tensor of this type.
    pub fn bytes(self, shape: Shape) -> u64 {
        let words = match self {
            DType::F32 | DType::U32 => shape.numel(),
            DType::Packed(stored) => shape.rows() * stored.packed_words(shape.cols()),
        };
        words as u64 * 4
    }
}

/// Up to four dimensions, row-major.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; 4],
}

impl Shape {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// All dimensions but the last, multiplied: how many rows the tensor has.
    pub fn rows(&self) -> usize {
        self[..self.len().saturating_sub(1)].iter().product()
    }

    /// The last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(value: [usize; N]) -> Self {
        const { assert!(N <= 4, "at most four dimensions") };
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&value);
        Shape { rank: N as u8, dims }
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self[..], f)
    }
}

/// A handle to a tensor of one [`super::Graph`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    pub(super) id: u32,
    /// Its shape.
    pub shape: Shape,
    /// Its element type.
    pub dtype: DType,
}

impl Tensor {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.shape)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}{:?}", self.id, self.shape)
    }
}
