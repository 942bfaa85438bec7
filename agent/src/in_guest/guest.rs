//! The guest as a case sees it: calls, containers of one small image, their streams, and what exists in the
//! guest.

use super::{identity, sandbox};
use crate::sandbox::Sandbox;
use crate::{container, reaper, server};
use isopod_protocols::agent::*;
use isopod_protocols::stdio::{decode_opened, encode_open, opening_length};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::{Code, Status};

/// Where the runner put the image's only layer on the disk.
const LAYER_OFFSET: u64 = 512 << 20;

/// Directories that are made with the first container and live as long as the guest.
const LASTING: [&str; 4] =
    ["/run/isopod/bundles", "/run/isopod/containers", "/run/isopod/layers", "/run/isopod/roots"];

/// How long what was left may take to go.
const PATIENCE: Duration = Duration::from_secs(2);

/// The guest.
#[derive(Clone)]
pub struct Guest {
    pub sandbox: Arc<Sandbox>,
    layer: Extent,
    next: Arc<AtomicU32>,
}

impl Guest {
    pub async fn set_up() -> Guest {
        let sandbox = Arc::new(Sandbox::default());
        reaper::start(sandbox.containers.reaper.clone()).unwrap();
        sandbox::set_up(&sandbox, identity()).await.unwrap();
        let length = std::env::var("ISOPOD_LAYER_BYTES").unwrap().parse().unwrap();
        Guest { sandbox, layer: Extent { offset: LAYER_OFFSET, length }, next: Arc::default() }
    }

    /// A container to be made, with an id of its own, that runs a shell script.
    pub fn shell(&self, script: &str) -> Plan {
        self.command(&["/bin/sh", "-c", script])
    }

    /// A container to be made, with an id of its own, that runs a command.
    pub fn command(&self, args: &[&str]) -> Plan {
        let id = format!("c{}", self.next.fetch_add(1, Ordering::Relaxed));
        let spec = spec(args);
        let request = CreateContainerRequest {
            container_id: id.clone(),
            layers: vec![self.layer],
            ..Default::default()
        };
        Plan { guest: self.clone(), id, spec, request }
    }

    /// Removes what a case has left.
    pub async fn remove_all(&self) {
        for state in self.sandbox.containers.states.watch().0.containers {
            let _ = self.remove(&state.container_id).await;
        }
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        status(container::remove(&self.sandbox.containers, self.sandbox.storage().ok(), request).await)
            .map(|_| ())
    }

    /// All that a container may leave: processes, mounts, cgroups, files, devices, descriptors.
    pub fn what_exists(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            all.insert(format!("mount {}", fields[4]));
        }
        for pid in numbers("/proc") {
            // Kernel threads come and go by themselves.
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if !command.is_empty() {
                all.insert(format!("process {pid} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
            }
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.contains(") Z ") {
                all.insert(format!("zombie {pid}"));
            }
        }
        for fd in numbers("/proc/self/fd") {
            // The look at the directory is one itself, and closed by now.
            if let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) {
                all.insert(format!("descriptor {fd} {}", target.display()));
            }
        }
        for root in ["/sys/fs/cgroup/containers", "/run/isopod", "/dev/mapper"] {
            walk(root, &mut all);
        }
        for entry in fs::read_dir("/sys/block").unwrap() {
            all.insert(format!("block {}", entry.unwrap().file_name().to_string_lossy()));
        }
        all
    }

