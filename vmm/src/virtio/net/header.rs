//! What a guest says of a frame that it sends (`virtio_net_hdr_v1`, virtio 1.3, 5.1.6), checked before a tap
//! is told.
//!
//! The host's kernel parses this header together with the frame, and follows it on the whole way to the wire.
//! So it gets what the guest's driver has agreed on and nothing else: a checksum to fill in, and TCP to cut
//! into segments. Works on a copy, which the guest cannot change after the check.

use virtio_bindings::virtio_net::*;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 12;

/// Where its fields are. The last, which counts buffers, means nothing in this direction (5.1.6.2).
const FLAGS: usize = 0;
const SEGMENTATION: usize = 1;
const HEADERS_LENGTH: usize = 2;
const SEGMENT_BYTES: usize = 4;
const CHECKSUM_START: usize = 6;
const CHECKSUM_OFFSET: usize = 8;

/// Bytes of a checksum of TCP or UDP.
const CHECKSUM_BYTES: usize = 2;

/// Least payload of a segment, bytes. Linux's TCP never sends less where there is more to send: it keeps its
/// segments at 48 bytes (`TCP_MIN_SND_MSS`), of which options take 40 at most. What is less only makes the
/// host cut one frame into up to tens of thousands.
const LEAST_SEGMENT: u16 = 8;
/// Most of it: the number above stands for another kind of segmentation in the host's kernel
/// (`GSO_BY_FRAGS`).
const LARGEST_SEGMENT: u16 = u16::MAX - 1;

/// The header that a tap may have of a frame of `frame` bytes, of which its guest, with these features, has
/// said `told`. None where the frame must be dropped. Fields that the others give no meaning are zero.
pub fn for_tap(told: [u8; HEADER_BYTES], frame: usize, features: u64) -> Option<[u8; HEADER_BYTES]> {
    let accepted = |bit: u32| features & 1 << bit != 0;
    let number = |field: usize| u16::from_le_bytes([told[field], told[field + 1]]);
    let mut header = [0; HEADER_BYTES];
    let mut keep = |from: usize, to: usize| header[from..to].copy_from_slice(&told[from..to]);

    if usize::from(number(HEADERS_LENGTH)) > frame {
        return None;
    }
    keep(HEADERS_LENGTH, SEGMENT_BYTES);

    let checksum = match told[FLAGS].into() {
        0 => false,
        VIRTIO_NET_HDR_F_NEEDS_CSUM if accepted(VIRTIO_NET_F_CSUM) => true,
        _ => return None,
    };
    if checksum {
        let place = usize::from(number(CHECKSUM_START)) + usize::from(number(CHECKSUM_OFFSET));
        if place + CHECKSUM_BYTES > frame {
            return None;
        }
        keep(FLAGS, SEGMENTATION);
        keep(CHECKSUM_START, CHECKSUM_OFFSET + 2);
    }

    let segmented = match told[SEGMENTATION].into() {
        VIRTIO_NET_HDR_GSO_NONE => false,
        VIRTIO_NET_HDR_GSO_TCPV4 if accepted(VIRTIO_NET_F_HOST_TSO4) => true,
        VIRTIO_NET_HDR_GSO_TCPV6 if accepted(VIRTIO_NET_F_HOST_TSO6) => true,
        _ => return None,
    };
    if segmented {
        // Each segment gets a checksum of its own (5.1.6.2.1).
        if !checksum || !(LEAST_SEGMENT..=LARGEST_SEGMENT).contains(&number(SEGMENT_BYTES)) {
            return None;
        }
        keep(SEGMENTATION, HEADERS_LENGTH);
        keep(SEGMENT_BYTES, CHECKSUM_START);
    }
    Some(header)
}
