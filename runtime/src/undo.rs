//! The undo stack: every step that takes something (process, tap, namespace, mount, cgroup, extent, file, name) pushes
//! what releases it, and a failure at any later step runs all of them, last first.
//!
//! Used by every operation that takes more than one thing: RunPodSandbox, CreateContainer, PullImage. It also serves an
//! operation whose caller went away: dropping an armed stack runs it in the background. It must not decide anything:
//! a release that fails is reported and the next one runs all the same.
//!
//! Tests fail an operation at each of its steps in turn, without knowing them: see [`Fault`]. Operations that only give
//! back, or change what is there, have [`Steps`] for that.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a release may fail with.
pub type ReleaseError = Box<dyn Error + Send + Sync>;

type Release = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<(), ReleaseError>> + Send>> + Send>;

struct Step {
    name: String,
    release: Release,
}

/// The releases of one operation so far. Dropped while it holds any, it runs them on the current tokio runtime.
pub struct Undo {
    count: Steps,
    steps: Vec<Step>,
}

/// Counts the steps of an operation.
#[derive(Debug)]
pub struct Steps {
    operation: &'static str,
    done: AtomicU32,
}

impl Steps {
    /// None is done. `operation` names it in messages and in [`Fault`]s.
    pub fn new(operation: &'static str) -> Self {
        Self { operation, done: AtomicU32::new(0) }
    }

    /// The step `name` is done.
    ///
    /// # Errors
    /// Only when a [`Fault`] names this step: the caller gives up as it would for any other error.
    pub fn done(&self, name: &str) -> Result<(), Injected> {
        let number = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        match Fault::for_step(self.operation, number) {
            None => Ok(()),
            Some(Fault { abort: true, .. }) => std::process::abort(),
            Some(_) => Err(Injected { operation: self.operation, number, step: name.to_owned() }),
        }
    }
}

/// A step failed because a test asked for it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{operation}: failed on purpose after step {number} ({step})")]
pub struct Injected {
    operation: &'static str,
    number: u32,
    step: String,
}

/// Releases that failed, each with the name of its step; the rest of the stack ran.
#[derive(Debug)]
pub struct Leftovers(Vec<(String, ReleaseError)>);

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{step}: {error}")?;
        }
        Ok(())
    }
}

impl Error for Leftovers {}

/// An operation that failed, and whose releases were run.
#[derive(Debug)]
pub struct Failed<E> {
    /// Why it failed.
    pub cause: E,
    /// What could not be released. It is in the log as well.
    pub leftovers: Option<Leftovers>,
}

impl<E> Failed<E> {
    /// Why it failed, for operations whose leftovers are removed later by themselves.
    pub fn into_cause(self) -> E {
        self.cause
    }
}

impl Undo {
    /// An empty stack. `operation` names it in messages and in [`Fault`]s.
    pub fn new(operation: &'static str) -> Self {
        Self { count: Steps::new(operation), steps: Vec::new() }
    }

    /// Registers the release of what the step `name` has just taken.
    ///
    /// # Errors
    /// Only when a [`Fault`] names this step: the release is registered, and the caller gives up as it would for any
    /// other error.
    pub fn push<F, Fut, E>(&mut self, name: impl Into<String>, release: F) -> Result<(), Injected>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<ReleaseError>,
    {
        let name = name.into();
        let release: Release = Box::new(move || Box::pin(async move { release().await.map_err(Into::into) }));
        self.steps.push(Step { name: name.clone(), release });
        self.count.done(&name)
    }

    /// A step `name` is done that took nothing of its own.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn done(&self, name: &str) -> Result<(), Injected> {
        self.count.done(name)
    }

    /// The operation came to `outcome`: what it took stays where that is a success, and is released, last
    /// taken first, where it is a failure.
    ///
    /// # Errors
    /// That of the outcome, with what could not be released.
    pub async fn settle<T, E>(self, outcome: Result<T, E>) -> Result<T, Failed<E>> {
        match outcome {
            Ok(done) => {
                self.keep();
                Ok(done)
            }
            Err(cause) => Err(Failed { cause, leftovers: self.run().await.err() }),
        }
    }

    /// The operation succeeded: what it took stays.
    pub fn keep(mut self) {
        self.steps.clear();
    }

    /// The operation failed: releases everything, last taken first.
    ///
    /// # Errors
    /// Names the releases that failed; all were tried.
    pub async fn run(mut self) -> Result<(), Leftovers> {
        // In a task of its own: a caller that is dropped while it waits must not take the rest of the stack along.
        let releases = tokio::spawn(release_all(self.count.operation, std::mem::take(&mut self.steps)));
        releases.await.unwrap_or_else(|error| Err(Leftovers(vec![("a release".to_owned(), error.into())])))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let steps = std::mem::take(&mut self.steps);
        if steps.is_empty() {
            return;
        }
        let operation = self.count.operation;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(release_all(operation, steps));
            }
            Err(_) => {
                tracing::error!(operation, "dropped outside the runtime: {} steps not undone", steps.len())
            }
        }
    }
}

