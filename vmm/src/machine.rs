//! A running virtual machine, and what each request means to it. Made by the builder, called by the control server.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use isopod_protocols::vmm::{ErrorKind, Request, Response, Stats};

use crate::{
    console_log::ConsoleLog,
    control::error,
    end::{Ending, VmExit},
    vcpu::VcpuThreads,
    vm::Vm,
};

/// A running VM.
pub struct Machine {
    /// Kept open as long as the guest runs.
    pub vm: Vm,
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
            Request::AttachExtent { .. }
            | Request::DetachExtent { .. }
            | Request::AttachTap {}
            | Request::ListenVsock { .. } => {
                drop(fds);
                error(ErrorKind::State, "no such device yet")
            }
        }
    }

    /// Brings the processors back from the guest: from here on nothing of the guest runs.
    pub fn stop(&self) {
        self.vcpus.lock().expect("nobody panics with this lock").stop();
    }

    fn stats(&self) -> Stats {
        let exits = self.vcpus.lock().expect("nobody panics with this lock").exits();
        Stats { exits, ..Default::default() }
    }
}
