//! RunPodSandbox fails after each of its steps in turn, by the faults of `undo`, and nothing may be left of it. The steps
//! are not known here: they are counted until a start succeeds.

use crate::fakes::{FakeNode, pod};
use isopod_runtime::undo::Fault;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The stacks that RunPodSandbox has.
const STACKS: [&str; 3] = ["RunPodSandbox", "RunPodSandbox.network", "RunPodSandbox.vm"];

/// Names the file of faults to the process of its own in which they are tried, as they come over all its
/// operations.
const FAULT_FILE: &str = "ISOPOD_TEST_FAULT_FILE";

#[test]
fn failure_at_every_step_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "faults::every_step_in_turn", "--ignored", "--nocapture"])
        .env(FAULT_FILE, directory.path().join("fault"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("1 passed"), "the test in the child did not run: {said}");
}

#[tokio::test]
#[ignore = "run by failure_at_every_step_leaves_nothing, in a process of its own"]
async fn every_step_in_turn() {
    let file = PathBuf::from(env::var_os(FAULT_FILE).expect("the parent names the file"));
    Fault::look_in(file.clone());
    let node = FakeNode::new();
    for stack in STACKS {
        let mut steps = 0;
        loop {
            fs::write(&file, format!("{stack} {}", steps + 1)).unwrap();
            match node.sandboxes.start(pod("web")).await {
                Err(error) => {
                    assert!(error.to_string().contains("failed on purpose"), "{error}");
                    node.nothing_is_left().await;
                    steps += 1;
                }
                Ok(id) => {
                    let sandbox = node.sandboxes.get(&id).unwrap();
                    node.sandboxes.stop(&sandbox).await.unwrap();
                    node.sandboxes.remove(&sandbox).await.unwrap();
                    break;
                }
            }
        }
        assert!(steps > 0, "{stack} has no steps: is its name right?");
    }
}
