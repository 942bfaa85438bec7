//! What makes a guest one pod's and no other's: the request of `SetUpSandbox`, checked before anything of it is applied.

use crate::id::{Id, IdError};
use crate::network::{Link, LinkError};
use crate::storage::extent::{ExtentError, ExtentRange};
use crate::sysctl::{Sysctl, SysctlError};
use isopod_protocols::agent::SetUpSandboxRequest;
use std::time::Duration;

/// Longest host name (HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// Characters of the sandbox id that stand in for a host name that was not given.
const SHORT_ID: usize = 12;

/// Largest hosts or resolv.conf file, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// Size of `/dev/shm` where none is asked for, in bytes.
const DEFAULT_SHM: u64 = 64 * 1024 * 1024;

/// All that a set-up applies.
#[derive(Debug)]
pub struct Identity {
    pub sandbox_id: Id,
    pub hostname: String,
    pub resolv_conf: Vec<u8>,
    pub hosts: Vec<u8>,
    pub link: Option<Link>,
    pub sysctls: Vec<Sysctl>,
    /// Since the epoch.
    pub realtime: Duration,
    pub scratch: Option<ExtentRange>,
    pub shm_bytes: u64,
}

/// A request that cannot be an identity; the message names the field.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum IdentityError {
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Extent(#[from] ExtentError),
    #[error(
        "hostname: {0:?} is longer than {MAX_HOSTNAME} bytes or not made of letters, digits, '-', '.' and '_'"
    )]
    Hostname(String),
    #[error("{field}: {length} bytes, more than {MAX_FILE}")]
    FileSize { field: &'static str, length: usize },
    #[error("realtime_ns: {0} is before the epoch")]
    Realtime(i64),
}

impl Identity {
    /// Checks a request.
    pub fn parse(request: SetUpSandboxRequest) -> Result<Identity, IdentityError> {
        let sandbox_id = Id::parse("sandbox_id", &request.sandbox_id)?;
        let hostname = hostname(&request.hostname, &sandbox_id)?;
        for (field, length) in [("hosts", request.hosts.len()), ("resolv_conf", request.resolv_conf.len())] {
            if length > MAX_FILE {
                return Err(IdentityError::FileSize { field, length });
            }
        }
        let realtime =
            u64::try_from(request.realtime_ns).map_err(|_| IdentityError::Realtime(request.realtime_ns))?;
        let sysctls = request.sysctls.iter().map(|(name, value)| Sysctl::parse(name, value));
        Ok(Identity {
            sandbox_id,
            hostname,
            resolv_conf: request.resolv_conf,
            hosts: request.hosts,
            link: request.interface.as_ref().map(Link::parse).transpose()?,
            sysctls: sysctls.collect::<Result<_, _>>()?,
            realtime: Duration::from_nanos(realtime),
            scratch: request.scratch.map(|extent| ExtentRange::parse("scratch", &extent)).transpose()?,
            shm_bytes: if request.shm_bytes == 0 { DEFAULT_SHM } else { request.shm_bytes },
        })
    }
}

fn hostname(text: &str, sandbox_id: &Id) -> Result<String, IdentityError> {
    if text.is_empty() {
        return Ok(sandbox_id.as_str().chars().take(SHORT_ID).collect());
    }
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if text.len() > MAX_HOSTNAME || !plain {
        return Err(IdentityError::Hostname(text.chars().take(MAX_HOSTNAME).collect()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::agent::{Extent, Interface};

    fn request() -> SetUpSandboxRequest {
        SetUpSandboxRequest {
            sandbox_id: "0123456789abcdef".into(),
            hostname: "web-0".into(),
            realtime_ns: 1_700_000_000_000_000_000,
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut SetUpSandboxRequest)) -> String {
        let mut request = request();
        change(&mut request);
        Identity::parse(request).unwrap_err().to_string()
    }

    #[test]
    fn small_request_gets_the_defaults() {
        let identity = Identity::parse(request()).unwrap();
        assert_eq!(identity.shm_bytes, 64 << 20);
        assert_eq!(identity.realtime.as_secs(), 1_700_000_000);
        assert!(identity.link.is_none() && identity.scratch.is_none());
    }

    #[test]
    fn missing_hostname_is_the_short_sandbox_id() {
        let identity = Identity::parse(SetUpSandboxRequest { hostname: String::new(), ..request() }).unwrap();
        assert_eq!(identity.hostname, "0123456789ab");
    }

    #[test]
    fn wrong_fields_are_named() {
        assert!(refused(|r| r.sandbox_id = "../x".into()).starts_with("sandbox_id"));
        assert!(refused(|r| r.hostname = "a b".into()).starts_with("hostname"));
        assert!(refused(|r| r.hostname = "h".repeat(65)).starts_with("hostname"));
        assert!(refused(|r| r.hosts = vec![0; MAX_FILE + 1]).starts_with("hosts"));
        assert!(refused(|r| r.resolv_conf = vec![0; MAX_FILE + 1]).starts_with("resolv_conf"));
        assert!(refused(|r| r.realtime_ns = -1).starts_with("realtime_ns"));
        assert!(refused(|r| r.scratch = Some(Extent::default())).starts_with("scratch"));
        assert!(refused(|r| r.interface = Some(Interface::default())).starts_with("interface."));
        let sysctl = ("vm.swappiness".to_owned(), "1".to_owned());
        assert!(refused(|r| r.sysctls = [sysctl].into()).starts_with("sysctls"));
    }
}
