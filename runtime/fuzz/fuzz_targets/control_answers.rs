//! Any packet as a VMM's answer on its control socket: an answer of the protocol, or an error whose text is
//! bounded and printable, also where it quotes the packet.

#![no_main]

use isopod_protocols::vmm::Response;
use isopod_runtime::hostile_text::Tail;
use isopod_runtime::hypervisor::read_answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    match read_answer(packet) {
        Ok(Response::Error { .. }) => panic!("an answer of an error is an error"),
        Ok(Response::Console { text }) => {
            let shown = Tail::new(&text).to_string();
            assert!(shown.len() <= 3000 && !shown.contains(char::is_control));
        }
        Ok(_) => {}
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 1200 && !text.contains(char::is_control), "{text}");
        }
    }
});
