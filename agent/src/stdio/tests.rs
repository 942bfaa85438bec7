//! Streams over real pipes and socket pairs, with this program in the part of the process and of the host.

use super::*;
use isopod_protocols::stdio::{WINDOW, decode_opened, opening_length};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const OPEN: Stdin = Stdin { open: true, once: false };
const ONCE: Stdin = Stdin { open: true, once: true };
const CLOSED: Stdin = Stdin { open: false, once: false };

/// Long enough for anything that happens at all, short enough to wait for what must not.
const SOON: Duration = Duration::from_millis(50);

fn streams(stdin: Stdin) -> (Arc<Streams>, [File; 3]) {
    let (streams, pipes) = Streams::pipes(stdin, Uid::current().as_raw()).unwrap();
    (Arc::new(streams), pipes.map(File::from))
}

/// Opens a stream as the host does; answers the connection and the offset.
async fn open(
    streams: &Arc<Streams>,
    stream: Stream,
    resume_at: Option<u64>,
) -> Result<(UnixStream, u64), String> {
    let (mut host, guest) = UnixStream::pair().unwrap();
    let streams = streams.clone();
    tokio::spawn(async move { streams.serve(stream, resume_at, guest).await });
    let mut prefix = [0; 2];
    host.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; opening_length(prefix).unwrap()];
    host.read_exact(&mut body).await.unwrap();
    let opened = decode_opened(&body).unwrap();
    if opened.error.is_empty() { Ok((host, opened.offset)) } else { Err(opened.error) }
}

async fn read(host: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(Duration::from_secs(5), host.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn is_silent(host: &mut UnixStream) -> bool {
    timeout(SOON, host.read_u8()).await.is_err()
}

async fn is_ended(host: &mut UnixStream) -> bool {
    matches!(timeout(Duration::from_secs(5), host.read(&mut [0])).await, Ok(Ok(0)))
}

#[tokio::test]
async fn output_arrives_and_ends_with_the_last_writer() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    stdout.write_all(b"before").unwrap();
    let (mut host, offset) = open(&streams, Stream::Stdout, None).await.unwrap();
    assert_eq!((offset, read(&mut host, 6).await), (0, b"before".to_vec()));
    let second_writer = stdout.try_clone().unwrap();
    stdout.write_all(b"after").unwrap();
    drop(stdout);
    assert_eq!(read(&mut host, 5).await, b"after");
    assert!(is_silent(&mut host).await);
    drop(second_writer);
    assert!(is_ended(&mut host).await);
}

#[tokio::test]
async fn output_of_a_process_that_has_gone_stays_readable() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    stdout.write_all(b"last words").unwrap();
    drop(stdout);
    for _ in 0..2 {
        let (mut host, offset) = open(&streams, Stream::Stdout, None).await.unwrap();
        assert_eq!((offset, read(&mut host, 10).await), (0, b"last words".to_vec()));
        assert!(is_ended(&mut host).await);
    }
}

#[tokio::test]
async fn reconnected_host_gets_what_it_did_not_acknowledge() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    stdout.write_all(b"0123456789").unwrap();
    let (mut host, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    read(&mut host, 10).await;
    host.write_u64_le(4).await.unwrap();
    host.shutdown().await.unwrap();
    assert!(is_ended(&mut host).await);
    let (mut host, offset) = open(&streams, Stream::Stdout, None).await.unwrap();
    assert_eq!((offset, read(&mut host, 6).await), (4, b"456789".to_vec()));
    let (mut host, offset) = open(&streams, Stream::Stdout, Some(9)).await.unwrap();
    assert_eq!((offset, read(&mut host, 1).await), (9, b"9".to_vec()));
    assert!(open(&streams, Stream::Stdout, Some(3)).await.unwrap_err().contains("acknowledged"));
}

