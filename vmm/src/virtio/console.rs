//! The guest's console, `hvc0` (virtio 1.3, section 5.3): one port, output only.
//!
//! What the guest prints goes to the owner's record, of which errors quote the end. Nothing is ever typed, so buffers
//! that the driver offers for input stay with the device.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{DeviceError, Driver, MachineDevice, MakeError, Poller, VirtioDevice};
use crate::console_log::ConsoleLog;

const OUTPUT: usize = 1;
/// Only the end of a longer buffer is taken: nobody keeps more.
const LONGEST: usize = 16 * 1024;

/// Gets what the guest prints, on the event loop thread; must not block.
pub type Output = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The console.
pub struct Console {
    output: Output,
}

/// Nothing: a console that only prints has no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {}

impl Console {
    /// A console that prints to `output`; also what a saved one is built from.
    pub fn new(output: Output) -> Self {
        Self { output }
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;
    const NAME: &'static str = "console";
    const ID: u32 = VIRTIO_ID_CONSOLE;
    const QUEUE_SIZES: &'static [u16] = &[16, 64];

    fn features(&self) -> u64 {
        0
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        if queue != OUTPUT {
            return Ok(());
        }
        let ring = &mut driver.rings[OUTPUT];
        while let Some(mut chain) = ring.pop(driver.memory)? {
            let mut text = vec![0; chain.readable.len().min(LONGEST)];
            chain.readable.split_back(LONGEST).copy_to(&mut text);
            (self.output)(&text);
            ring.give_back(driver.memory, chain.head, 0)?;
        }
        Ok(())
    }

    fn save(&self) -> ConsoleState {
        ConsoleState {}
    }
}

impl MachineDevice for Console {
    /// Keeps the end of what the guest prints.
    type Backend = Arc<ConsoleLog>;

    fn make(log: Self::Backend, _: Option<&ConsoleState>, _: &Poller) -> Result<Self, MakeError> {
        Ok(Self::new(Arc::new(move |text: &[u8]| log.append(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Part, Rig};
    use std::sync::Mutex;

    fn rig() -> (Rig<Console>, Arc<Mutex<Vec<u8>>>) {
        let printed: Arc<Mutex<Vec<u8>>> = Arc::default();
        let record = printed.clone();
        let output: Output = Arc::new(move |text| record.lock().unwrap().extend(text));
        (Rig::running(|_| Console::new(output)), printed)
    }

    #[test]
    fn output_is_printed_and_its_buffers_come_back() {
        let (mut rig, printed) = rig();
        rig.ask(OUTPUT, &[Part::Out(b"hello "), Part::Out(b"world")]);
        rig.ask(OUTPUT, &[Part::Out(b"\n")]);
        assert_eq!(*printed.lock().unwrap(), b"hello world\n");
    }

    #[test]
    fn only_the_end_of_a_huge_buffer_is_printed() {
        let (mut rig, printed) = rig();
        let mut text = vec![b'a'; LONGEST + 5];
        text.push(b'z');
        rig.ask(OUTPUT, &[Part::Out(&text)]);
        let printed = printed.lock().unwrap();
        assert_eq!((printed.len(), printed.last()), (LONGEST, Some(&b'z')));
    }

    #[test]
    fn input_buffers_stay_with_the_device() {
        let (mut rig, _) = rig();
        rig.offer(0, &[Part::In(64)]);
        rig.kick(0);
        assert_eq!(rig.used(0), None);
    }
}
