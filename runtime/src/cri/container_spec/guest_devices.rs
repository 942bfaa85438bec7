//! The device nodes of the guest that a privileged container has, beside those of every container, and which
//! nodes a container may open.
//!
//! Called by `oci`. Other runtimes give such a container all devices of the host; here they are the guest's,
//! and those that make up the pod's one disk are left out: a container that wants them can make the nodes
//! itself.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// Loop devices that have a node from the start; `losetup` makes more.
const LOOPS: i64 = 8;

/// Path, major and minor number of the character devices, and whether every user may open it.
const CHARACTERS: [(&str, i64, i64, bool); 5] = [
    ("/dev/net/tun", 10, 200, true),
    ("/dev/fuse", 10, 229, true),
    ("/dev/loop-control", 10, 237, false),
    ("/dev/ppp", 108, 0, false),
    ("/dev/kmsg", 1, 11, false),
];

/// Device nodes as the OCI spec has them.
pub(super) fn of_privileged() -> Vec<LinuxDevice> {
    let characters = CHARACTERS.into_iter().map(|(path, major, minor, everybody)| {
        node(path.to_owned(), LinuxDeviceType::C, (major, minor), if everybody { 0o666 } else { 0o600 })
    });
    let loops =
        (0..LOOPS).map(|number| node(format!("/dev/loop{number}"), LinuxDeviceType::B, (7, number), 0o660));
    characters.chain(loops).collect()
}

/// The rules of a container's cgroup, as containerd writes them: a privileged container may open every
/// device, any other only those that all containers have, which the agent allows by itself. Where a container
/// may make nodes, as by default, the rules are all that keeps it from the pod's disk and so from the files
/// of the pod's other containers.
pub(super) fn rules(privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(privileged).set_access(Some("rwm".to_owned()));
    vec![rule]
}

fn node(path: String, kind: LinuxDeviceType, (major, minor): (i64, i64), mode: u32) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(path.into())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(Some(mode))
        .set_uid(Some(0))
        .set_gid(Some(0));
    device
}
