//! Runs the fuzz targets of `runtime/fuzz` on the stable compiler, as unit tests: a second each, or as
//! `FUZZ_SECONDS` says.
//!
//! The files are libFuzzer's, as they are: in tests this crate stands in for `libfuzzer_sys`, and for itself
//! by its name.

#[path = "../../tests/fuzz/exercise.rs"]
mod exercise;

mod stand_in {
    /// In place of libFuzzer's: the body becomes a function.
    macro_rules! fuzz_target {
        (|$bytes:ident: &[u8]| $body:expr) => {
            pub fn run($bytes: &[u8]) {
                $body
            }
        };
    }
    pub(crate) use fuzz_target;
}
pub(crate) use stand_in::fuzz_target;

/// The targets as modules, and a test for each, whose inputs are made of the seeds.
macro_rules! targets {
    ($($path:literal $name:ident: $seeds:expr;)*) => {
        $(
            #[allow(unused_attributes, reason = "no_main is for libFuzzer's programs")]
            #[path = $path]
            mod $name;
        )*

        mod tests {
            use super::*;

            $(
                #[test]
                fn $name() {
                    exercise::exercise(stringify!($name), &$seeds, super::$name::run);
                }
            )*
        }

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    "../fuzz/fuzz_targets/agent_messages.rs" agent_messages: seeds::agent_messages();
    "../fuzz/fuzz_targets/challenge.rs" challenge: seeds::challenge();
    "../fuzz/fuzz_targets/cni.rs" cni: seeds::cni();
    "../fuzz/fuzz_targets/compression.rs" compression: seeds::compression();
    "../fuzz/fuzz_targets/configuration.rs" configuration: seeds::configuration();
    "../fuzz/fuzz_targets/control_answers.rs" control_answers: seeds::control_answers();
    "../fuzz/fuzz_targets/convert.rs" convert: seeds::layers();
    "../fuzz/fuzz_targets/erofs.rs" erofs: seeds::erofs();
    "../fuzz/fuzz_targets/log_lines.rs" log_lines: seeds::log_lines();
    "../fuzz/fuzz_targets/manifest.rs" manifest: seeds::manifest();
    "../fuzz/fuzz_targets/netlink.rs" netlink: seeds::netlink();
    "../fuzz/fuzz_targets/openings.rs" openings: seeds::openings();
    "../fuzz/fuzz_targets/tar.rs" tar: seeds::layers();
}

#[test]
fn every_target_runs_here() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let targets = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut found: Vec<_> =
        targets.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    found.sort();
    assert_eq!(found, NAMES, "a target without a line in this file");
}

