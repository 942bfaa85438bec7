//! The state of a template in a file: what a clone is built from, beside the template's memory.
//!
//! ```text
//!  0   magic and format, 8 bytes      another program's file, or another version's, is refused here
//!  8   length of the content, u32     little endian
//! 12   CRC-32 of the content, u32     so is one that was cut off or damaged
//! 16   content: what it was made from, then the machine, in postcard's form
//! ```
//!
//! Written once by the machine of a template, read by `restore`. The file comes from the daemon and was
//! sealed by it; still, whatever is in it ends in an error and never in a panic.

use std::{fs::File, io, os::unix::fs::FileExt};

use isopod_protocols::vmm::Shape;
use serde::{Deserialize, Serialize};

use crate::{
    cpu::state::VcpuState,
    devices::DevicesState,
    layout::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, Range},
    vm::VmState,
};

/// Changes with the form of anything below.
const MAGIC: [u8; 8] = *b"isopodT3";
const HEADER: usize = 16;

/// Longest content in bytes: 64 processors take less than half of it.
const LONGEST: u32 = 2 << 20;

/// Longest text of what a template was made from, in bytes.
pub const MAX_BUILT_FROM: usize = 256;

/// A machine that is stopped.
#[derive(Serialize, Deserialize)]
pub struct MachineState {
    /// Memory that it booted with, MiB.
    pub memory_mib: u32,
    /// What it may grow to, MiB.
    pub max_memory_mib: u32,
    /// Most processors that it may have.
    pub max_vcpus: u8,
    /// Its guest may run VMs of its own: processors that are made later say so too.
    pub nested: bool,
    /// Stretches of the memory file, in bytes from its start, outside of which it is all zeroes.
    pub stretches: Vec<Range>,
    /// KVM's state of the machine as a whole.
    pub vm: VmState,
    /// One per processor.
    pub vcpus: Vec<VcpuState>,
    /// All devices.
    pub devices: DevicesState,
}

/// Why a state cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("cannot {0} the template's state")]
    Io(&'static str, #[source] io::Error),
    /// Not a state file of this program.
    #[error("the template's state is not one of this vmm's")]
    Foreign,
    /// Cut off or changed.
    #[error("the template's state is damaged: {0}")]
    Damaged(&'static str),
    /// A template of something else.
    #[error("the template was made from {found:?}, not from {wanted:?}")]
    BuiltFrom {
        /// What the file says.
        found: String,
        /// What the client asked for.
        wanted: String,
    },
    /// Another machine than that template.
    #[error("the template's state is of {found:?}, not of {wanted:?}")]
    Shape {
        /// What the file holds.
        found: Shape,
        /// What the client asked for.
        wanted: Shape,
    },
    /// More than a file may hold.
    #[error("the machine's state takes more than {LONGEST} bytes")]
    TooLong,
}

/// Writes the state of a template that was made from `built_from`.
pub fn write(file: &File, built_from: &str, state: &MachineState) -> Result<(), SnapshotError> {
    let content = postcard::to_allocvec(&(built_from, state)).map_err(|_| SnapshotError::TooLong)?;
    if content.len() > LONGEST as usize {
        return Err(SnapshotError::TooLong);
    }
    file.write_all_at(&framed(&content), 0).map_err(|source| SnapshotError::Io("write", source))
}

/// A file with this content, which is at most [`LONGEST`].
pub(crate) fn framed(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend(MAGIC);
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(content).to_le_bytes());
    bytes.extend(content);
    bytes
}

