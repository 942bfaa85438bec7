//! Cases about bytes in and out of processes: terminals, standard input, output that nobody hurries to read.

use super::super::guest::{Guest, assert_refused};
use isopod_protocols::agent::{StartExecRequest, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

pub async fn terminals_have_a_size_and_take_input(guest: Guest) {
    let script = "tty; stty size; read line; echo got $line";
    let container = guest.shell(script).terminal().stdin(false).create().await.unwrap();
    container.resize("", 101, 33).await.unwrap();
    container.start().await.unwrap();
    let mut stdin = container.open("", Stream::Stdin).await.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    assert_eq!(container.wait("").await.code, 0);
    let output = container.output("").await;
    assert!(
        output.contains("33 101") && output.contains("got hello") && output.contains("/dev/"),
        "{output}"
    );
    assert!(container.open("", Stream::Stderr).await.unwrap_err().contains("terminal"));

    let container = guest.shell("sleep 100").user("web").run().await;
    let request = StartExecRequest {
        terminal: true,
        stdin: true,
        ..container.exec_request("t", &["sh", "-c", script])
    };
    container.start_exec(request).await.unwrap();
    container.resize("t", 80, 25).await.unwrap();
    container.open("t", Stream::Stdin).await.unwrap().write_all(b"bye\n").await.unwrap();
    assert_eq!(container.wait("t").await.code, 0);
    assert!(container.output("t").await.contains("got bye"));
    assert_refused(container.resize("", 80, 25).await, Code::InvalidArgument, "terminal");
}

pub async fn stdin_reaches_the_process(guest: Guest) {
    let container = guest.shell("cat; echo end").stdin(true).create().await.unwrap();
    // Before it runs.
    let mut stdin = container.open("", Stream::Stdin).await.unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    container.start().await.unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(container.wait("").await.code, 0);
    assert_eq!(container.output("").await, "one\ntwo\nend");

    let container = guest.shell("sleep 100").run().await;
    let request = StartExecRequest { stdin: true, ..container.exec_request("e", &["wc", "-c"]) };
    // The stream is asked for before its process is made.
    let early = tokio::spawn({
        let container = container.clone();
        async move { container.open("e", Stream::Stdin).await }
    });
    tokio::task::yield_now().await;
    container.start_exec(request).await.unwrap();
    let mut stdin = early.await.unwrap().unwrap();
    stdin.write_all(&vec![7; 1 << 20]).await.unwrap();
    stdin.shutdown().await.unwrap();
    container.wait("e").await;
    assert_eq!(container.output("e").await, "1048576");
}

pub async fn much_output_is_not_lost(guest: Guest) {
    let container = guest.shell("seq 200000").run().await;
    let mut host = container.open("", Stream::Stdout).await.unwrap();
    let mut text = Vec::new();
    loop {
        let mut chunk = [0; 8192];
        let count = host.read(&mut chunk).await.unwrap();
        if count == 0 {
            break;
        }
        text.extend_from_slice(&chunk[..count]);
        host.write_u64_le(text.len() as u64).await.unwrap();
    }
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected.as_bytes());
}