/// Valid inputs.
mod seeds {
    use crate::image::convert::{Limits, convert};
    use crate::image::overlay::Overlay;
    use crate::image::tar::build::{dir, end, file, hard, pax, symlink};
    use flate2::{Compression, write::GzEncoder};
    use isopod_protocols::agent::*;
    use isopod_protocols::stdio::{encode_open, encode_opened};
    use isopod_protocols::vmm::{ErrorKind, Extent, PageRange, Response, Stats};
    use prost::Message;
    use rtnetlink::packet_core::NetlinkMessage;
    use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
    use rtnetlink::packet_route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
    };
    use rtnetlink::packet_route::route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteType,
    };
    use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
    use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
    use serde_json::json;
    use std::io::Write;
    use std::net::{IpAddr, Ipv4Addr};

    pub fn layers() -> Vec<Vec<u8>> {
        let lower =
            end(&[dir("a/"), file("a/file", "content"), symlink("link", "a/file"), hard("hard", "a/file")]);
        let upper = end(&[
            pax(&[("SCHILY.xattr.user.x", "y"), ("mtime", "1.5")]),
            file("a/other", "x".repeat(5000)),
            file("a/.wh.file", ""),
            file("b/.wh..wh..opq", ""),
            file("n".repeat(150), ""),
        ]);
        vec![[lower.clone(), upper.clone()].concat(), lower, upper]
    }

    pub fn erofs() -> Vec<Vec<u8>> {
        let image = |archive: &Vec<u8>| {
            let output = tempfile::NamedTempFile::new().unwrap();
            let limits = Limits { output: 1 << 20, names: 1 << 20 };
            let none = || Ok(Overlay::new(Vec::new()));
            convert(archive.as_slice(), output.reopen().unwrap(), none, limits).unwrap();
            std::fs::read(output.path()).unwrap()
        };
        layers()[1..].iter().map(image).collect()
    }

    pub fn compression() -> Vec<Vec<u8>> {
        let content = "0123456789".repeat(300).into_bytes();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&content).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(content.as_slice(), 3).unwrap();
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        vec![[gzip.clone(), gzip.clone()].concat(), [skippable, zstd.clone()].concat(), gzip, zstd, content]
    }

    pub fn manifest() -> Vec<Vec<u8>> {
        let digest = format!("sha256:{}", "0".repeat(64));
        let blob = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 5 });
        let documents = [
            json!({ "schemaVersion": 2, "config": blob, "layers": [blob, blob] }),
            json!({ "schemaVersion": 2, "manifests": [
                { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5,
                  "platform": { "os": "linux", "architecture": "amd64", "variant": "v3", "os.features": ["x"] } }] }),
            json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [digest] },
                "config": { "User": "1:2", "Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": null, "WorkingDir": "/w",
                    "Volumes": { "/v": {} }, "StopSignal": "SIGTERM" } }),
        ];
        let configuration = &documents[2];
        let both = format!("{}\0{configuration}", json!({ "config": blob, "layers": [blob] }));
        let mut seeds: Vec<_> = documents.iter().map(|document| document.to_string().into_bytes()).collect();
        seeds.extend([both.into_bytes()]);
        seeds
    }

    pub fn challenge() -> Vec<Vec<u8>> {
        let bearer = r#"Bearer realm="https://auth.test/token",service="registry",scope="repository:a:pull""#;
        let near = r#"Bearer realm="http://127.0.0.1:5000/token?x=y",service="r""#;
        let answer = json!({ "token": "", "access_token": "t" });
        vec![
            bearer.into(),
            br#"Basic realm="r\"x""#.to_vec(),
            format!("Negotiate, {bearer}").into(),
            format!("{near}\0{answer}").into(),
            format!("{bearer}\0{}", json!({ "token": "t" })).into(),
        ]
    }

    pub fn log_lines() -> Vec<Vec<u8>> {
        let long = [b"x".repeat(40_000), b"\nend".to_vec()].concat();
        vec![b"\x00one\ntwo\n\n\nthree".to_vec(), [b"\xff".to_vec(), long].concat()]
    }

    pub fn configuration() -> Vec<Vec<u8>> {
        let example = include_str!("../isopod.example.toml");
        let handlers =
            "[handlers.big]\nvcpus = 4\ntemplate = 'off'\n[registry.'r:5000']\nplain_http = true\n";
        let drop_in = "[vm]\nuid_count = 2\nfirst_uid = 7\n[cni.networks]\na = 'b'\n";
        vec![example.into(), handlers.into(), format!("{handlers}\0{drop_in}").into()]
    }

    pub fn cni() -> Vec<Vec<u8>> {
        let list = json!({ "cniVersion": "1.1.0", "name": "pods", "disableCheck": true,
            "plugins": [{ "type": "bridge", "capabilities": { "portMappings": true } }, { "type": "portmap" }] });
        let alone = json!({ "cniVersion": "0.4.0", "name": "one", "type": "ptp" });
        let result = json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "veth1" }, { "name": "eth0" }],
            "ips": [{ "address": "fd00::2/64", "interface": 1 }, { "address": "10.88.0.2/16", "interface": 1 }] });
        let failed = json!({ "code": 11, "msg": "busy", "details": "try again" });
        vec![format!("{list}\0{result}").into(), format!("{alone}\0{failed}").into()]
    }

    pub fn netlink() -> Vec<Vec<u8>> {
        let ip: IpAddr = Ipv4Addr::new(10, 88, 0, 4).into();
        let mut address = AddressMessage::default();
        (address.header.family, address.header.prefix_len) = (AddressFamily::Inet, 16);
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        let route = |attributes| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.kind = RouteType::Unicast;
            message.attributes = [vec![RouteAttribute::Oif(3)], attributes].concat();
            RouteNetlinkMessage::NewRoute(message)
        };
        let mut hop = RouteNextHop::default();
        hop.interface_index = 3;
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 88, 0, 1)));
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]);
        let mut rule = RuleMessage::default();
        rule.header.src_len = 16;
        rule.attributes = vec![RuleAttribute::Priority(7), RuleAttribute::Source(ip)];
        let mut neighbour = NeighbourMessage::default();
        (neighbour.header.ifindex, neighbour.header.state) = (3, NeighbourState::Permanent);
        let destination =
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(169, 254, 1, 1)));
        neighbour.attributes = vec![destination, NeighbourAttribute::LinkLayerAddress(vec![0xee; 6])];
        let messages = [
            RouteNetlinkMessage::NewAddress(address),
            route(vec![gateway, metrics]),
            route(vec![RouteAttribute::MultiPath(vec![hop])]),
            RouteNetlinkMessage::NewRule(rule),
            RouteNetlinkMessage::NewNeighbour(neighbour),
        ];
        let bytes = messages.map(|message| {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        });
        let whole = bytes.concat();
        assert!(!crate::network::listed(&whole).expect("valid messages").routes.is_empty());
        [vec![whole], bytes.to_vec()].concat()
    }

    pub fn openings() -> Vec<Vec<u8>> {
        let open = StreamOpen { container_id: "c1".into(), resume_at: Some(300), ..StreamOpen::default() };
        let opened = StreamOpened { error: "no such container".into(), offset: 1 << 40 };
        vec![encode_open(&open), encode_opened(&opened), encode_opened(&StreamOpened::default())]
    }

    pub fn control_answers() -> Vec<Vec<u8>> {
        let extent = Extent { offset: 1 << 20, read_only: true };
        let answers = [
            Response::Done {},
            Response::Extent { offset: 1 << 20 },
            Response::Extents { extents: vec![extent; 3] },
            Response::Stats(Stats::default()),
            Response::Console { text: "last words\n\u{1b}[2J".into() },
            Response::WorkingSet { pages: vec![PageRange(1, 2)], large_pages: 1, refused_large_pages: 0 },
            Response::Error { kind: ErrorKind::State, message: "no such extent".into() },
        ];
        let mut packets: Vec<_> =
            answers.iter().map(|answer| serde_json::to_vec(answer).expect("an answer is JSON")).collect();
        packets.push(format!(r#"{{"response":"{}"}}"#, "unknown ".repeat(2000)).into());
        packets
    }

    pub fn agent_messages() -> Vec<Vec<u8>> {
        let exit = || Some(ProcessExit { code: 137, exited_at_ns: 5, oom_killed: true });
        let state = ContainerState {
            container_id: "c1".repeat(16),
            state: State::Exited.into(),
            started_at_ns: 3,
            exit: exit(),
        };
        let stats =
            ContainerStats { container_id: "c1".into(), cpu_usage_ns: 7, ..ContainerStats::default() };
        let snapshot = Snapshot { containers: vec![state.clone(), state.clone()] };
        vec![
            Event { event: Some(event::Event::Changed(state)) }.encode_to_vec(),
            Event { event: Some(event::Event::Snapshot(snapshot)) }.encode_to_vec(),
            StatsResponse { containers: vec![stats], ..StatsResponse::default() }.encode_to_vec(),
            WaitProcessResponse { exit: exit() }.encode_to_vec(),
            StartExecResponse { pid: 7 }.encode_to_vec(),
            made(&[1, 2, 3]),
            made(&[0; 5000]),
            HelloResponse { agent_version: "1".into(), ..HelloResponse::default() }.encode_to_vec(),
        ]
    }
    fn made(groups: &[u32]) -> Vec<u8> {
        let user = ResolvedUser { uid: 1, gid: 1, supplemental_groups: groups.into() };
        CreateContainerResponse { user: Some(user) }.encode_to_vec()
    }
}