    /// What is there that was not before, once all that ends by itself has.
    pub async fn what_is_new(&self, before: &BTreeSet<String>) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let new: Vec<String> = self.what_exists().difference(before).cloned().collect();
            // The holder of the pod's pid namespace lives as long as the guest, and so do threads' and loops'
            // own descriptors.
            let new: Vec<String> = new
                .into_iter()
                .filter(|line| !(line.starts_with("process") && line.contains("container-child")))
                .filter(|line| !line.contains("[pidfd]") || !self.holder_is_new(before))
                .filter(|line| line.strip_prefix("path ").is_none_or(|path| !LASTING.contains(&path)))
                .collect();
            if new.is_empty() || tokio::time::Instant::now() > deadline {
                return new;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn holder_is_new(&self, before: &BTreeSet<String>) -> bool {
        let now = self.what_exists();
        now.difference(before).any(|line| line.starts_with("process") && line.contains("container-child"))
    }
}

fn numbers(directory: &str) -> Vec<u32> {
    let names =
        fs::read_dir(directory).unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Directories only: files in cgroups are the kernel's, and others go with their directories.
fn walk(path: &str, all: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let path = entry.path().display().to_string();
        // What lies inside a mounted image is not ours to look at.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && path.matches('/').count() < 6 {
            all.insert(format!("path {path}"));
            walk(&path, all);
        }
    }
}

/// A spec as the runtime sends it for a container that asks for nothing special.
fn spec(args: &[&str]) -> Value {
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/run/isopod/sandbox/shm", "options": ["rbind", "ro"] },
            { "destination": "/etc/hostname", "type": "bind", "source": "/run/isopod/sandbox/hostname", "options": ["rbind", "rprivate", "rw"] },
        ],
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "cgroup" }, { "type": "pid" }],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}

/// A container to be made. Cases change its spec and request first.
pub struct Plan {
    guest: Guest,
    pub id: String,
    pub spec: Value,
    pub request: CreateContainerRequest,
}

impl Plan {
    /// Replaces a part of the spec, named by a JSON pointer whose last part may be new.
    pub fn with(mut self, pointer: &str, value: Value) -> Plan {
        if let Some(part) = self.spec.pointer_mut(pointer) {
            *part = value;
            return self;
        }
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub fn with_id(mut self, id: &str) -> Plan {
        self.id = id.to_owned();
        self.request.container_id = id.to_owned();
        self
    }

    pub fn user(mut self, user: &str) -> Plan {
        self.request.user = Some(User { user: user.to_owned(), ..Default::default() });
        self
    }

    pub fn volumes(mut self, paths: &[&str]) -> Plan {
        self.request.volumes = paths.iter().map(|path| (*path).to_owned()).collect();
        self
    }

    pub fn pid_namespace(mut self, kind: PidNamespace, target: &str) -> Plan {
        self.request.pid_namespace = kind.into();
        self.request.pid_target = target.to_owned();
        self
    }

    pub fn terminal(mut self) -> Plan {
        self.request.terminal = true;
        self
    }

    pub fn stdin(mut self, once: bool) -> Plan {
        self.request.stdin = true;
        self.request.stdin_once = once;
        self
    }

    pub async fn create(mut self) -> Result<TestContainer, Status> {
        self.request.spec = self.spec.to_string().into_bytes();
        let sandbox = &self.guest.sandbox;
        let storage = sandbox.storage().unwrap();
        status(container::create(&sandbox.containers, storage, self.request).await)?;
        Ok(TestContainer { guest: self.guest, id: self.id })
    }

    /// Creates and starts it.
    pub async fn run(self) -> TestContainer {
        let container = self.create().await.unwrap();
        container.start().await.unwrap();
        container
    }

    /// Runs it to its end; answers exit code and output.
    pub async fn outcome(self) -> (i32, String) {
        let container = self.run().await;
        let exit = container.wait("").await;
        let outcome = (exit.code, container.output("").await);
        container.guest.remove(&container.id).await.unwrap();
        outcome
    }
}

/// A container that was made.
#[derive(Clone)]
pub struct TestContainer {
    pub guest: Guest,
    pub id: String,
}

impl TestContainer {
    pub async fn start(&self) -> Result<u32, Status> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        status(container::start(&self.guest.sandbox.containers, request).await).map(|response| response.pid)
    }

    pub async fn remove(&self) {
        self.guest.remove(&self.id).await.unwrap();
    }

