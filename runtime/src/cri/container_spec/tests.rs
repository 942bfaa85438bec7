//! Cases of `container_spec` and `oci`.

use super::oci::{Parts, build, environment};
use super::*;
use crate::container::{ContainerError, request};
use isopod_protocols::cri::{
    ContainerMetadata, Device, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, MountPropagation,
};
use oci_spec::runtime::Spec;
use serde_json::json;

fn image(config: serde_json::Value) -> ImageConfiguration {
    let rootfs = json!({"type": "layers", "diff_ids": []});
    let document = json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs});
    ImageConfiguration::parse(document.to_string().as_bytes()).unwrap()
}

fn container() -> ContainerConfig {
    let metadata = Some(ContainerMetadata { name: "c".into(), attempt: 0 });
    ContainerConfig { metadata, command: vec!["sleep".into(), "1".into()], ..ContainerConfig::default() }
}

fn build_with(container: &ContainerConfig, image: &ImageConfiguration) -> Result<Spec, ContainerConfigError> {
    build(Parts { container, hostname: "", image })
}

/// The specification as the agent gets it.
fn sent(
    config: ContainerConfig,
    sandbox: &SandboxSpec,
    image: ImageConfiguration,
) -> Result<Spec, ContainerError> {
    let image =
        Image { id: Digest::of(b""), repo_digests: Vec::new(), config: Arc::new(image), layers: Vec::new() };
    let spec = container_spec(config, sandbox, &image).unwrap();
    Ok(serde_json::from_slice(&request("c1", &spec)?.spec).unwrap())
}

fn args(container: &ContainerConfig, config: serde_json::Value) -> Vec<String> {
    let spec = build_with(container, &image(config)).unwrap();
    spec.process().as_ref().unwrap().args().clone().unwrap()
}

#[test]
fn image_gives_command_unless_the_pod_does() {
    let both = json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"]});
    let mut c = ContainerConfig { command: vec![], ..container() };
    assert_eq!(args(&c, both.clone()), ["/entry", "a", "b"]);
    c.args = vec!["x".into()];
    assert_eq!(args(&c, both.clone()), ["/entry", "x"]);
    c.command = vec!["/own".into()];
    assert_eq!(args(&c, both.clone()), ["/own", "x"]);
    c.args.clear();
    assert_eq!(args(&c, both), ["/own"]);
}

/// Whatever reads labels and annotations of a container would act for whoever made the image, or the pod.
#[test]
fn labels_and_annotations_of_image_and_pod_are_in_no_spec() {
    let hostile = |key: &str| [(key.to_owned(), "binary:///bin/sh".to_owned())].into();
    let c = ContainerConfig {
        labels: hostile("containerd.io/restart.loguri"),
        annotations: hostile("cdi.k8s.io/device"),
        ..container()
    };
    let image = image(json!({ "Labels": { "containerd.io/restart.loguri": "binary:///bin/sh" } }));
    let sandbox = SandboxSpec {
        annotations: [("run.oci.handler".to_owned(), "binary:///bin/sh".to_owned())].into(),
        ..SandboxSpec::default()
    };
    let spec = sent(c, &sandbox, image).unwrap();
    assert!(spec.hooks().is_none() && spec.annotations().as_ref().is_none_or(|all| all.is_empty()));
    assert!(!serde_json::to_string(&spec).unwrap().contains("binary://"));
}

#[test]
fn no_command_anywhere_names_the_container() {
    let c = ContainerConfig { command: vec![], ..container() };
    let error = build_with(&c, &image(json!({}))).unwrap_err();
    assert!(error.to_string().contains("\"c\" has no command"), "{error}");
}

#[test]
fn pod_variables_win_over_the_images() {
    let env = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let c = ContainerConfig { envs: vec![env("A", "pod"), env("B", "1"), env("B", "2")], ..container() };
    let image = image(json!({"Env": ["A=image", "PATH=/bin", "NO_VALUE"]}));
    let parts = Parts { container: &c, hostname: "h", image: &image };
    let expected = ["PATH=/bin", "HOSTNAME=h", "A=pod", "B=2"];
    assert_eq!(environment(parts), expected.map(|entry| entry.as_bytes().to_vec()));
    assert_eq!(build(parts).unwrap().process().as_ref().unwrap().env(), &None, "it goes beside the spec");
}

