//! Fuzz targets: functions of any bytes that must come back. README.md beside this file tells how they are run.
//!
//! Only for tests: built with the feature `testing`. What a target does with a guest's words is in `driver.rs`.

mod driver;
mod source;

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::Arc,
};

use isopod_protocols::vmm::{MAX_FDS, MAX_MESSAGE, PageRange, Request};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair},
};
use vm_memory::GuestAddress;

use crate::{
    control::{Client, Received},
    layout::{self, Range},
    memory::GuestMemory,
    pluggable::MemorySize,
    snapshot,
    virtio::{
        Poller,
        balloon::{Balloon, BalloonState},
        block::Extents,
        console::{Console, ConsoleState},
        mem::{BLOCK, Mem, MemState},
        net::{Net, NetState},
        testing::{MEMORY, Part, Rig},
    },
    working_set,
};
use driver::{Setting, play};
use source::Source;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("a small mapping")
}

/// A socket that keeps frames apart as a tap does, and the far end of it.
fn wire() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair of sockets")
}

/// The network card, with frames that come and go.
pub fn net(bytes: &[u8]) {
    let (tap, far) = wire();
    let make = |poller: Poller, _: Option<&NetState>| {
        let mut net = Net::new(poller);
        net.watch(tap.try_clone().ok()?).ok()?;
        Some(net)
    };
    let host = |rig: &mut Rig<Net>, source: &mut Source<'_>| {
        if source.u8() & 1 == 0 {
            send_frame(rig, source);
        } else {
            let mut frame = source.bytes(64).to_vec();
            frame.resize(source.below(70_000), 7);
            // The wire may be full.
            let _ = send(far.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL);
        }
        let mut header = [0; 12];
        while let Ok(length) = recv(far.as_raw_fd(), &mut header, MsgFlags::MSG_TRUNC) {
            check_header(header, length - header.len());
        }
    };
    play::<Net, _, _>(&mut Source::new(bytes), Setting { memory: memory(), make, host });
}

/// Has the driver send a frame whose header is nearly right: from bytes alone a right one would hardly ever
/// come.
fn send_frame(rig: &mut Rig<Net>, source: &mut Source<'_>) {
    const TRANSMIT: usize = 1;
    let frame = vec![7; source.below(400)];
    let near = |source: &mut Source<'_>| match source.u8() % 4 {
        0 => source.u16(),
        1 => (frame.len() as u16).wrapping_add(2).wrapping_sub(source.u16() % 6),
        _ => source.u16() % 64,
    };
    let kinds = [0, 1, 3, 4, 5, 0x80, 0x81, source.u8()];
    let mut header = vec![source.u8() % 3, kinds[source.below(kinds.len())]];
    for _ in 0..5 {
        header.extend(near(source).to_le_bytes());
    }
    let (first, second) = header.split_at(source.below(header.len() + 1));
    rig.offer(TRANSMIT, &[Part::Out(first), Part::Out(second), Part::Out(&frame)]);
    rig.write(0x50, TRANSMIT as u32);
    rig.run_for(2);
}

/// What a tap may be told of a frame of `length` bytes, whatever its guest has said.
fn check_header(header: [u8; 12], length: usize) {
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (flags, segmentation) = (header[0], header[1]);
    assert!(flags <= 1 && [0, 1, 4].contains(&segmentation), "{header:?}");
    assert!(number(2) <= length && number(10) == 0, "{header:?} {length}");
    assert!(flags == 0 || number(6) + number(8) + 2 <= length, "{header:?} {length}");
    assert!(segmentation == 0 || (flags == 1 && (8..0xffff).contains(&number(4))), "{header:?}");
}

/// The balloon, whose target changes.
pub fn balloon(bytes: &[u8]) {
    let make = |_: Poller, state: Option<&BalloonState>| {
        Some(state.cloned().map_or_else(Balloon::new, Balloon::restore))
    };
    let host = |rig: &mut Rig<Balloon>, source: &mut Source<'_>| {
        rig.transport.with(|balloon| balloon.set_target(source.u32()));
        rig.transport.interrupt().config_changed();
    };
    play::<Balloon, _, _>(&mut Source::new(bytes), Setting { memory: memory(), make, host });
}

/// The memory device, which is asked for more and less.
pub fn mem(bytes: &[u8]) {
    const REGION: Range = Range { start: 64 << 20, len: 16 * BLOCK };
    let ranges = [(GuestAddress(0), MEMORY), (GuestAddress(REGION.start), REGION.len as usize)];
    let memory = GuestMemory::from_ranges(&ranges).expect("a small mapping");
    let make = |_: Poller, state: Option<&MemState>| match state {
        None => Some(Mem::new(REGION)),
        Some(state) => Mem::restore(state).ok(),
    };
    let host = |rig: &mut Rig<Mem>, source: &mut Source<'_>| {
        rig.transport.with(|mem| mem.request(source.u64() % (2 * REGION.len)));
        rig.transport.interrupt().config_changed();
    };
    play::<Mem, _, _>(&mut Source::new(bytes), Setting { memory, make, host });
}

