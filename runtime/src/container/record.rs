//! What is kept of a container on disk, one document each, and its states.
//!
//! Documents have a version. Those of version 1, which names none, are read by `record_v1`; those of a
//! version to come are not, and the store sets them aside.

use super::spec::{Description, Stdio};
use super::{record_v1, resources};
use crate::resources::Resources;
use crate::store;
use isopod_protocols::agent::{ProcessExit, ResolvedUser};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Exit code of a container whose end nobody saw.
const UNKNOWN_CODE: i32 = 255;

/// Exit code of a container that could not be started.
const START_ERROR_CODE: i32 = 128;

/// State of a container, see [`super`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Made; nothing of it has run.
    Created,
    /// Its first process runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// Its first process has ended, or never began.
    Exited(Exit),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        })
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Nanoseconds since the epoch; 0 where it never began.
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch.
    pub finished_at_ns: i64,
    /// Exit code, or 128 and the signal.
    pub code: i32,
    /// One word for it.
    pub reason: Reason,
    /// More about it, for people.
    pub message: String,
}

/// The end of a container in one word, as Kubernetes shows it; kubelet tells OOMKilled from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other.
    Error,
    /// The kernel killed it for want of memory.
    OOMKilled,
    /// It could not be started.
    StartError,
    /// The VM ended, and took the answer with it.
    Unknown,
}

impl Exit {
    /// As the agent tells it.
    pub fn told(started_at_ns: i64, exit: &ProcessExit) -> Self {
        let reason = match exit.code {
            _ if exit.oom_killed => Reason::OOMKilled,
            0 => Reason::Completed,
            _ => Reason::Error,
        };
        let finished_at_ns = exit.exited_at_ns.max(started_at_ns);
        Self { started_at_ns, finished_at_ns, code: exit.code, reason, message: String::new() }
    }

    /// The VM is gone: whatever it was, it is over.
    pub fn lost(started_at_ns: i64, now_ns: i64) -> Self {
        let message = "the pod's virtual machine ended".to_owned();
        Self { started_at_ns, finished_at_ns: now_ns, code: UNKNOWN_CODE, reason: Reason::Unknown, message }
    }

    /// It could not be started.
    pub fn never_started(now_ns: i64, message: String) -> Self {
        Self {
            started_at_ns: 0,
            finished_at_ns: now_ns,
            code: START_ERROR_CODE,
            reason: Reason::StartError,
            message,
        }
    }
}

/// A layer of a container's root, mapped into the pod's disk. Containers of a pod share layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedLayer {
    /// Digest of the layer upon those below it.
    #[serde(alias = "diff_id")]
    pub chain_id: String,
    /// First byte on the pod's disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// First process's user, resolved against the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// More groups; `agent_client` bounds their number.
    pub supplemental_groups: Vec<u32>,
}

impl From<ResolvedUser> for User {
    fn from(user: ResolvedUser) -> Self {
        Self { uid: user.uid, gid: user.gid, supplemental_groups: user.supplemental_groups }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Record {
    /// Always [`Record::VERSION`].
    pub version: u64,
    /// Its sandbox.
    pub sandbox_id: String,
    /// What is only kept and answered.
    pub description: Description,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// Its first process's streams.
    pub stdio: Stdio,
    /// Its root's layers, the lowest first.
    pub layers: Vec<MappedLayer>,
    /// Its first process's user.
    pub user: User,
    /// Asks its first process to end; a number of Linux's.
    pub stop_signal: i32,
    /// Its limits now.
    pub resources: Resources,
    /// Its state.
    pub state: State,
}

impl Record {
    /// Version of the documents that this daemon writes.
    pub const VERSION: u64 = 2;

    /// Takes the limits of an update; what it leaves open stays.
    pub fn updated(&self, update: &Resources) -> Resources {
        resources::merge(&self.resources, update)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The derived one.
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The derived one.
        let present = |document| Self::deserialize(document);
        store::of_version(deserializer, Self::VERSION, record_v1::read, present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_follows_code_and_oom() {
        let told =
            |code, oom_killed| Exit::told(5, &ProcessExit { code, exited_at_ns: 9, oom_killed }).reason;
        assert_eq!(told(0, false), Reason::Completed);
        assert_eq!(told(3, false), Reason::Error);
        assert_eq!(told(137, true), Reason::OOMKilled);
    }

    #[test]
    fn end_is_never_before_the_begin() {
        let exit = ProcessExit { code: 0, exited_at_ns: 3, oom_killed: false };
        assert_eq!(Exit::told(5, &exit).finished_at_ns, 5);
    }

    #[test]
    fn record_of_a_version_to_come_is_refused_by_its_number() {
        let error = serde_json::from_str::<Record>(r#"{"version": 3}"#).unwrap_err().to_string();
        assert!(error.contains("version 3"), "{error}");
    }
}
