//! The codec of RPCs with fields that `k8s-cri` does not have: every message as a pair, of the crate's type and of the one
//! that holds the additions.

use bytes::Buf;
use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Decodes the same bytes as both types of `Q`, and encodes both of `A` one after the other: protobuf takes the concatenation of
/// two messages for their merger ("Last One Wins", protobuf encoding guide).
#[derive(Debug, Clone)]
pub struct Twice<Q, A> {
    types: PhantomData<(Q, A)>,
}

impl<Q, A> Default for Twice<Q, A> {
    fn default() -> Self {
        Self { types: PhantomData }
    }
}

impl<Q1, Q2, A1, A2> Codec for Twice<(Q1, Q2), (A1, A2)>
where
    Q1: Message + Default + Send + 'static,
    Q2: Message + Default + Send + 'static,
    A1: Message + Send + 'static,
    A2: Message + Send + 'static,
{
    type Encode = (A1, A2);
    type Decode = (Q1, Q2);
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<Q, A1: Message, A2: Message> Encoder for Twice<Q, (A1, A2)> {
    type Item = (A1, A2);
    type Error = Status;

    fn encode(&mut self, (known, added): (A1, A2), to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let full = |_| Status::internal("the answer does not fit its buffer");
        known.encode(to).map_err(full)?;
        added.encode(to).map_err(full)
    }
}

impl<Q1: Message + Default, Q2: Message + Default, A> Decoder for Twice<(Q1, Q2), A> {
    type Item = (Q1, Q2);
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<(Q1, Q2)>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let malformed = |error| Status::invalid_argument(format!("the request is not of the CRI: {error}"));
        let known = Q1::decode(bytes.clone()).map_err(malformed)?;
        let added = Q2::decode(bytes).map_err(malformed)?;
        Ok(Some((known, added)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::cri_additions;
    use k8s_cri::v1;

    #[test]
    fn additions_are_read_from_and_written_beside_what_the_crate_knows() {
        let known = v1::ContainerStatusResponse {
            status: Some(v1::ContainerStatus { id: "c".into(), ..v1::ContainerStatus::default() }),
            ..v1::ContainerStatusResponse::default()
        };
        let added = cri_additions::ContainerStatusResponse {
            status: Some(cri_additions::ContainerStatus { stop_signal: 10 }),
        };
        let mut bytes = known.encode_to_vec();
        added.encode(&mut bytes).unwrap();
        assert_eq!(v1::ContainerStatusResponse::decode(bytes.as_slice()).unwrap(), known);
        assert_eq!(cri_additions::ContainerStatusResponse::decode(bytes.as_slice()).unwrap(), added);
    }
}