/// The console. What comes out at a time is bounded.
pub fn console(bytes: &[u8]) {
    let make = |_: Poller, _: Option<&ConsoleState>| {
        Some(Console::new(Arc::new(|text: &[u8]| assert!(text.len() <= 16 << 10))))
    };
    let host = |_: &mut Rig<Console>, _: &mut Source<'_>| {};
    play::<Console, _, _>(&mut Source::new(bytes), Setting { memory: memory(), make, host });
}

/// The file that a template's state is read from: one of ours with some bytes changed, or any content, both under a right
/// checksum; and the file as a whole.
pub fn saved_state(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let mut content = snapshot::example();
    let file = match source.u8() % 3 {
        0 => source.rest().to_vec(),
        1 => snapshot::framed(source.rest()),
        _ => {
            while !source.is_empty() {
                let at = source.below(content.len());
                content[at] = source.u8();
            }
            snapshot::framed(&content)
        }
    };
    if let Ok(state) = snapshot::read(&file_of(&file), snapshot::EXAMPLE_BUILT_FROM, snapshot::EXAMPLE_SHAPE)
    {
        let ram = layout::ram(state.memory_mib);
        assert!(ram.iter().all(|range| range.start.checked_add(range.len).is_some()));
        let _ = layout::pluggable(state.memory_mib, state.max_memory_mib);
        assert!((state.vcpus.len(), state.max_vcpus, state.nested) == (1, 2, false));
    }
}

/// Packets on the control socket, with descriptors, and what those requests do that need no KVM.
pub fn control(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair");
    let (mut client, file) = (Client::new(near), file_of(&[1; 4096]));
    let (memory, extents) = (memory(), Extents::new());
    let size = MemorySize::new(64, 256, None);
    for _ in 0..64 {
        if source.is_empty() {
            break;
        }
        let packet = packet(&mut source);
        let descriptors = vec![file.as_raw_fd(); source.below(MAX_FDS + 3)];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let beside = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        let parts = [std::io::IoSlice::new(&packet)];
        let sent = sendmsg::<()>(far.as_raw_fd(), &parts, beside, MsgFlags::MSG_NOSIGNAL, None);
        sent.expect("the socket has room for one packet");
        match client.receive() {
            Received::Request(request, fds) => serve(request, fds, &memory, &extents, &size),
            Received::Malformed(what) => assert!(!what.is_empty()),
            Received::Nothing | Received::Gone => {}
        }
    }
}

/// Any bytes, or a request with any numbers, of which a byte may be another one.
fn packet(source: &mut Source<'_>) -> Vec<u8> {
    let request = match source.u8() % 8 {
        0 => {
            let mut bytes = source.bytes(2000).to_vec();
            bytes.resize(bytes.len().max(1), b'{');
            if source.u8() == 0 {
                bytes.resize(MAX_MESSAGE + 1, b' ');
            }
            return bytes;
        }
        1 => {
            let count = source.below(20);
            Request::Populate {
                pages: (0..count).map(|_| PageRange(source.u64(), source.u64() % 300)).collect(),
            }
        }
        2 => Request::Populate { pages: vec![PageRange(source.u64() % 4096, source.u64())] },
        3 => Request::ResizeMemory { memory_mib: source.u32() },
        4 => Request::AttachExtent { length: source.u64(), read_only: source.u8() & 1 == 0 },
        5 => Request::AttachExtent { length: u64::from(source.u16()) * 512, read_only: true },
        6 => Request::DetachExtent { offset: u64::from(source.u8()) << 20 },
        _ => Request::Save { built_from: String::from_utf8_lossy(source.bytes(300)).into_owned() },
    };
    let mut bytes = serde_json::to_vec(&request).expect("a request can be encoded");
    if source.u8() & 7 == 0 {
        let at = source.below(bytes.len());
        bytes[at] = source.u8();
    }
    bytes
}

fn serve(request: Request, fds: Vec<OwnedFd>, memory: &GuestMemory, extents: &Extents, size: &MemorySize) {
    match request {
        Request::Populate { pages } => drop(working_set::populate(memory, &pages)),
        Request::ResizeMemory { memory_mib } => drop(size.resize(memory_mib)),
        Request::AttachExtent { length, read_only } => {
            if let Some(fd) = fds.into_iter().next() {
                drop(extents.attach(fd, length, read_only));
            }
        }
        Request::DetachExtent { offset } => drop(extents.detach(offset)),
        _ => {}
    }
    let saved = extents.save();
    assert!(saved.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset), "{saved:?}");
}

/// A file without a name that holds these bytes.
fn file_of(bytes: &[u8]) -> File {
    let file = File::from(memfd_create(c"fuzzing", MFdFlags::MFD_CLOEXEC).expect("a memory file"));
    file.write_all_at(bytes, 0).expect("room for a small file");
    file
}
