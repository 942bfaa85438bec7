//! Any bytes as a manifest or an index, and behind a zero byte as the configuration: read within bounds, and
//! used as a pull and a container use them, or refused.

#![no_main]

use isopod_runtime::container::{ImageConfiguration, Parts, build_spec};
use isopod_runtime::image::{Manifest, Outline, outline};
use libfuzzer_sys::fuzz_target;

/// A container of the image, of which the pod says nothing.
fn describe(image: &ImageConfiguration) {
    let (container, sandbox) = Default::default();
    let parts = Parts { id: "c1", container: &container, sandbox: &sandbox, image };
    let Ok(spec) = build_spec(parts) else { return };
    let process = spec.process().as_ref().expect("a container has a process");
    let program = process.args().as_ref().and_then(|words| words.first());
    assert!(program.is_some_and(|program| !program.is_empty()));
    assert!(process.cwd().is_absolute());
    let mounts = spec.mounts().iter().flatten();
    assert!(mounts.clone().all(|mount| mount.destination().is_absolute()));
    // An image names no path of the node or the guest: what it mounts are its volumes.
    let sources = mounts.filter(|mount| mount.typ().as_deref() == Some("bind")).filter_map(|mount| mount.source().as_ref());
    assert!(sources.into_iter().all(|source| source.starts_with("/run/isopod")));
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
