//! `isopod-vmm --uid N --gid N`: runs one virtual machine, told so over the control socket at descriptor 3.
//!
//! The steps of its life are those of [`run`]. Standard error is the sandbox's log; its last line says why the process
//! ended. Exit code 0: the guest powered off or a client asked for the end; 1: it never ran; 2: it ended otherwise.

use std::{panic, sync::Arc};

use anyhow::Context;
use isopod_protocols::vmm::{CONTROL_FD, Response};
use isopod_vmm::{
    builder,
    control::{self, Client, Listener, Server},
    end::VmExit,
    jail::{self, Identity},
    log,
    machine::Machine,
    seccomp::{Filter, Stage},
    sys,
    virtio::EventLoop,
};

const NEVER_RAN: i32 = 1;
const ENDED_BADLY: i32 = 2;

fn main() {
    log::begin();
    panic::set_hook(Box::new(|panic| {
        log::last_words(format_args!("defect: {panic}"), None);
        sys::exit_now(ENDED_BADLY);
    }));
    let code = match run() {
        Ok((exit, _)) if exit.is_clean() => {
            log::last_words(exit, None);
            0
        }
        Ok((exit, machine)) => {
            log::last_words(exit, Some(&machine.console.tail()));
            ENDED_BADLY
        }
        Err(error) => {
            log::last_words(format_args!("{error:#}"), None);
            NEVER_RAN
        }
    };
    // The kernel takes the guest's memory apart after the parent has been told.
    sys::exit_now(code);
}

/// From the start of the process to the end of its VM.
fn run() -> anyhow::Result<(VmExit, Arc<Machine>)> {
    let identity = Identity::from_arguments(std::env::args().skip(1))?;
    sys::close_descriptors_from(CONTROL_FD + 1).context("cannot close inherited descriptors")?;
    let listener = Listener::new(sys::own(CONTROL_FD));
    jail::enter(identity)?;
    Filter::new(Stage::Boot)?.install()?;

    let (client, mut events, machine) = boot(&listener)?;
    let poller = events.poller();
    let server = Server::new(listener, client, machine.clone(), poller.clone())?;
    events.subscribe(&poller, server);
    Filter::new(Stage::EventLoop)?.install()?;

    let served = events.run();
    machine.stop();
    let exit = match served {
        Ok(()) => machine.ending.reason().unwrap_or(VmExit::Stopped),
        Err(error) => VmExit::EventLoop { errno: error.raw_os_error().unwrap_or(0) },
    };
    Ok((exit, machine))
}

/// Waits for the boot request, does it and answers it.
fn boot(listener: &Listener) -> anyhow::Result<(Client, EventLoop, Arc<Machine>)> {
    let (client, config, files) = listener.first_boot()?;
    log::line(format_args!("boot: {} vcpus, {} MiB", config.vcpus, config.memory_mib));
    let mut events = EventLoop::new()?;
    match builder::boot(&config, files, &mut events) {
        Ok(machine) => {
            log::line("boot: vcpus run");
            // A client that has gone is found by the server.
            let _ = client.answer(&Response::Done {});
            Ok((client, events, Arc::new(machine)))
        }
        Err(error) => {
            let kind = error.kind();
            let error = anyhow::Error::new(error).context("boot failed");
            let _ = client.answer(&control::error(kind, format!("{error:#}")));
            Err(error)
        }
    }
}
