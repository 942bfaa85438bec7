//! The user that a container's first process runs as, from what pod and image say.
//!
//! Called by `container_spec`. Names are resolved in the guest, where the image's files are.

use super::ContainerConfigError;
use isopod_protocols::agent::User;
use isopod_protocols::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// The pod's word, else the image's.
///
/// # Errors
/// Ids that are none, and a group without a user.
pub fn user(context: &LinuxContainerSecurityContext, of_image: &str) -> Result<User, ContainerConfigError> {
    let own = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => Some(id("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let gid = context.run_as_group.as_ref().map(|gid| id("run_as_group", gid.value)).transpose()?;
    if gid.is_some() && own.is_none() {
        return Err(ContainerConfigError::GroupWithoutUser);
    }
    let groups = context.supplemental_groups.iter().map(|gid| id("supplemental_groups", *gid));
    Ok(User {
        user: own.unwrap_or_else(|| of_image.to_owned()),
        gid,
        supplemental_groups: groups.collect::<Result<_, _>>()?,
        strict_groups: context.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
    })
}

fn id(field: &'static str, value: i64) -> Result<u32, ContainerConfigError> {
    // The kernel takes all ones for "leave it as it is".
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or(ContainerConfigError::BadId { field, value })
}