/// Reads the state of a template that must have been made from `built_from`, and booted as a machine of shape
/// `wanted`: what a clone may have is its client's to say and not the file's. Other clones may read the same
/// open file.
pub fn read(file: &File, built_from: &str, wanted: Shape) -> Result<MachineState, SnapshotError> {
    let failed = |source| SnapshotError::Io("read", source);
    let length = file.metadata().map_err(failed)?.len();
    if length > u64::from(LONGEST) + HEADER as u64 {
        return Err(SnapshotError::Damaged("it is longer than any can be"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let (header, content) = bytes.split_first_chunk::<HEADER>().ok_or(SnapshotError::Foreign)?;
    if header[..8] != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if content.len() != word(8) as usize {
        return Err(SnapshotError::Damaged("it is not as long as it says"));
    }
    if crc32fast::hash(content) != word(12) {
        return Err(SnapshotError::Damaged("its checksum is wrong"));
    }
    let (found, state): (String, MachineState) =
        postcard::from_bytes(content).map_err(|_| SnapshotError::Damaged("its content cannot be read"))?;
    if found != built_from {
        return Err(SnapshotError::BuiltFrom { found, wanted: built_from.to_owned() });
    }
    state.check()?;
    let found = state.shape();
    if found != wanted {
        return Err(SnapshotError::Shape { found, wanted });
    }
    Ok(state)
}

impl MachineState {
    /// Refuses sizes that no machine has. What the parts of a machine cannot be, each of them refuses itself.
    fn check(&self) -> Result<(), SnapshotError> {
        let memory = (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib)
            && (self.memory_mib..=MAX_MEMORY_MIB).contains(&self.max_memory_mib);
        let vcpus =
            (1..=usize::from(self.max_vcpus)).contains(&self.vcpus.len()) && self.max_vcpus <= MAX_VCPUS;
        if memory && vcpus { Ok(()) } else { Err(SnapshotError::Damaged("it has sizes that no machine has")) }
    }

    /// The machine, as a client knows it. Its processors are no more than [`Self::check`] allows.
    fn shape(&self) -> Shape {
        Shape {
            vcpus: self.vcpus.len() as u8,
            max_vcpus: self.max_vcpus,
            memory_mib: self.memory_mib,
            max_memory_mib: self.max_memory_mib,
            nested_virtualization: self.nested,
        }
    }
}

/// A state for tests: a machine of one processor that has not run.
#[cfg(any(test, feature = "testing"))]
mod example {
    use super::*;

    /// What it says it was made from.
    pub const EXAMPLE_BUILT_FROM: &str = "a b";

    /// What it was booted as.
    pub const EXAMPLE_SHAPE: Shape =
        Shape { vcpus: 1, max_vcpus: 2, memory_mib: 128, max_memory_mib: 256, nested_virtualization: false };

    impl MachineState {
        /// The machine.
        pub fn example() -> Self {
            Self {
                memory_mib: 128,
                max_memory_mib: 256,
                max_vcpus: 2,
                nested: false,
                stretches: vec![Range { start: 0, len: 4096 }],
                vm: VmState::default(),
                vcpus: vec![VcpuState::default()],
                devices: DevicesState::example(),
            }
        }
    }

    /// The content of its file.
    pub fn example() -> Vec<u8> {
        let state = (EXAMPLE_BUILT_FROM, MachineState::example());
        postcard::to_allocvec(&state).expect("a state can be encoded")
    }
}
#[cfg(any(test, feature = "testing"))]
pub use example::{EXAMPLE_BUILT_FROM, EXAMPLE_SHAPE, example};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written() -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.as_file(), "a b", &MachineState::example()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    fn read_from(bytes: &[u8], built_from: &str) -> Result<MachineState, SnapshotError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        read(&file, built_from, EXAMPLE_SHAPE)
    }

    #[test]
    fn what_was_written_is_read() {
        let read = read_from(&written(), "a b").unwrap();
        assert_eq!((read.memory_mib, read.stretches.len()), (128, 1));
        assert_eq!(read.devices, DevicesState::example());
    }

    #[test]
    fn foreign_file_is_refused() {
        for bytes in [&b""[..], b"isopodT3", &[0; 100], b"\x7fELF............................"] {
            assert!(matches!(read_from(bytes, "a b"), Err(SnapshotError::Foreign)));
        }
        assert!(matches!(read_from(&written(), "a c"), Err(SnapshotError::BuiltFrom { .. })));
    }

    /// Under a right checksum: what counts and sizes decide must not be taken as it is.
    #[test]
    fn machine_that_cannot_be_is_refused() {
        let changes: [fn(&mut MachineState); 7] = [
            |state| state.vcpus.clear(),
            |state| state.max_vcpus = 0,
            |state| state.max_vcpus = 65,
            |state| state.vcpus = (0..300).map(|_| VcpuState::default()).collect(),
            |state| state.memory_mib = 0,
            |state| state.max_memory_mib = 127,
            |state| state.max_memory_mib = u32::MAX,
        ];
        for change in changes {
            let mut state = MachineState::example();
            change(&mut state);
            let content = postcard::to_allocvec(&("a b", state)).unwrap();
            assert!(matches!(read_from(&framed(&content), "a b"), Err(SnapshotError::Damaged(_))));
        }
    }

    /// Sizes, and what a guest may do, are never what a file says they are.
    #[test]
    fn state_of_another_size_or_with_virtualization_is_refused() {
        let changes: [fn(&mut MachineState); 5] = [
            |state| state.vcpus.push(VcpuState::default()),
            |state| state.max_vcpus = 3,
            |state| state.memory_mib = 130,
            |state| state.max_memory_mib = 258,
            |state| state.nested = true,
        ];
        for change in changes {
            let mut state = MachineState::example();
            change(&mut state);
            let content = postcard::to_allocvec(&("a b", state)).unwrap();
            let refused = read_from(&framed(&content), "a b").err().expect("another machine");
            assert!(matches!(refused, SnapshotError::Shape { wanted: EXAMPLE_SHAPE, .. }), "{refused}");
        }
    }

    #[test]
    fn longer_or_shorter_file_is_refused() {
        let bytes = written();
        assert!(matches!(read_from(&bytes[..bytes.len() - 1], "a b"), Err(SnapshotError::Damaged(_))));
        assert!(matches!(read_from(&[&bytes[..], &[0]].concat(), "a b"), Err(SnapshotError::Damaged(_))));
        let endless = [&bytes[..], &vec![0; LONGEST as usize]].concat();
        assert!(matches!(read_from(&endless, "a b"), Err(SnapshotError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(place: prop::sample::Index, flip in 1_u8..) {
            let mut bytes = written();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            prop_assert!(read_from(&bytes, "a b").is_err());
        }

        /// A content that cannot be, under a right checksum.
        #[test]
        fn any_content_is_a_state_or_refused(content in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_from(&framed(&content), "a b");
        }
    }
}
