//! Block devices out of ranges of the extent disk: one device-mapper device with one linear target each.
//!
//! Only what this needs of the kernel's interface (`linux/dm-ioctl.h`, version 4): create, load, resume,
//! remove. There is no udev in the guest; devtmpfs makes `/dev/dm-N` before the load returns.

use super::extent::ExtentRange;
use crate::sys;
use isopod_protocols::guest::EXTENT_DISK;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

/// Device-mapper's own device.
const CONTROL: &str = "/dev/mapper/control";

/// Whether the guest may write to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only. The VMM refuses writes as well; this keeps the guest's kernel from trying.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Why a device could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("device {name}: device-mapper cannot {step}")]
pub struct DeviceError {
    name: String,
    step: &'static str,
    source: io::Error,
}

/// The commands, by their numbers in the interface.
#[derive(Debug, Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Load = 9,
}

/// Flag of a load: the device becomes read-only.
const READ_ONLY: u32 = 1;

/// How long a device may stay in use by mounts that are on their way out: namespaces of ended processes are
/// taken apart by a worker of the kernel, after their exit was reported.
const REMOVE_TRIES: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// Makes the device `name` from a range of the extent disk and answers its node. On failure nothing is left.
pub fn create(name: &str, range: ExtentRange, access: Access) -> Result<PathBuf, DeviceError> {
    let control = open(name)?;
    let failed = |step| move |source| DeviceError { name: name.to_owned(), step, source };
    let created = call(&control, Command::Create, &request(name, 0, None)).map_err(failed("create it"))?;
    let flags = if access == Access::ReadOnly { READ_ONLY } else { 0 };
    let table = call(&control, Command::Load, &request(name, flags, Some(range)))
        .map_err(failed("load its table; is the extent attached?"))
        // Resuming is a suspend without its flag.
        .and_then(|_| call(&control, Command::Suspend, &request(name, 0, None)).map_err(failed("start it")));
    if let Err(error) = table {
        let _ = call(&control, Command::Remove, &request(name, 0, None));
        return Err(error);
    }
    Ok(PathBuf::from(format!("/dev/dm-{}", minor_of(&created))))
}

/// Removes the device `name`; one that is gone already is no error. Blocks up to two seconds while it is
/// still in use.
pub fn remove(name: &str) -> Result<(), DeviceError> {
    let control = open(name)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match call(&control, Command::Remove, &request(name, 0, None)) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < REMOVE_TRIES => {
                sleep(REMOVE_PAUSE)
            }
            Err(source) => return Err(DeviceError { name: name.to_owned(), step: "remove it", source }),
        }
    }
}

fn open(name: &str) -> Result<File, DeviceError> {
    File::options().read(true).write(true).open(CONTROL).map_err(|source| DeviceError {
        name: name.to_owned(),
        step: "be opened",
        source,
    })
}

/// Sends a request and answers the kernel's header.
fn call(control: &File, command: Command, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut buffer = request.to_vec();
    sys::device_mapper::send(control, command as u32, &mut buffer)?;
    Ok(buffer)
}

// --- the request: `struct dm_ioctl`, then for a load one `struct dm_target_spec` and its parameters

/// Bytes of `struct dm_ioctl`, with padding.
const HEADER: usize = 312;
/// Where its fields lie.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_SIZE: usize = 128;
/// Bytes of `struct dm_target_spec`, and where its fields lie.
const TARGET: usize = 40;
const TARGET_LENGTH: usize = 8;
const TARGET_NEXT: usize = 20;
const TARGET_TYPE: usize = 24;

/// The bytes of a request. Names are our own and shorter than the field.
fn request(name: &str, flags: u32, target: Option<ExtentRange>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    if let Some(range) = target {
        bytes.extend(linear_target(range));
    }
    let size = bytes.len();
    put(&mut bytes, 0, &4u32.to_ne_bytes());
    put(&mut bytes, DATA_SIZE, &u32_of(size).to_ne_bytes());
    put(&mut bytes, DATA_START, &u32_of(HEADER).to_ne_bytes());
    put(&mut bytes, TARGET_COUNT, &u32::from(target.is_some()).to_ne_bytes());
    put(&mut bytes, FLAGS, &flags.to_ne_bytes());
    let name = &name.as_bytes()[..name.len().min(NAME_SIZE - 1)];
    put(&mut bytes, NAME, name);
    bytes
}

/// One linear target over the whole device: `<disk> <first sector>`.
fn linear_target(range: ExtentRange) -> Vec<u8> {
    let mut parameters = format!("{EXTENT_DISK} {}", range.first_sector()).into_bytes();
    parameters.push(0);
    parameters.resize(parameters.len().next_multiple_of(8), 0);
    let mut bytes = vec![0; TARGET];
    put(&mut bytes, TARGET_LENGTH, &range.sectors().to_ne_bytes());
    put(&mut bytes, TARGET_NEXT, &u32_of(TARGET + parameters.len()).to_ne_bytes());
    put(&mut bytes, TARGET_TYPE, b"linear");
    bytes.extend(parameters);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_of(size: usize) -> u32 {
    u32::try_from(size).expect("requests are a few hundred bytes")
}

/// The minor number in an answer's device number, which the kernel packs as `new_encode_dev` does.
fn minor_of(answer: &[u8]) -> u32 {
    let bytes: [u8; 4] = answer[DEVICE..DEVICE + 4].try_into().expect("four bytes were taken");
    let device = u32::from_ne_bytes(bytes);
    (device & 0xff) | ((device >> 12) & 0xfff00)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::agent::Extent;

    fn range() -> ExtentRange {
        ExtentRange::parse("layers", &Extent { offset: 1 << 20, length: 1 << 30 }).unwrap()
    }

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn load_carries_one_linear_target_over_the_extent() {
        let bytes = request("layer-1048576", READ_ONLY, Some(range()));
        assert_eq!(number(&bytes, DATA_SIZE) as usize, bytes.len());
        assert_eq!((number(&bytes, TARGET_COUNT), number(&bytes, FLAGS)), (1, 1));
        assert_eq!(&bytes[NAME..NAME + 14], b"layer-1048576\0");
        let target = &bytes[HEADER..];
        assert_eq!(u64::from_ne_bytes(target[..8].try_into().unwrap()), 0);
        assert_eq!(u64::from_ne_bytes(target[8..16].try_into().unwrap()), 1 << 21);
        assert_eq!(number(target, TARGET_NEXT) as usize, target.len());
        assert!(target[TARGET_TYPE..].starts_with(b"linear\0"));
        assert!(target[TARGET..].starts_with(b"/dev/vda 2048\0"));
        assert_eq!(target.len() % 8, 0);
    }

    #[test]
    fn request_without_target_is_the_header_alone() {
        let bytes = request("x", 0, None);
        assert_eq!((bytes.len(), number(&bytes, DATA_SIZE), number(&bytes, TARGET_COUNT)), (312, 312, 0));
    }

    #[test]
    fn long_name_keeps_its_terminator() {
        let bytes = request(&"n".repeat(300), 0, None);
        assert_eq!((bytes[NAME + NAME_SIZE - 2], bytes[NAME + NAME_SIZE - 1]), (b'n', 0));
    }

    #[test]
    fn minor_beyond_eight_bits_is_unpacked() {
        let mut answer = vec![0; HEADER];
        // major 253, minor 0x123
        put(&mut answer, DEVICE, &(0x23u32 | 253 << 8 | 0x1 << 20).to_ne_bytes());
        assert_eq!(minor_of(&answer), 0x123);
    }
}
