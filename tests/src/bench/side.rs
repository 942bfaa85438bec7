//! One of the two that are compared.

use crate::cri::Cri;
use anyhow::Result;
use std::time::Duration;

/// A runtime under measurement.
pub struct Side<'a> {
    /// For people and for paths.
    pub name: &'static str,
    /// The connection to it.
    pub cri: &'a Cri,
    /// Its daemon's process.
    pub daemon: u32,
    broken: bool,
}

impl<'a> Side<'a> {
    /// A side that has not failed yet.
    pub fn new(name: &'static str, cri: &'a Cri, daemon: u32) -> Self {
        Self { name, cri, daemon, broken: false }
    }

    /// Does a piece of work unless this side has failed before; a failure is told, and is the last.
    pub fn run<T>(&mut self, what: &str, work: impl FnOnce(&Self) -> Result<T>) -> Option<T> {
        if self.broken {
            return None;
        }
        match work(self) {
            Ok(done) => Some(done),
            Err(error) => {
                eprintln!("error: {}, {what}: {error:#}", self.name);
                self.broken = true;
                None
            }
        }
    }

    /// The control group below which all of this side's pods are.
    pub fn cgroup_parent(&self) -> String {
        format!("/bench-{}", self.name)
    }
}

/// Lets what a call left for later be done, so that the next figure does not hold it.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}
