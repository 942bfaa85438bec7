//! `make demo`: pods in virtual machines of their own, shown by the commands that a person would type.
//!
//! On the machine it boots a node and runs itself in it; in the node it types commands, prints what they answer, and
//! checks what they show: a demo that has stopped being true fails. It ends with a table beside containerd, by the
//! benchmark's means.

use anyhow::{Context, Result, ensure};
use isopod_tests::bench::at_a_glance;
use isopod_tests::node::{Isopod, Job, Node, Settings};
use serde_json::json;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Where the node's registry answers.
const REGISTRY: &str = "127.0.0.1:5000";

fn main() -> ExitCode {
    let outcome = if std::env::var_os("ISOPOD_IN_NODE").is_some() { story().map(|()| 0) } else { in_node() };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn in_node() -> Result<u8> {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        timeout: Duration::from_secs(900),
        ..Settings::default()
    };
    println!(
        "Starting the node: a VM with this machine's files and real KVM, in which everything below happens."
    );
    let command = vec![std::env::current_exe()?.into_os_string()];
    Node::start(settings, &Job { command, terminal: false })?.wait()
}

fn story() -> Result<()> {
    chapter("Can this node run pods?");
    shell("isopod check")?;

    chapter("An image with layers, from a real registry");
    let (busybox, web) = (format!("{REGISTRY}/isopod/busybox"), format!("{REGISTRY}/isopod/web"));
    shell(&format!("crictl pull {busybox}"))?;
    shell(&format!("crictl pull {web}"))?;
    shell("crictl images")?;

    chapter("A guest that was booted once, in the background: the template of which pods are clones");
    shell(
        "until ls /run/isopod/templates/*.json >/dev/null 2>&1; do sleep 0.1; done; isopod check | grep templates",
    )?;

    chapter("Two pods");
    let left_before = held_by_pods()?;
    let first = start_pod("first", &[("server", &web, &[]), ("sleeper", &busybox, &["sleep", "3600"])])?;
    let second =
        start_pod("second", &[("client", &busybox, &["sh", "-c", "echo hello from $HOSTNAME; sleep 3600"])])?;
    look_at(&first, &second)?;

    chapter("Each has a kernel of its own, though both are clones");
    let kernel = |container: &str| {
        shell(&format!("crictl exec -s {container} sh -c 'uname -r; cat /proc/sys/kernel/random/boot_id'"))
    };
    let node = shell("uname -r; cat /proc/sys/kernel/random/boot_id")?;
    let (one, two) = (kernel(first.container("sleeper"))?, kernel(second.container("client"))?);
    ensure!(one != two && one != node && two != node, "kernels or boot ids are shared");

    chapter("They reach each other, and the node reaches them");
    let address = address_of(&first)?;
    shell(&format!("crictl exec -s {} wget -q -O - http://{address}/", second.container("client")))?;
    shell(&format!("wget -q -O - http://{address}/"))?;

    chapter("A second container in the first pod: its network, a root of its own");
    let sleeper = first.container("sleeper");
    shell(&format!("crictl exec -s {sleeper} wget -q -O - http://127.0.0.1/"))?;
    shell(&format!("crictl exec -s {sleeper} sh -c 'hostname; echo mine > /only-here'"))?;
    let other = shell(&format!("crictl exec -s {} ls /", first.container("server")))?;
    ensure!(!other.contains("only-here"), "containers share a root");

    chapter("Stopping and removing");
    for pod in [&first, &second] {
        for (_, container) in &pod.containers {
            shell(&format!("crictl stop -t 1 {container}"))?;
            shell(&format!("crictl rm {container}"))?;
        }
        shell(&format!("crictl stopp {0} && crictl rmp {0}", pod.id))?;
    }
    shell("crictl pods -q; crictl ps -aq")?;
    println!(
        "\nLeft of them in the node (processes, taps, namespaces, mounts, cgroups, leases, directories):"
    );
    // What was there before may have gone meanwhile: the template's VM of a rehearsal.
    let left = held_by_pods()?;
    let is_new = |line: &&str| left_before.lines().all(|before| before != *line);
    let left: Vec<&str> = left.lines().filter(is_new).collect();
    println!("{}", if left.is_empty() { "nothing".to_owned() } else { left.join("\n") });
    ensure!(left.is_empty(), "something is left");

    chapter("Where the time of the last pod start went");
    shell("isopod phases")?;

    chapter(
        "A container pod and a VM pod: the same image in containerd + runc, started in this node just now",
    );
    print!("\n{}", at_a_glance::compare()?);
    println!("\n(Under emulation all of this is far slower than on a processor with virtualization.)");
    Ok(())
}