/// A Secret may hold any bytes but zero.
#[test]
fn value_that_is_not_text_stays_as_it_is() {
    let secret = KeyValue { key: "SECRET".into(), value: b"\xff\xfe=\x01".to_vec() };
    let c = ContainerConfig { envs: vec![secret], ..container() };
    let image = image(json!({}));
    let parts = Parts { container: &c, hostname: "", image: &image };
    assert_eq!(environment(parts).last().unwrap(), b"SECRET=\xff\xfe=\x01");
}

#[test]
fn relative_working_directory_is_refused() {
    let c = ContainerConfig { working_dir: "work".into(), ..container() };
    assert!(matches!(
        build_with(&c, &image(json!({}))),
        Err(ContainerConfigError::Invalid { field: "working_dir", .. })
    ));
}

#[test]
fn host_paths_devices_and_bidirectional_mounts_say_what_to_do() {
    let mount = Mount { host_path: "/data".into(), container_path: "/x".into(), ..Mount::default() };
    let bidirectional =
        Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..mount.clone() };
    let device = Device { host_path: "/dev/fuse".into(), ..Device::default() };
    let cases = [
        (ContainerConfig { mounts: vec![mount], ..container() }, "\"/data\" at \"/x\" is not supported yet"),
        (ContainerConfig { mounts: vec![bidirectional], ..container() }, "bidirectional propagation"),
        (ContainerConfig { devices: vec![device], ..container() }, "host device \"/dev/fuse\" cannot be had"),
    ];
    for (config, expected) in cases {
        let error = build_with(&config, &image(json!({}))).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn privileged_container_sees_all_of_its_guest() {
    let security =
        LinuxContainerSecurityContext { privileged: true, ..LinuxContainerSecurityContext::default() };
    let linux = LinuxContainerConfig { security_context: Some(security), ..LinuxContainerConfig::default() };
    let c = ContainerConfig { linux: Some(linux), ..container() };
    let spec = build_with(&c, &image(json!({}))).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.masked_paths().as_ref().unwrap().len(), 0);
    assert!(linux.seccomp().is_none());
    let devices = linux.devices().as_ref().unwrap();
    assert!(devices.iter().any(|d| d.path().ends_with("net/tun") && (d.major(), d.minor()) == (10, 200)));
    assert!(!devices.iter().any(|d| d.path().starts_with("/dev/vda")), "the disk holds other containers");
    assert_eq!(device_rules(&spec), [(true, None)]);
    let plain = build_with(&container(), &image(json!({}))).unwrap();
    assert!(plain.linux().as_ref().unwrap().devices().as_ref().is_none_or(Vec::is_empty));
    let sys = spec.mounts().as_ref().unwrap().iter().find(|m| m.destination().ends_with("sys")).unwrap();
    assert!(sys.options().as_ref().unwrap().contains(&"rw".to_owned()));
}

/// Of each device rule, whether it allows and the major number that it is for.
fn device_rules(spec: &Spec) -> Vec<(bool, Option<i64>)> {
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    resources.devices().iter().flatten().map(|rule| (rule.allow(), rule.major())).collect()
}

#[test]
fn container_without_privileges_may_open_no_device_of_its_guest() {
    let limited = LinuxContainerConfig {
        resources: Some(LinuxContainerResources { cpu_shares: 512, ..LinuxContainerResources::default() }),
        ..LinuxContainerConfig::default()
    };
    for linux in [None, Some(LinuxContainerConfig::default()), Some(limited)] {
        let config = ContainerConfig { linux, ..container() };
        assert_eq!(device_rules(&build_with(&config, &image(json!({}))).unwrap()), [(false, None)]);
        let spec = sent(config, &SandboxSpec::default(), image(json!({}))).unwrap();
        assert_eq!(device_rules(&spec), [(false, None)]);
    }
}

#[test]
fn volumes_come_after_what_would_hide_them_and_replace_what_is_at_their_path() {
    let config = json!({"Volumes": {"/etc": {}, "/etc/deep/volume": {}, "/sys/fs/cgroup": {}}});
    let spec = sent(container(), &SandboxSpec::default(), image(config)).unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let destinations: Vec<_> = mounts.iter().map(|m| m.destination().display().to_string()).collect();
    let place = |path: &str| destinations.iter().position(|destination| destination == path).unwrap();
    assert!(place("/sys") < place("/etc") && place("/etc") < place("/etc/hosts"), "{destinations:?}");
    assert!(place("/etc/hosts") < place("/etc/deep/volume"), "{destinations:?}");
    assert_eq!(destinations.iter().filter(|path| *path == "/sys/fs/cgroup").count(), 1);
    assert_eq!(mounts[place("/sys/fs/cgroup")].typ().as_deref(), Some("bind"));
}
