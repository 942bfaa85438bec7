//! Any bytes as a manifest or an index, and behind a zero byte as the configuration: read within bounds, and
//! used as a pull and a container use them, or refused.

#![no_main]

use isopod_runtime::container::request;
use isopod_runtime::cri::container_spec::plain;
use isopod_runtime::image::{ImageConfiguration, Manifest, Outline, outline};
use libfuzzer_sys::fuzz_target;

/// A container of the image, of which the pod says nothing.
fn describe(image: &ImageConfiguration) {
    let Ok(spec) = plain(image.clone(), &[]) else { return };
    let sent = request("c1", &spec).expect("there are no limits that could be wrong").spec;
    let spec: serde_json::Value = serde_json::from_slice(&sent).expect("a specification is JSON");
    let process = &spec["process"];
    assert!(process["args"][0].as_str().is_some_and(|program| !program.is_empty()));
    assert!(process["cwd"].as_str().is_some_and(|directory| directory.starts_with('/')));
    for mount in spec["mounts"].as_array().expect("a container has mounts") {
        assert!(mount["destination"].as_str().is_some_and(|destination| destination.starts_with('/')));
        // An image names no path of the node or the guest: what it mounts are its volumes.
        let source = mount["source"].as_str().expect("a mount has a source");
        assert!(mount["type"] != "bind" || source.starts_with("/run/isopod/"), "{source}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (document, configuration) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match outline(document, configuration, 3) {
        Ok(Outline::Index { decided, undecided, others }) => {
            assert!(decided.is_sorted_by_key(|(fit, _)| *fit), "the plainest is not first");
            assert!(decided.len() + undecided.len() + others.len() <= 4096);
            assert!(others.iter().all(|platform| platform.chars().count() < 100));
        }
        Ok(Outline::Image { configuration, chain_ids }) => {
            assert!(chain_ids.len() <= 256 && chain_ids.len() == configuration.diff_ids.len());
            describe(&configuration);
        }
        Err(error) => assert!(error.to_string().len() < 4096, "{error}"),
    }
    match Manifest::parse(bytes, "", "fuzz") {
        Ok(Manifest::Image { layers, .. }) => assert!(layers.len() <= 256),
        Ok(Manifest::Index(entries)) => assert!(entries.len() <= 4096),
        Err(_) => {}
    }
    if let Ok(read) = ImageConfiguration::parse(bytes) {
        let texts = [&read.env, &read.entrypoint, &read.cmd].into_iter().flatten().chain(&read.volumes);
        assert!(texts.map(String::len).sum::<usize>() <= 1 << 20);
        describe(&read);
    }
});