struct Pod {
    id: String,
    containers: Vec<(String, String)>,
}

impl Pod {
    fn container(&self, name: &str) -> &str {
        let found = self.containers.iter().find(|(known, _)| known == name);
        found.map(|(_, id)| id.as_str()).expect("the story names containers that it made")
    }
}

/// A pod with containers: name, image, command.
fn start_pod(name: &str, containers: &[(&str, &str, &[&str])]) -> Result<Pod> {
    let metadata = json!({"name": name, "namespace": "demo", "uid": format!("uid-{name}"), "attempt": 0});
    let pod_file = write(
        &format!("{name}.json"),
        &json!({
            "metadata": metadata, "hostname": name, "log_directory": format!("/tmp/logs/{name}"),
        "linux": {"cgroup_parent": "/demo"},
        }),
    )?;
    let id = shell(&format!("crictl runp {pod_file}"))?.trim().to_owned();
    let mut made = Vec::new();
    for (container, image, command) in containers {
        let config = json!({
            "metadata": {"name": container}, "image": {"image": image}, "command": command,
            "log_path": format!("{container}.log"), "linux": {},
        });
        let file = write(&format!("{name}-{container}.json"), &config)?;
        let container_id = shell(&format!("crictl create {id} {file} {pod_file}"))?.trim().to_owned();
        shell(&format!("crictl start {container_id}"))?;
        made.push(((*container).to_owned(), container_id));
    }
    Ok(Pod { id, containers: made })
}

fn look_at(first: &Pod, second: &Pod) -> Result<()> {
    shell("crictl pods")?;
    shell("crictl ps")?;
    let client = second.container("client");
    shell(&format!("crictl inspectp {} | head -n 20", first.id))?;
    shell(&format!("crictl inspect {client} | head -n 20"))?;
    shell("crictl stats")?;
    let log = shell(&format!("crictl logs {client}"))?;
    ensure!(log.contains("hello from second"), "the container's log lacks its line");
    Ok(())
}

fn address_of(pod: &Pod) -> Result<String> {
    let status =
        shell(&format!("crictl inspectp -o go-template --template '{{{{.status.network.ip}}}}' {}", pod.id))?;
    Ok(status.trim().to_owned())
}

/// Everything on the node that a pod may hold, one line each.
fn held_by_pods() -> Result<String> {
    let script = "pgrep -x isopod-vmm; ip -o link | grep -oE 'veth[^@:]*|tap[0-9]+'; ip netns list; \
        grep -E 'isopod-|/run/isopod/' /proc/mounts | cut -d' ' -f2; find /sys/fs/cgroup -name '*isopod-*' ! -path '*isopod-template-*' -type d; \
        ls /run/isopod/sandboxes /run/isopod/containers /run/isopod/network 2>/dev/null | grep -v ':$' | grep .; \
        ls /var/lib/cni/networks/*/ 2>/dev/null | grep -E '^[0-9]+\\.'; true";
    capture(script)
}

fn chapter(title: &str) {
    println!("\n\x1b[1m== {title}\x1b[0m");
}

fn write(name: &str, content: &serde_json::Value) -> Result<String> {
    let path = format!("/tmp/{name}");
    std::fs::write(&path, serde_json::to_vec_pretty(content)?).with_context(|| path.clone())?;
    Ok(path)
}

/// Types a command, prints its answer, and fails where it does. What it says on stderr is shown and not given back.
fn shell(command: &str) -> Result<String> {
    println!("\n\x1b[32m$\x1b[0m {command}");
    let output = capture(command)?;
    print!("{output}");
    std::io::stdout().flush()?;
    Ok(output)
}

fn capture(command: &str) -> Result<String> {
    std::io::stdout().flush()?;
    let ran = Command::new("sh").args(["-c", command]).stderr(Stdio::inherit()).output()?;
    ensure!(ran.status.success(), "{command:?} failed");
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
