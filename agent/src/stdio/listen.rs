//! Accepts connections on the stdio port and finds the stream that each asks for.

use super::{Connection, refuse};
use crate::console;
use crate::id::Id;
use crate::sandbox::Sandbox;
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

/// How long a stream may be asked for before the call that makes its process has come through. The host then need not
/// wait for that call's answer.
const APPEARANCE_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a failure to accept, which is a lack of descriptors or memory that others must end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves streams for ever.
pub async fn serve(sandbox: Arc<Sandbox>, listener: VsockListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            // Processes in the guest have no business here.
            Ok((_, peer)) if peer.cid() != HOST_CID => {}
            Ok((connection, _)) => {
                // The host is told by the end of the connection that there are too many.
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let sandbox = sandbox.clone();
                tokio::spawn(async move {
                    serve_connection(&sandbox, connection).await;
                    drop(place);
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
pub async fn serve_connection<C: Connection>(sandbox: &Sandbox, mut connection: C) {
    let open = match timeout(OPENING_DEADLINE, read_opening(&mut connection)).await {
        Ok(Ok(open)) => open,
        Ok(Err(refusal)) => return refuse(&mut connection, refusal).await,
        Err(_) => return,
    };
    let stream = open.stream();
    let process = match find(sandbox, &open).await {
        Ok(process) => process,
        Err(refusal) => return refuse(&mut connection, refusal).await,
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

async fn find(sandbox: &Sandbox, open: &StreamOpen) -> Result<Arc<crate::process::Process>, String> {
    let container = Id::parse("container_id", &open.container_id).map_err(|error| error.to_string())?;
    let process = match open.process_id.as_str() {
        "" => None,
        id => Some(Id::parse("process_id", id).map_err(|error| error.to_string())?),
    };
    let appears = sandbox.containers.appearance(&container, process.as_ref());
    match timeout(APPEARANCE_DEADLINE, appears).await {
        Ok(process) => Ok(process),
        Err(_) => Err(format!("no process {:?} in container {container}", open.process_id)),
    }
}
