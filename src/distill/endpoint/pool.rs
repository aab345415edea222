//! Many questions at once, answers in order, and never many more answers in memory than questions under way.

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Threads that work on items `0..total` and hand the results on in that order. Dropping it lets each thread end with
/// the item it has; nobody waits for them, for a request under way cannot be broken off.
pub(super) struct Pool<T> {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    results: Receiver<(usize, Result<T>)>,
    /// Results that came before their turn.
    early: BTreeMap<usize, Result<T>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next item to be begun.
    next: usize,
    /// Items whose results were handed on.
    done: usize,
    /// No item from here on is begun.
    end: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next item, once fewer than `ahead` are begun and not handed on.
    fn take(&self, ahead: usize) -> Option<usize> {
        let mut state = self.lock();
        while state.next < state.end && state.next - state.done >= ahead {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let item = (state.next < state.end).then_some(state.next);
        state.next += usize::from(item.is_some());
        item
    }
}

impl<T: Send + 'static> Pool<T> {
    /// Starts `threads` threads. `stop` is set when the pool is dropped, for `work` that waits.
    pub fn start(
        threads: usize,
        total: usize,
        stop: Arc<AtomicBool>,
        work: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Pool<T>> {
        let state = State { next: 0, done: 0, end: total };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (sender, results) = channel();
        let work = Arc::new(work);
        let pool = Pool { shared: shared.clone(), stop, results, early: BTreeMap::new() };
        for _ in 0..threads.min(total) {
            let (shared, sender, work) = (shared.clone(), sender.clone(), work.clone());
            let run = move || {
                while let Some(item) = shared.take(2 * threads) {
                    let result = catch_unwind(AssertUnwindSafe(|| work(item)))
                        .unwrap_or_else(|_| Err(Error::internal("a thread that asks a server panicked")));
                    if result.is_err() {
                        // Items before this one are under way or done; those behind it need not be begun.
                        let mut state = shared.lock();
                        state.end = state.end.min(item + 1);
                        shared.changed.notify_all();
                    }
                    if sender.send((item, result)).is_err() {
                        break;
                    }
                }
            };
            let started = thread::Builder::new().name("endpoint".to_string()).spawn(run);
            started.map_err(|error| Error::at("capture").expected("a thread for each request").found(error).error())?;
        }
        Ok(pool)
    }

    /// The next result in order, or `None` if it does not come within `patience`.
    pub fn next(&mut self, patience: Duration) -> Result<Option<T>> {
        let turn = self.shared.lock().done;
        if !self.early.contains_key(&turn) {
            match self.results.recv_timeout(patience) {
                Ok((item, result)) => self.early.insert(item, result),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::internal("no thread is left to ask")),
            };
        }
        let Some(result) = self.early.remove(&turn) else { return Ok(None) };
        self.shared.lock().done += 1;
        self.shared.changed.notify_all();
        result.map(Some)
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.shared.lock().end = 0;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn start(
        threads: usize,
        total: usize,
        work: impl Fn(usize) -> Result<usize> + Send + Sync + 'static,
    ) -> Pool<usize> {
        Pool::start(threads, total, Arc::default(), work).unwrap()
    }

    fn all(pool: &mut Pool<usize>, total: usize) -> Result<Vec<usize>> {
        let mut results = Vec::new();
        while results.len() < total {
            results.extend(pool.next(Duration::from_secs(5))?);
        }
        Ok(results)
    }

    #[test]
    fn results_come_in_order_and_few_are_ahead() {
        let (begun, handed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, seen) = (begun.clone(), handed.clone());
        let mut pool = start(4, 200, move |item| {
            let ahead = count.fetch_add(1, Ordering::SeqCst) + 1 - seen.load(Ordering::SeqCst);
            assert!(ahead <= 9, "{ahead} items are begun and not handed on");
            thread::sleep(Duration::from_micros(if item % 7 == 0 { 900 } else { 10 }));
            Ok(item)
        });
        for item in 0..200 {
            let result = all(&mut pool, 1).unwrap();
            assert_eq!(result, [item]);
            handed.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_error_in_order_is_told_after_the_results_before_it() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let mut pool = start(3, 1000, move |item| {
            count.fetch_add(1, Ordering::SeqCst);
            match item {
                20 => panic!("this panic is part of the test"),
                21 => Err(Error::Cancelled),
                _ => Ok(item),
            }
        });
        assert_eq!(all(&mut pool, 20).unwrap(), (0..20).collect::<Vec<_>>());
        let error = all(&mut pool, 1).unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
        assert!(begun.load(Ordering::SeqCst) < 30);
    }
}
