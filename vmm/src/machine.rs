//! A running virtual machine, and what each request means to it. Made by the builder, called by the control server.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use isopod_protocols::vmm::{ErrorKind, Extent, Request, Response, Stats};

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
        self.serve(request, fds).unwrap_or_else(|refusal| refusal)
    }

    fn serve(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, Response> {
        let devices = &self.devices;
        match request {
            Request::Boot(_) | Request::BootTemplate(_) | Request::Restore { .. } => {
                return Err(error(ErrorKind::State, "the vm runs already: a vmm boots once"));
            }
            Request::Save { .. } | Request::ResizeMemory { .. } => {
                return Err(error(ErrorKind::State, "not possible for this vm"));
            }
            Request::AttachExtent { length, read_only } => {
                let attached = devices.extents.attach(one(fds)?, length, read_only);
                return Ok(Response::Extent { offset: attached.map_err(extent_refused)? });
            }
            Request::DetachExtent { offset: 0 } => {
                return Err(error(
                    ErrorKind::Invalid,
                    "the extent at offset 0 is the guest's own root and stays",
                ));
            }
            Request::DetachExtent { offset } => devices.extents.detach(offset).map_err(extent_refused)?,
            Request::ListExtents {} => return Ok(Response::Extents { extents: self.extents() }),
            Request::AttachTap {} => {
                let tap = one(fds)?;
                devices.net.with(|net| net.attach(tap)).map_err(|e| error(ErrorKind::Invalid, e))?;
            }
            Request::ListenVsock { port } => {
                let acceptor = one(fds)?;
                let listening = devices.vsock.with(|vsock| vsock.listen(port, acceptor));
                listening.map_err(|e| error(ErrorKind::State, e))?;
            }
            Request::Stats {} => return Ok(Response::Stats(self.stats())),
            Request::Console {} => return Ok(Response::Console { text: self.console.tail() }),
            Request::Stop {} => self.ending.end(VmExit::Stopped),
        }
        Ok(Response::Done {})
    }

    /// Brings the processors back from the guest: from here on nothing of the guest runs.
    pub fn stop(&self) {
        self.vcpus.lock().expect("nobody panics with this lock").stop();
    }

    fn extents(&self) -> Vec<Extent> {
        let all = self.devices.extents.save();
        all.iter().map(|extent| Extent { offset: extent.offset, read_only: extent.read_only }).collect()
    }

    fn stats(&self) -> Stats {
        let devices = &self.devices;
        Stats {
            exits: self.vcpus.lock().expect("nobody panics with this lock").exits(),
            disk_read_bytes: devices.disk_read.get(),
            disk_write_bytes: devices.disk_written.get(),
            net_rx_bytes: devices.net_received.get(),
            net_tx_bytes: devices.net_sent.get(),
            vsock_connections: devices.vsock_connections.get(),
            memory_bytes: 0,
            reclaimed_bytes: devices.reclaimed.get(),
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
