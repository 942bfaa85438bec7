//! `isopod-vmm --uid N --gid N --largest-file BYTES`: runs one virtual machine, told so over the control socket at descriptor 3.
//!
//! The steps of its life are those of [`run`]. Standard error is the sandbox's log; its last line says why the process
//! ended. Exit code 0: the guest powered off or a client asked for the end; 1: it never ran; 2: it ended otherwise.
//!
//! `isopod-vmm --hold`, with the same arguments, runs nothing: it keeps a template's memory (descriptor 3) and state (4) open, so
//! that they outlive the daemon, until it is killed.

use std::{panic, sync::Arc};

use anyhow::Context;
use isopod_protocols::vmm::{CONTROL_FD, ErrorKind, Response};
use isopod_vmm::{
    builder,
    control::{self, Client, FirstRequest, Listener},
    exit::VmExit,
    jail::{self, Confinement},
    log,
    machine::Machine,
    restore,
    seccomp::{Filter, Stage},
    server::Server,
    sys,
    virtio::EventLoop,
};

const NEVER_RAN: i32 = 1;
const ENDED_BADLY: i32 = 2;

fn main() {
    sys::share_one_heap();
    log::begin();
    panic::set_hook(Box::new(|panic| {
        log::last_words(format_args!("defect: {panic}"), None);
        sys::exit_now(ENDED_BADLY);
    }));
    let mut arguments = std::env::args().skip(1).peekable();
    let outcome = match arguments.next_if_eq("--hold") {
        Some(_) => hold(arguments),
        None => run(arguments),
    };
    let code = match outcome {
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
fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<(VmExit, Arc<Machine>)> {
    let confinement = Confinement::from_arguments(arguments)?;
    sys::close_descriptors_from(CONTROL_FD + 1).context("cannot close inherited descriptors")?;
    let listener = Listener::new(sys::own(CONTROL_FD));
    jail::enter(confinement)?;
    Filter::new(Stage::Boot)?.install()?;

    let (client, mut events, machine) = make(&listener)?;
    let poller = events.poller();
    let server = Server::new(listener, client, machine.clone(), poller.clone())?;
    events.subscribe(&poller, server);
    let stage = if machine.template.is_some() { Stage::Template } else { Stage::EventLoop };
    Filter::new(stage)?.install()?;

    let served = events.run();
    machine.stop();
    let exit = match served {
        Ok(()) => machine.exit.reason().unwrap_or(VmExit::Stopped),
        Err(error) => VmExit::EventLoop { errno: error.raw_os_error().unwrap_or(0) },
    };
    Ok((exit, machine))
}

/// Waits for the request that makes the VM, does it and answers it.
fn make(listener: &Listener) -> anyhow::Result<(Client, EventLoop, Arc<Machine>)> {
    let (client, request, files) = listener.first_request()?;
    let mut events = EventLoop::new()?;
    let made = match &request {
        FirstRequest::Boot(config) => builder::boot(config, files, &mut events).map_err(boot_failed),
        FirstRequest::BootTemplate(config) => {
            builder::boot_template(config, files, &mut events).map_err(boot_failed)
        }
        FirstRequest::Restore(built_from, shape) => restore::restore(built_from, *shape, files, &mut events)
            .map_err(|error| (error.kind(), anyhow::Error::new(error).context("clone failed"))),
    };
    match made {
        Ok(machine) => {
            log::line(format_args!("vcpus run: {request}"));
            // A client that has gone is found by the server.
            let _ = client.answer(&Response::Done {});
            Ok((client, events, Arc::new(machine)))
        }
        Err((kind, error)) => {
            let _ = client.answer(&control::error(kind, format!("{error:#}")));
            Err(error)
        }
    }
}

fn boot_failed(error: builder::BootError) -> (ErrorKind, anyhow::Error) {
    (error.kind(), anyhow::Error::new(error).context("boot failed"))
}

/// Keeps two descriptors open, locked in like a VM, until the process is killed.
fn hold(arguments: impl Iterator<Item = String>) -> anyhow::Result<(VmExit, Arc<Machine>)> {
    const FIRST_FREE: i32 = 5;
    let confinement = Confinement::from_arguments(arguments)?;
    sys::close_descriptors_from(FIRST_FREE).context("cannot close inherited descriptors")?;
    jail::enter(confinement)?;
    // Lists of processes shall tell it from VMs.
    nix::sys::prctl::set_name(c"isopod-template").context("cannot take the name of a holder")?;
    Filter::new(Stage::Hold)?.install()?;
    loop {
        nix::unistd::pause();
    }
}
