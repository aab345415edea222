//! Loops over all of the machine's threads: rayon's. A browser's worker is one thread, so there the same names are the
//! standard library's iterators: rayon's machinery would be a tenth of the module, and the twins could not be
//! compiled as plain loops.

#[cfg(not(target_family = "wasm"))]
pub(crate) use rayon::{current_num_threads, prelude::*};
#[cfg(target_family = "wasm")]
pub(crate) use serial::{Borrowed as _, IntoLoop as _, Loop as _, Slice as _, current_num_threads};

/// What this crate uses of rayon, on one thread.
#[cfg(target_family = "wasm")]
mod serial {
    use std::slice::{Chunks, ChunksMut, IterMut};

    pub(crate) fn current_num_threads() -> usize {
        1
    }

    /// A slice's loops.
    pub(crate) trait Slice<T> {
        fn par_iter_mut(&mut self) -> IterMut<'_, T>;
        fn par_chunks(&self, len: usize) -> Chunks<'_, T>;
        fn par_chunks_mut(&mut self, len: usize) -> ChunksMut<'_, T>;
    }

    impl<T> Slice<T> for [T] {
        fn par_iter_mut(&mut self) -> IterMut<'_, T> {
            self.iter_mut()
        }

        fn par_chunks(&self, len: usize) -> Chunks<'_, T> {
            self.chunks(len)
        }

        fn par_chunks_mut(&mut self, len: usize) -> ChunksMut<'_, T> {
            self.chunks_mut(len)
        }
    }

    /// What can be looped over without being taken.
    pub(crate) trait Borrowed<'data> {
        type Iter;
        fn par_iter(&'data self) -> Self::Iter;
    }

    impl<'data, C: ?Sized + 'data> Borrowed<'data> for C
    where
        &'data C: IntoIterator,
    {
        type Iter = <&'data C as IntoIterator>::IntoIter;

        fn par_iter(&'data self) -> Self::Iter {
            self.into_iter()
        }
    }

    /// What becomes a loop.
    pub(crate) trait IntoLoop: IntoIterator + Sized {
        fn into_par_iter(self) -> Self::IntoIter {
            self.into_iter()
        }
    }

    impl<I: IntoIterator> IntoLoop for I {}

    /// What rayon's loops have more than iterators. One thread takes everything, whatever the sizes of tasks.
    pub(crate) trait Loop: Iterator + Sized {
        fn with_min_len(self, _: usize) -> Self {
            self
        }

        fn with_max_len(self, _: usize) -> Self {
            self
        }

        fn map_init<T, R>(
            self,
            init: impl Fn() -> T,
            mut each: impl FnMut(&mut T, Self::Item) -> R,
        ) -> impl Iterator<Item = R> {
            let mut scratch = init();
            self.map(move |item| each(&mut scratch, item))
        }

        fn for_each_init<T>(self, init: impl Fn() -> T, each: impl Fn(&mut T, Self::Item)) {
            let mut scratch = init();
            self.for_each(|item| each(&mut scratch, item));
        }
    }

    impl<I: Iterator> Loop for I {}
}