    /// Waits for the end of a process; empty: the first one.
    pub async fn wait(&self, process: &str) -> ProcessExit {
        let request = WaitProcessRequest { container_id: self.id.clone(), process_id: process.to_owned() };
        status(container::wait(&self.guest.sandbox.containers, request).await).unwrap().exit.unwrap()
    }

    pub async fn signal(&self, process: &str, signal: i32, whole_tree: bool) -> Result<(), Status> {
        let request = SignalProcessRequest {
            container_id: self.id.clone(),
            process_id: process.to_owned(),
            signal: signal as u32,
            whole_tree,
        };
        status(container::signal(&self.guest.sandbox.containers, request).await).map(|_| ())
    }

    pub async fn update(&self, resources: Value) -> Result<(), Status> {
        let resources = resources.to_string().into_bytes();
        let request = UpdateContainerRequest { container_id: self.id.clone(), resources };
        status(container::update(&self.guest.sandbox.containers, request).await).map(|_| ())
    }

    pub async fn resize(&self, process: &str, width: u32, height: u32) -> Result<(), Status> {
        let request = ResizeTerminalRequest {
            container_id: self.id.clone(),
            process_id: process.to_owned(),
            width,
            height,
        };
        status(container::resize_terminal(&self.guest.sandbox.containers, request).await).map(|_| ())
    }

    pub fn exec_request(&self, process: &str, args: &[&str]) -> StartExecRequest {
        StartExecRequest {
            container_id: self.id.clone(),
            process_id: process.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        }
    }

    pub async fn start_exec(&self, request: StartExecRequest) -> Result<u32, Status> {
        status(container::start_exec(&self.guest.sandbox.containers, request).await)
            .map(|response| response.pid)
    }

    pub async fn remove_exec(&self, process: &str) -> Result<(), Status> {
        let request = RemoveExecRequest { container_id: self.id.clone(), process_id: process.to_owned() };
        status(container::remove_exec(&self.guest.sandbox.containers, request).await).map(|_| ())
    }

    /// Runs a shell script in it to its end; answers exit code and output.
    pub async fn exec(&self, script: &str) -> (i32, String) {
        let id = format!("e{}", self.guest.next.fetch_add(1, Ordering::Relaxed));
        self.start_exec(self.exec_request(&id, &["/bin/sh", "-c", script])).await.unwrap();
        let exit = self.wait(&id).await;
        let outcome = (exit.code, self.output(&id).await);
        self.remove_exec(&id).await.unwrap();
        outcome
    }

    /// Opens a stream as the host does.
    pub async fn open(&self, process: &str, stream: Stream) -> Result<UnixStream, String> {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let sandbox = self.guest.sandbox.clone();
        tokio::spawn(async move { server::streams::serve_connection(&sandbox.containers, guest).await });
        let open = StreamOpen {
            container_id: self.id.clone(),
            process_id: process.to_owned(),
            stream: stream.into(),
            resume_at: None,
        };
        host.write_all(&encode_open(&open)).await.unwrap();
        let mut prefix = [0; 2];
        host.read_exact(&mut prefix).await.unwrap();
        let mut body = vec![0; opening_length(prefix).unwrap()];
        host.read_exact(&mut body).await.unwrap();
        let opened = decode_opened(&body).unwrap();
        if opened.error.is_empty() { Ok(host) } else { Err(opened.error) }
    }

    /// All of a process's standard output, then its standard error; trimmed.
    pub async fn output(&self, process: &str) -> String {
        let mut text = String::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Ok(mut host) = self.open(process, stream).await {
                let mut bytes = Vec::new();
                host.read_to_end(&mut bytes).await.unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        text.trim().to_owned()
    }
}

fn status<T>(result: Result<T, impl Into<Status>>) -> Result<T, Status> {
    result.map_err(Into::into)
}

/// Checks a refusal: its code, and that its text names something.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, names: &str) {
    let status = result.unwrap_err();
    assert!(status.code() == code && status.message().contains(names), "{status:?}");
}
