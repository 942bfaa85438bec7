//! Accepts connections on the stdio port, finds the process that each asks for, and hands it to that
//! process's streams (`stdio`).

use crate::console;
use crate::container::Containers;
use crate::id::Id;
use crate::process::Process;
use crate::stdio::connection::{Connection, refuse};
use isopod_protocols::agent::StreamOpen;
use isopod_protocols::stdio::{decode_open, opening_length};
use isopod_protocols::vsock::HOST_CID;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::VsockListener;

/// Connections served at a time; each costs a task and two small buffers.
const MAX_CONNECTIONS: usize = 512;

/// How long a connection may take to say what it wants.
const OPENING_DEADLINE: Duration = Duration::from_secs(5);

/// How long a stream may be asked for before the call that makes its process has come through. The host then
/// need not wait for that call's answer.
const APPEARANCE_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a failure to accept, which is a lack of descriptors or memory that others must end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves streams for ever.
pub async fn serve(containers: Arc<Containers>, listener: VsockListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            // Processes in the guest have no business here.
            Ok((_, peer)) if peer.cid() != HOST_CID => {}
            Ok((connection, _)) => {
                // The host is told by the end of the connection that there are too many.
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let containers = containers.clone();
                tokio::spawn(async move {
                    serve_connection(&containers, connection).await;
                    drop(permit);
                });
            }
            Err(error) => {
                console::error!("stdio connection cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
pub async fn serve_connection<C: Connection>(containers: &Containers, mut connection: C) {
    let open = match timeout(OPENING_DEADLINE, read_opening(&mut connection)).await {
        Ok(Ok(open)) => open,
        Ok(Err(reason)) => return refuse(&mut connection, reason).await,
        Err(_) => return,
    };
    let stream = open.stream();
    let process = match find(containers, &open).await {
        Ok(process) => process,
        Err(reason) => return refuse(&mut connection, reason).await,
    };
    process.streams().serve(stream, open.resume_at, connection).await;
}

async fn read_opening(connection: &mut impl Connection) -> Result<StreamOpen, String> {
    let mut prefix = [0; 2];
    connection.read_exact(&mut prefix).await.map_err(|error| error.to_string())?;
    let length = opening_length(prefix).map_err(|error| error.to_string())?;
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.map_err(|error| error.to_string())?;
    decode_open(&body).map_err(|error| error.to_string())
}

async fn find(containers: &Containers, open: &StreamOpen) -> Result<Arc<Process>, String> {
    let container = Id::parse("container_id", &open.container_id).map_err(|error| error.to_string())?;
    let process = Id::parse_optional("process_id", &open.process_id).map_err(|error| error.to_string())?;
    let appears = containers.appearance(&container, process.as_ref());
    match timeout(APPEARANCE_DEADLINE, appears).await {
        Ok(process) => Ok(process),
        Err(_) => Err(format!("no process {:?} in container {container}", open.process_id)),
    }
}
