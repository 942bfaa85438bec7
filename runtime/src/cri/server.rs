//! The gRPC server on a unix socket.

use super::{ImageDoor, Node, RuntimeDoor};
use isopod_protocols::cri::image_service_server::ImageServiceServer;
use isopod_protocols::cri::runtime_service_server::RuntimeServiceServer;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// How long a daemon that was killed may hold its socket: its threads end one after another, each when the kernel has finished what
/// it does for it.
const LET_GO: Duration = Duration::from_secs(5);

/// Pause between two looks at a socket that is held.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Longest message, both ways, bytes: what kubelet's client allows.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Why the door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon answers there.
    #[error("socket {0}: another daemon serves it: stop that one, or set daemon.socket to another path")]
    InUse(PathBuf),
    /// The socket could not be made.
    #[error("socket {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server gave up.
    #[error("socket {path}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Binds the socket: root only, in place of a dead daemon's.
///
/// # Errors
/// [`ServerError::InUse`] where a daemon still answers on it after 5 s.
pub async fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    bind_within(LET_GO, path).await
}

async fn bind_within(let_go: Duration, path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Io { path: path.to_owned(), source };
    let begin = Instant::now();
    while UnixStream::connect(path).await.is_ok() {
        if begin.elapsed() > let_go {
            return Err(ServerError::InUse(path.to_owned()));
        }
        sleep(LOOK_AGAIN).await;
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Bound under another name first: nobody can connect before the permissions are right.
    let hidden = path.with_extension("new");
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    fs::set_permissions(&hidden, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

/// Serves `node` until `stop` is done, then lets the calls in flight finish.
///
/// # Errors
/// Where the transport gives up.
pub async fn serve(
    listener: UnixListener,
    node: Arc<Node>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let path = node.config.daemon.socket.clone();
    let image = ImageServiceServer::new(ImageDoor::new(Arc::clone(&node)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let runtime = RuntimeServiceServer::new(RuntimeDoor::new(node))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder()
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(|source| ServerError::Serve { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn daemon_that_serves_keeps_its_socket_and_one_that_ends_leaves_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("isopod.sock");
        let serving = bind(&path).await.unwrap();
        let refused = bind_within(LOOK_AGAIN, &path).await;
        assert!(matches!(refused, Err(ServerError::InUse(_))));
        let ending = tokio::spawn(async move {
            sleep(LOOK_AGAIN * 3).await;
            drop(serving);
        });
        assert!(bind(&path).await.is_ok());
        ending.await.unwrap();
    }
}
