//! One of the two that are compared.

use super::containerd::Containerd;
use crate::cri::Cri;
use crate::{daemon, templates};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A runtime under measurement.
pub struct Side<'a> {
    /// For people and for paths.
    pub name: &'static str,
    /// The connection to it.
    pub cri: &'a Cri,
    /// Its daemon's process.
    pub daemon: u32,
    /// The name by which processes run that hold memory which all of its pods share, where it has such.
    pub template_holder: Option<&'static str>,
    broken: bool,
}

impl<'a> Side<'a> {
    /// The Isopod that serves in this node.
    pub fn isopod(cri: &'a Cri) -> Result<Self> {
        let daemon = *daemon::pids()?.first().context("isopod serve does not run")?;
        let template_holder = Some("isopod-template");
        Ok(Self { name: "isopod", cri, daemon: daemon.cast_unsigned(), template_holder, broken: false })
    }

    /// The peer.
    pub fn containerd(peer: &'a Containerd) -> Self {
        let (cri, daemon) = (&peer.cri, peer.pid());
        Self { name: "containerd", cri, daemon, template_holder: None, broken: false }
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

    /// Waits until pods start the way they are meant to, so that no figure mixes two kinds of start; whether that is from a
    /// template.
    pub fn wait_for_template(&self) -> Result<bool> {
        let has = self.template_holder.is_some();
        if has {
            templates::wait_for_one(self.cri)?;
        }
        Ok(has)
    }

    /// The control group below which all of this side's pods are.
    pub fn cgroup_parent(&self) -> String {
        format!("/bench-{}", self.name)
    }

    /// Where the control group is that [`super::pods::start`] gives a pod as its parent.
    pub fn cgroup_of(&self, pod_name: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.cgroup_parent().trim_start_matches('/')).join(pod_name)
    }
}

/// Lets what a call left for later be done, so that the next figure does not hold it.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}