async fn release_all(operation: &'static str, steps: Vec<Step>) -> Result<(), Leftovers> {
    let mut failed = Vec::new();
    for step in steps.into_iter().rev() {
        tracing::debug!(operation, step = step.name, "undo");
        if let Err(error) = (step.release)().await {
            tracing::error!(operation, step = step.name, %error, "undo failed");
            failed.push((step.name, error));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Leftovers(failed)) }
}

/// Where faults are ordered. Only [`Fault::look_in`] sets it, which no released program calls.
static FAULT_FILE: OnceLock<PathBuf> = OnceLock::new();

/// A failure that a test orders: the file of [`Fault::look_in`] holds `OPERATION NUMBER [abort]`. After that
/// operation's step of that number the step fails, or the process dies as by SIGKILL. Where no file is set
/// there is no cost and no effect.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    operation: String,
    number: u32,
    abort: bool,
}

impl Fault {
    /// Has all operations of this process look for faults in `file`, which need not exist, at each step from
    /// now on; a later call changes nothing. Only for `isopod-with-faults` and for tests: the released
    /// program must have no way here.
    pub fn look_in(file: PathBuf) {
        // The first one stays.
        let _ = FAULT_FILE.set(file);
    }

    fn for_step(operation: &str, number: u32) -> Option<Self> {
        let fault = Self::parse(&std::fs::read_to_string(FAULT_FILE.get()?).ok()?)?;
        (fault.operation == operation && fault.number == number).then_some(fault)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let operation = words.next()?.to_owned();
        let number = words.next()?.parse().ok()?;
        Some(Self { operation, number, abort: words.next() == Some("abort") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn push(undo: &mut Undo, log: &Log, name: &'static str, result: Result<(), &'static str>) {
        let log = Arc::clone(log);
        let release = move || async move {
            log.lock().expect("no test panics while it holds the log").push(name);
            result
        };
        undo.push(name, release).expect("no fault file in unit tests");
    }

    fn seen(log: &Log) -> Vec<&'static str> {
        log.lock().expect("no test panics while it holds the log").clone()
    }

    #[tokio::test]
    async fn failed_operation_releases_last_taken_first() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        push(&mut undo, &log, "tap", Ok(()));
        undo.run().await.expect("both releases succeed");
        assert_eq!(seen(&log), ["tap", "netns"]);
    }

    #[tokio::test]
    async fn failing_release_is_named_and_the_rest_still_runs() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        push(&mut undo, &log, "tap", Err("device busy"));
        let leftovers = undo.run().await.expect_err("one release fails");
        assert_eq!(leftovers.to_string(), "tap: device busy");
        assert_eq!(seen(&log), ["tap", "netns"]);
    }

    #[tokio::test]
    async fn outcome_decides_whether_what_was_taken_stays() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        assert_eq!(undo.settle(Ok::<_, &str>(7)).await.expect("it succeeded"), 7);
        assert!(seen(&log).is_empty());
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        push(&mut undo, &log, "tap", Err("device busy"));
        let failed = undo.settle(Err::<(), _>("no address")).await.expect_err("it failed");
        assert_eq!(failed.leftovers.expect("one release fails").to_string(), "tap: device busy");
        assert_eq!((failed.cause, seen(&log)), ("no address", vec!["tap", "netns"]));
    }

    #[tokio::test]
    async fn run_that_is_dropped_in_the_middle_releases_all() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        let slow = || async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Ok::<(), &'static str>(())
        };
        undo.push("slow", slow).expect("no fault file in unit tests");
        let gone = tokio::time::timeout(std::time::Duration::from_millis(5), undo.run()).await;
        assert!(gone.is_err(), "it was not dropped in the middle");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert_eq!(seen(&log), ["netns"]);
    }

    #[tokio::test]
    async fn kept_stack_releases_nothing() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        undo.keep();
        tokio::task::yield_now().await;
        assert!(seen(&log).is_empty());
    }

    #[tokio::test]
    async fn dropped_stack_releases_in_the_background() {
        let log = Log::default();
        let mut undo = Undo::new("test");
        push(&mut undo, &log, "netns", Ok(()));
        drop(undo);
        tokio::task::yield_now().await;
        assert_eq!(seen(&log), ["netns"]);
    }

    #[test]
    fn fault_file_names_operation_step_and_manner() {
        let expected = Fault { operation: "RunPodSandbox".into(), number: 3, abort: true };
        assert_eq!(Fault::parse("RunPodSandbox 3 abort\n"), Some(expected));
        assert_eq!(Fault::parse("RunPodSandbox three"), None);
        assert_eq!(Fault::parse(""), None);
    }
}
