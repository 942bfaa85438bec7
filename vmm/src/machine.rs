//! A running virtual machine, and what each request means to it. Made by the builder, called by the control server.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use isopod_protocols::vmm::{ErrorKind, Request, Response, Stats};

use crate::{
    console_log::ConsoleLog,
    control::error,
    devices::Devices,
    end::{Ending, VmExit},
    vcpu::VcpuThreads,
    virtio::block::ExtentError,
    vm::Vm,
};

/// A running VM.
pub struct Machine {
    /// Kept open as long as the guest runs.
    pub vm: Vm,
    /// What requests reach of the devices.
    pub devices: Devices,
    /// The guest's console output.
    pub console: Arc<ConsoleLog>,
    /// The processors.
    pub vcpus: Mutex<VcpuThreads>,
    /// Why the VM ended, once it has.
    pub ending: Ending,
}

impl Machine {
    /// Does what a client asks for.
    pub fn handle(&self, request: Request, fds: Vec<OwnedFd>) -> Response {
        match request {
            Request::Boot(_) => error(ErrorKind::State, "the vm runs already: a vmm boots once"),
            Request::Stats {} => Response::Stats(self.stats()),
            Request::Console {} => Response::Console { text: self.console.tail() },
            Request::Stop {} => {
                self.ending.end(VmExit::Stopped);
                Response::Done {}
            }
            Request::AttachExtent { length, read_only } => {
                one(fds).and_then(|file| self.attach_extent(file, length, read_only)).unwrap_or_else(|e| e)
            }
            Request::DetachExtent { offset: 0 } => {
                error(ErrorKind::Invalid, "the extent at offset 0 is the guest's own root and stays")
            }
            Request::DetachExtent { offset } => match self.devices.extents.detach(offset) {
                Ok(_) => Response::Done {},
                Err(refusal) => extent_refused(refusal),
            },
            Request::ListenVsock { port } => {
                one(fds).and_then(|acceptor| self.listen_vsock(port, acceptor)).unwrap_or_else(|e| e)
            }
            Request::AttachTap {} => error(ErrorKind::State, "no such device yet"),
        }
    }

    fn listen_vsock(&self, port: u32, acceptor: OwnedFd) -> Result<Response, Response> {
        let listening = self.devices.vsock.with(|vsock| vsock.listen(port, acceptor));
        listening.map(|()| Response::Done {}).map_err(|refusal| error(ErrorKind::State, refusal))
    }

    fn attach_extent(&self, file: OwnedFd, length: u64, read_only: bool) -> Result<Response, Response> {
        let offset = self.devices.extents.attach(file, length, read_only).map_err(extent_refused)?;
        Ok(Response::Extent { offset })
    }

    /// Brings the processors back from the guest: from here on nothing of the guest runs.
    pub fn stop(&self) {
        self.vcpus.lock().expect("nobody panics with this lock").stop();
    }

    fn stats(&self) -> Stats {
        let exits = self.vcpus.lock().expect("nobody panics with this lock").exits();
        Stats {
            exits,
            disk_read_bytes: self.devices.disk_read.get(),
            disk_write_bytes: self.devices.disk_written.get(),
            vsock_connections: self.devices.vsock_connections.get(),
            ..Default::default()
        }
    }
}

/// The only descriptor of a request that needs one.
fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, Response> {
    let count = fds.len();
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|_| error(ErrorKind::Invalid, format!("the request needs 1 descriptor, got {count}")))?;
    Ok(fd)
}

fn extent_refused(refusal: ExtentError) -> Response {
    let kind = match refusal {
        ExtentError::Full { .. } | ExtentError::Unknown(_) => ErrorKind::State,
        ExtentError::System(_) => ErrorKind::System,
        _ => ErrorKind::Invalid,
    };
    error(kind, refusal)
}
