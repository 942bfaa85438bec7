//! Any bytes as a configuration file, and behind a zero byte as a drop-in: read whole and usable, or refused.

#![no_main]

use isopod_runtime::config::Config;
use libfuzzer_sys::fuzz_target;
use std::fs;

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    fs::write(&file, parts.next().unwrap_or_default()).expect("room for a file");
    if let Some(drop_in) = parts.next() {
        fs::create_dir(directory.path().join("config.toml.d")).expect("a directory");
        fs::write(directory.path().join("config.toml.d/10.toml"), drop_in).expect("room for a file");
    }
    let config = match Config::load(&file) {
        Ok(config) => config,
        Err(error) => {
            assert!(error.to_string().starts_with("configuration"), "{error}");
            return;
        }
    };
    for handler in config.handler_names() {
        let vm = config.vm_of(handler).expect("a handler that is listed has settings");
        assert!((1..=64).contains(&vm.vcpus) && vm.memory_mib >= 64);
        assert!(!vm.pod_uids().is_empty() && !vm.pod_uids().contains(&vm.template_uid()));
        assert!(vm.pod_uids().start > 0, "a VMM never runs as root");
    }
    assert!(config.image.jail_uid > 0 && config.daemon.state_dir.is_absolute());
});
