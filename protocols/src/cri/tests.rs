//! Compares the messages of `cri` with the published ones. Each decodes bytes with every field set, which a
//! table of numbers and types describes, and must encode the same bytes again.

mod published;

use heck::ToUpperCamelCase;
use prost::DecodeError;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};

/// Decodes bytes as a message of one type, and encodes that.
type Through = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

fn through<M: prost::Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    M::decode(bytes).map(|message| message.encode_to_vec())
}

/// A message as it is published, and its types.
pub struct Message {
    name: &'static str,
    fields: &'static str,
    ours: Through,
    /// The type that `k8s-cri` has, unless it is ours as well.
    other: Option<Through>,
}

impl Message {
    /// A message that `k8s-cri` does not have.
    fn new<M: prost::Message + Default>(name: &'static str, fields: &'static str) -> Self {
        Self { name, fields, ours: through::<M>, other: None }
    }

    /// A message that `k8s-cri` has, if perhaps without all of its fields.
    fn known<M, C>(name: &'static str, fields: &'static str) -> Self
    where
        M: prost::Message + Default + 'static,
        C: prost::Message + Default + 'static,
    {
        let other = (TypeId::of::<M>() != TypeId::of::<C>()).then_some(through::<C> as Through);
        Self { name, fields, ours: through::<M>, other }
    }
}

/// All messages, by name.
struct Published(BTreeMap<&'static str, Message>);

impl Published {
    fn new() -> Self {
        Self(published::messages().into_iter().map(|message| (message.name, message)).collect())
    }

    /// A message with all of its fields; those of type `bytes` are `bytes`.
    fn encoded(&self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let message = self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let mut to = Vec::new();
        for field in message.fields.split(", ").filter(|field| !field.is_empty()) {
            let (number, kind) = field.split_once(' ').unwrap();
            let number = number.parse().unwrap();
            match kind.strip_prefix("repeated ") {
                // Numbers in a list stand behind one another in one field.
                Some("int32" | "int64") => length_delimited(number, &[1, 2], &mut to),
                Some(kind) => (0..2).for_each(|_| self.encode(number, kind, bytes, &mut to)),
                None => self.encode(number, kind, bytes, &mut to),
            }
        }
        to
    }

    fn encode(&self, number: u32, kind: &str, bytes: &[u8], to: &mut Vec<u8>) {
        match kind {
            "bool" | "enum" | "int32" | "int64" | "uint32" | "uint64" => {
                encode_key(number, WireType::Varint, to);
                encode_varint(1, to);
            }
            "double" => {
                encode_key(number, WireType::SixtyFourBit, to);
                to.extend(1.5_f64.to_le_bytes());
            }
            "string" => length_delimited(number, b"text", to),
            "bytes" => length_delimited(number, bytes, to),
            "map" => length_delimited(number, b"\x0a\x03key\x12\x05value", to),
            message => length_delimited(number, &self.encoded(message, bytes), to),
        }
    }
}

fn length_delimited(number: u32, content: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(content.len() as u64, to);
    to.extend(content);
}

#[test]
fn every_published_field_arrives() {
    let published = Published::new();
    for message in published.0.values() {
        // No text: the value of an environment variable may be anything.
        let sent = published.encoded(message.name, b"\xff\x00");
        let arrived = (message.ours)(&sent).unwrap_or_else(|error| panic!("{}: {error}", message.name));
        assert_eq!(
            arrived, sent,
            "{}: a field is missing in proto/cri.proto, or has another type",
            message.name
        );
    }
}

#[test]
fn message_described_here_is_the_crates_and_more() {
    let published = Published::new();
    for message in published.0.values() {
        let (name, Some(other)) = (message.name, message.other) else { continue };
        let known = other(&published.encoded(name, b"text")).unwrap();
        assert_eq!((message.ours)(&known).unwrap(), known, "{name}: a field that k8s-cri has is otherwise");
        let sent = published.encoded(name, b"\xff\x00");
        let whole = other(&sent).is_ok_and(|arrived| arrived == sent);
        assert!(!whole, "{name}: k8s-cri has all of it now: move it to proto/cri_unchanged.proto");
    }
}

#[test]
fn proto_files_have_the_published_messages_and_no_others() {
    let files =
        concat!(include_str!("../../proto/cri.proto"), include_str!("../../proto/cri_unchanged.proto"));
    let names = files.lines().filter_map(|line| line.strip_prefix("message ")?.split(' ').next());
    let described: BTreeSet<String> = names.map(|name| name.to_upper_camel_case()).collect();
    let published = Published::new().0.into_keys().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(described, published);
}
