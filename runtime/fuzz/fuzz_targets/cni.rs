//! Any bytes as a network's configuration, and behind a zero byte as the result of its plugins: read or
//! refused.

#![no_main]

use isopod_runtime::network::{NetworkList, addresses};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let mut document = || serde_json::from_slice::<Value>(parts.next().unwrap_or_default());
    if let Ok(list) = document()
        && let Ok(list) = NetworkList::parse(list)
    {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        assert!(!list.name.is_empty() && list.name.chars().all(plain));
        assert!(!list.plugins.is_empty());
        assert!(list.plugins.iter().all(|plugin| plugin.get("type").is_some_and(Value::is_string)));
        // What is kept for the teardown means the same.
        assert!(NetworkList::parse(list.document.clone()).is_ok_and(|again| again == list));
    }
    if let Ok(result) = document() {
        let given = result.get("ips").and_then(Value::as_array).map_or(0, Vec::len);
        let found = addresses(&result);
        assert!(found.len() <= given && found.is_sorted_by_key(|address| address.is_ipv6()));
    }
});
