//! Serialises the value of an environment variable for JSON documents: as text where it is UTF-8, which is
//! also how it was written when the CRI had a string there, else as a list of numbers. Called by the
//! generated code of `KeyValue`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Bytes(Vec<u8>),
}

pub fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(value) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => value.serialize(serializer),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Text(text) => text.into_bytes(),
        Value::Bytes(bytes) => bytes,
    })
}

#[cfg(test)]
mod tests {
    use crate::cri::{ContainerConfig, KeyValue};
    use serde_json::{from_value, json, to_value};

    fn variable(value: &[u8]) -> KeyValue {
        KeyValue { key: "A".into(), value: value.to_vec() }
    }

    #[test]
    fn text_stays_text_and_other_bytes_come_back() {
        for (bytes, document) in [
            (&b"word"[..], json!({ "key": "A", "value": "word" })),
            (&b""[..], json!({ "key": "A", "value": "" })),
            (&b"\xff\x00a"[..], json!({ "key": "A", "value": [255, 0, 97] })),
        ] {
            assert_eq!(to_value(variable(bytes)).unwrap(), document);
            assert_eq!(from_value::<KeyValue>(document).unwrap(), variable(bytes));
        }
    }

    #[test]
    fn document_without_newer_fields_is_read() {
        let mut document = to_value(ContainerConfig::default()).unwrap();
        document.as_object_mut().unwrap().remove("stop_signal").unwrap();
        assert_eq!(from_value::<ContainerConfig>(document).unwrap(), ContainerConfig::default());
    }
}
