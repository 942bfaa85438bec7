//! Work beside what the event loop is at: calls that outlive their caller, and code that blocks.
//!
//! A panic in either goes on where it is waited for; outside of tests it has ended the VM by then.

use std::future::Future;

/// Runs a call to its end, whether or not the caller waits for the answer.
pub async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs blocking code on another thread than the event loop's.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
