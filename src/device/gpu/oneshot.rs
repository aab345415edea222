//! A one-value channel whose receiver is a future: how a driver's callback is awaited.

use super::lock;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

type Shared<T> = Arc<Mutex<(Option<T>, Option<Waker>)>>;

/// The end that a callback holds.
pub struct Sender<T>(Shared<T>);

/// The end that waits.
pub struct Receiver<T>(Shared<T>);

/// Both ends.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Mutex::new((None, None)));
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Wakes the receiver with a value.
    pub fn send(self, value: T) {
        let mut shared = lock(&self.0);
        shared.0 = Some(value);
        if let Some(waker) = shared.1.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut shared = lock(&self.0);
        match shared.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                shared.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