#[tokio::test]
async fn second_connection_replaces_the_first() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    let (mut first, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    let (mut second, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    assert!(is_ended(&mut first).await);
    stdout.write_all(b"x").unwrap();
    assert_eq!(read(&mut second, 1).await, b"x");
}

#[tokio::test]
async fn nonsense_acknowledgement_ends_the_connection() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    stdout.write_all(b"x").unwrap();
    let (mut host, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    read(&mut host, 1).await;
    host.write_u64_le(2).await.unwrap();
    assert!(is_ended(&mut host).await);
}

#[tokio::test]
async fn process_is_held_up_until_the_host_acknowledges() {
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    let (mut host, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    // Twice what ring and pipe hold together.
    let total = 2 * (WINDOW + 64 * 1024);
    let process = std::thread::spawn(move || stdout.write_all(&vec![7; total]));
    let mut got = read(&mut host, WINDOW).await.len();
    assert!(is_silent(&mut host).await && !process.is_finished());
    while got < total {
        host.write_u64_le(got as u64).await.unwrap();
        got += read(&mut host, (total - got).min(WINDOW)).await.len();
    }
    process.join().unwrap().unwrap();
}

#[tokio::test]
async fn removal_ends_connections_and_later_ones_at_once() {
    let (streams, [_stdin, _stdout, _stderr]) = streams(OPEN);
    let (mut stdout, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    let (mut stdin, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    streams.close();
    assert!(is_ended(&mut stdout).await && is_ended(&mut stdin).await);
    let (mut late, _) = open(&streams, Stream::Stdout, None).await.unwrap();
    assert!(is_ended(&mut late).await);
}

#[tokio::test]
async fn streams_that_are_not_there_are_refused() {
    let (streams, _pipes) = streams(CLOSED);
    assert!(open(&streams, Stream::Stdin, None).await.unwrap_err().contains("without stdin"));
}

#[tokio::test]
async fn half_closed_connection_is_end_of_file() {
    let (streams, [mut stdin, ..]) = streams(OPEN);
    let (mut host, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    host.write_all(b"all of it").await.unwrap();
    host.shutdown().await.unwrap();
    assert!(is_ended(&mut host).await);
    let mut text = String::new();
    stdin.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all of it");
}

#[tokio::test]
async fn broken_connection_leaves_stdin_open_for_the_next() {
    let (streams, [mut stdin, ..]) = streams(OPEN);
    let (mut host, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    host.write_all(b"one").await.unwrap();
    drop(host);
    // A connection that replaces another one cuts off what that one still has on its way.
    tokio::time::sleep(SOON).await;
    let (mut host, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    tokio::time::sleep(SOON).await;
    host.write_all(b"two").await.unwrap();
    host.shutdown().await.unwrap();
    assert!(is_ended(&mut host).await);
    let mut text = String::new();
    stdin.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
}

#[tokio::test]
async fn stdin_once_ends_with_its_first_connection() {
    let (streams, [mut stdin, ..]) = streams(ONCE);
    let (host, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    drop(host);
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        stdin.read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(timeout(Duration::from_secs(5), text).await.unwrap().unwrap().unwrap(), "");
}

#[tokio::test]
async fn host_is_told_when_the_process_has_closed_its_stdin() {
    let (streams, [stdin, ..]) = streams(OPEN);
    let (mut host, _) = open(&streams, Stream::Stdin, None).await.unwrap();
    drop(stdin);
    host.write_all(b"nobody reads this").await.unwrap();
    assert!(is_ended(&mut host).await);
}

/// Bytes that tell their place.
fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

#[tokio::test]
async fn host_that_dies_again_and_again_misses_nothing() {
    const TOTAL: usize = 3 * WINDOW;
    let (streams, [_, mut stdout, _stderr]) = streams(CLOSED);
    let process = std::thread::spawn(move || stdout.write_all(&pattern(0, TOTAL)));
    let mut kept = Vec::new();
    let mut round = 1usize;
    while kept.len() < TOTAL {
        // Sizes without a pattern of their own; at times the host forgets what it had and asks for the default.
        let count = (round * 7919) % 50_000 + 1;
        let resume_at = (!round.is_multiple_of(3)).then_some(kept.len() as u64);
        let (mut host, offset) = open(&streams, Stream::Stdout, resume_at).await.unwrap();
        assert!(offset <= kept.len() as u64);
        kept.truncate(offset as usize);
        let count = count.min(TOTAL - kept.len());
        kept.extend(read(&mut host, count).await);
        if round.is_multiple_of(2) {
            host.write_u64_le(kept.len() as u64).await.unwrap();
            host.shutdown().await.unwrap();
            // What has not been taken when the next connection comes is lost, and a host that forgets needs it to get on.
            tokio::time::sleep(Duration::from_millis(1)).await;
            // To the end, which is an error where the agent closed with an acknowledgement unread.
            while matches!(host.read(&mut [0; 4096]).await, Ok(1..)) {}
        }
        round += 1;
    }
    assert!(kept == pattern(0, TOTAL));
    process.join().unwrap().unwrap();
}
