//! Cases about manifests, indexes and configurations as the world writes them: what is pulled of them, and what runs then.
//! Faults of registries are in `registry.rs`, what layers hold in `storage.rs`.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, AuthConfig, PullImageRequest};
use isopod_tests::cri::{Cri, container_config, image_spec};
use isopod_tests::image::{file, layer};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::registry::{Registry, Reply, Request};
use isopod_tests::{artefacts, cases, daemon, held};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::process::ExitCode;
use tonic::Code;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["manifests":
            entries_without_platform_are_chosen_by_their_configurations,
            index_in_an_index_leads_to_the_image_for_this_machine,
            plainest_of_several_levels_runs,
            broken_entries_of_an_index_spoil_only_themselves,
            null_and_missing_fields_are_as_if_absent,
            odd_names_and_bytes_of_a_configuration_run_and_are_shown,
            image_without_layers_is_pulled,
            content_that_is_no_layer_is_set_aside_where_layers_remain,
            foreign_layer_is_refused_by_the_key_and_fetched_where_that_is_set,
            registry_behind_a_redirect_with_tokens_of_its_own_sees_no_password,
        ],
    )
}

/// The repository `isopod/busybox` of a case's registry: the blobs of that image, and documents of the case's own.
struct Repository {
    documents: HashMap<String, Vec<u8>>,
    /// The configuration and the manifest of busybox.
    config: Value,
    manifest: Value,
}

impl Repository {
    fn new() -> Result<Self> {
        let layout = artefacts::images()?.join("busybox");
        let read = |digest: &Value| -> Result<Value> {
            let hex = digest.as_str().context("no digest")?.trim_start_matches("sha256:");
            Ok(serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(hex))?)?)
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let manifest = read(&index["manifests"][0]["digest"])?;
        let config = read(&manifest["config"]["digest"])?;
        Ok(Self { documents: HashMap::new(), config, manifest })
    }

    /// Adds content; gives its descriptor.
    fn put(&mut self, media_type: &str, content: impl Into<Vec<u8>>) -> Value {
        let content = content.into();
        let hex: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let descriptor =
            json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": content.len()});
        let kind = if [MANIFEST, INDEX].contains(&media_type) { "manifests" } else { "blobs" };
        self.documents.insert(format!("/v2/isopod/busybox/{kind}/sha256:{hex}"), content);
        descriptor
    }

    /// Adds busybox with a layer more, which has `/mark`, after `change` of its configuration and its manifest.
    fn marked(&mut self, mark: &str, change: impl FnOnce(&mut Value, &mut Value)) -> Value {
        let tar = layer(&[file("mark", mark)]);
        let (mut config, mut manifest) = (self.config.clone(), self.manifest.clone());
        let layer = self.put("application/vnd.oci.image.layer.v1.tar", tar);
        config["rootfs"]["diff_ids"].as_array_mut().expect("a list").push(layer["digest"].clone());
        manifest["layers"].as_array_mut().expect("a list").push(layer);
        change(&mut config, &mut manifest);
        manifest["config"] = self.put("application/vnd.oci.image.config.v1+json", config.to_string());
        self.put(MANIFEST, manifest.to_string())
    }

    fn index(&mut self, entries: &Value) -> Value {
        self.put(INDEX, json!({"schemaVersion": 2, "manifests": entries}).to_string())
    }

    fn tag(&mut self, tag: &str, descriptor: &Value) {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let document = self.documents[&format!("/v2/isopod/busybox/manifests/{digest}")].clone();
        self.documents.insert(format!("/v2/isopod/busybox/manifests/{tag}"), document);
    }

    /// Serves it; `change` is given each request with its honest answer.
    fn serve(self, change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Result<Registry> {
        Registry::serve(move |request, honest| {
            let path = request.path.split('?').next().unwrap_or_default();
            let honest =
                self.documents.get(path).map_or(honest, |document| Reply::new(200, document.clone()));
            change(request, honest)
        })
    }
}

fn name(registry: &Registry, tag: &str) -> String {
    format!("{}/isopod/busybox:{tag}", registry.address())
}

fn on(mut entry: Value, architecture: &str, variant: &str) -> Value {
    entry["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
    entry
}

/// What an image's `/mark` says, or what its own command prints where `command` is empty.
fn output(cri: &Cri, image: &str, command: &[&str]) -> Result<String> {
    cri.pull(image)?;
    let pod = cri.run_pod("manifests")?;
    let container = cri.run_container(&pod, container_config("c", image, command))?;
    cri.wait_exited(&container)?;
    let log = cri.log(&container)?;
    cri.clean()?;
    // Each line begins with its time, its stream and its tag.
    Ok(log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n"))
}

fn mark(cri: &Cri, registry: &Registry, tag: &str) -> Result<String> {
    output(cri, &name(registry, tag), &["cat", "/mark"])
}

fn entries_without_platform_are_chosen_by_their_configurations() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let arm = it.marked("arm", |config, _| config["architecture"] = json!("arm64"));
    let mut attestation = it.marked("attestation", |_, _| {});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let good = it.marked("the configuration says amd64", |_, _| {});
    let index = it.index(&json!([attestation, arm, good]));
    it.tag("unsaid", &index);
    let index = it.index(&json!([arm]));
    it.tag("arm", &index);
    let registry = it.serve(|_, honest| honest)?;
    let seen = mark(&cri, &registry, "unsaid")?;
    ensure!(seen == "the configuration says amd64", "{seen:?}");
    let refused = cri.pull(&name(&registry, "arm")).expect_err("it is for another machine");
    ensure!(refused.message().contains("only for linux/arm64"), "{refused:?}");
    Ok(())
}

fn index_in_an_index_leads_to_the_image_for_this_machine() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let arm = on(it.marked("arm", |config, _| config["architecture"] = json!("arm64")), "arm64", "v8");
    let good = it.marked("nested", |_, _| {});
    let inner = it.index(&json!([arm, on(good.clone(), "amd64", "")]));
    let index = it.index(&json!([arm, on(inner, "amd64", "")]));
    it.tag("promised", &index);
    let inner = it.index(&json!([good]));
    let index = it.index(&json!([inner]));
    it.tag("unsaid", &index);
    let mut deep = index;
    for _ in 0..4 {
        deep = it.index(&json!([deep]));
    }
    it.tag("deep", &deep);
    let registry = it.serve(|_, honest| honest)?;
    for tag in ["promised", "unsaid"] {
        let seen = mark(&cri, &registry, tag)?;
        ensure!(seen == "nested", "{tag}: {seen:?}");
    }
    let refused = cri.pull(&name(&registry, "deep")).expect_err("somebody may nest without end");
    ensure!(refused.message().contains("nests indexes deeper than 4"), "{refused:?}");
    Ok(())
}

fn plainest_of_several_levels_runs() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let v3 = on(it.marked("v3", |config, _| config["variant"] = json!("v3")), "amd64", "v3");
    let v1 = on(it.marked("v1", |config, _| config["variant"] = json!("v1")), "amd64", "v1");
    let future = on(it.marked("v9", |_, _| {}), "amd64", "v9");
    let index = it.index(&json!([future, v3, v1]));
    it.tag("levels", &index);
    let index = it.index(&json!([future]));
    it.tag("future", &index);
    let registry = it.serve(|_, honest| honest)?;
    let seen = mark(&cri, &registry, "levels")?;
    ensure!(seen == "v1", "{seen:?}");
    let refused = cri.pull(&name(&registry, "future")).expect_err("no processor has it");
    ensure!(refused.message().contains("only for linux/amd64/v9"), "{refused:?}");
    Ok(())
}

fn broken_entries_of_an_index_spoil_only_themselves() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let good = on(it.marked("good", |_, _| {}), "amd64", "");
    let unknown =
        on(json!({"mediaType": "application/vnd.x", "digest": good["digest"], "size": 5}), "amd64", "");
    let index = it.index(&json!([null, {"digest": 5}, on(json!({"size": -1}), "amd64", ""), unknown, good]));
    it.tag("broken", &index);
    let index = it.index(&json!([unknown]));
    it.tag("wanted", &index);
    let registry = it.serve(|_, honest| honest)?;
    let seen = mark(&cri, &registry, "broken")?;
    ensure!(seen == "good", "{seen:?}");
    let refused = cri.pull(&name(&registry, "wanted")).expect_err("it names no image");
    ensure!(refused.message().contains("application/vnd.x"), "{refused:?}");
    Ok(())
}

fn null_and_missing_fields_are_as_if_absent() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let nulls = it.marked("nulls", |config, manifest| {
        config["config"] = json!({"Cmd": ["cat", "/mark"], "Entrypoint": null, "Env": null, "User": null, "Volumes": null,
            "Labels": null, "ExposedPorts": null, "WorkingDir": null, "StopSignal": null, "Healthcheck": null});
        config["history"] = Value::Null;
        manifest["annotations"] = Value::Null;
        manifest["manifests"] = Value::Null;
        for layer in manifest["layers"].as_array_mut().expect("a list") {
            for field in ["urls", "annotations", "platform", "data"] {
                layer[field] = Value::Null;
            }
        }
    });
    it.tag("nulls", &nulls);
    let bare = it.marked("bare", |config, manifest| {
        *config = json!({"rootfs": {"diff_ids": config["rootfs"]["diff_ids"]}});
        let layers: Vec<_> = manifest["layers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|layer| json!({"digest": layer["digest"], "size": layer["size"]}))
            .collect();
        *manifest = json!({"layers": layers});
    });
    it.tag("bare", &bare);
    let registry = it.serve(|_, honest| honest)?;
    let seen = output(&cri, &name(&registry, "nulls"), &[])?;
    ensure!(seen == "nulls", "{seen:?}");
    let seen = mark(&cri, &registry, "bare")?;
    ensure!(seen == "bare", "{seen:?}");
    Ok(())
}

fn odd_names_and_bytes_of_a_configuration_run_and_are_shown() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let plain = it.marked("odd", |config, _| {
        config["config"] =
            json!({"CMD": ["a", "later"], "cmd": ["cat", "/mark"], "Labels": {"odd": "BYTE and HALF"}});
        config["Architecture"] = config["architecture"].take();
    });
    // Bytes that are no UTF-8 and half a surrogate pair, which no writer of JSON here makes.
    let manifest_path =
        format!("/v2/isopod/busybox/manifests/{}", plain["digest"].as_str().unwrap_or_default());
    let mut manifest: Value = serde_json::from_slice(&it.documents[&manifest_path])?;
    let config_path =
        format!("/v2/isopod/busybox/blobs/{}", manifest["config"]["digest"].as_str().unwrap_or_default());
    let text = String::from_utf8(it.documents[&config_path].clone())?.replace("HALF", "\\ud800");
    let (before, after) = text.split_once("BYTE").context("the label")?;
    let odd = [before.as_bytes(), b"\xff", after.as_bytes()].concat();
    manifest["config"] = it.put("application/vnd.oci.image.config.v1+json", odd);
    let odd = it.put(MANIFEST, manifest.to_string());
    it.tag("odd", &odd);
    let registry = it.serve(|_, honest| honest)?;
    let seen = output(&cri, &name(&registry, "odd"), &[])?;
    ensure!(seen == "odd", "{seen:?}");
    let request = v1::ImageStatusRequest { image: image_spec(&name(&registry, "odd")), verbose: true };
    let answer = cri.wait(cri.images().image_status(request))?;
    let info: Value = serde_json::from_str(&answer.info["info"])?;
    ensure!(info["imageSpec"]["config"]["Labels"]["odd"] == "\u{fffd} and \u{fffd}", "{info}");
    ensure!(info["imageSpec"]["config"]["CMD"][1] == "later", "not as it is on disk: {info}");
    Ok(())
}

fn image_without_layers_is_pulled() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let config = it.put("application/vnd.oci.image.config.v1+json", config.to_string());
    let manifest =
        it.put(MANIFEST, json!({"schemaVersion": 2, "config": config, "layers": null}).to_string());
    it.tag("empty", &manifest);
    let registry = it.serve(|_, honest| honest)?;
    let id = cri.pull(&name(&registry, "empty"))?;
    ensure!(cri.image(&name(&registry, "empty"))?.is_some_and(|image| image.id == id), "it is not there");
    Ok(())
}

fn content_that_is_no_layer_is_set_aside_where_layers_remain() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let notes = it.put("application/vnd.example.notes+json", r#"{"made": "by hand"}"#);
    let beside = |manifest: &mut Value| {
        manifest["layers"].as_array_mut().expect("a list").insert(1, notes.clone());
    };
    let good = it.marked("beside notes", |_, manifest| beside(manifest));
    it.tag("beside", &good);
    let alone = it.marked("", |config, manifest| {
        config["rootfs"]["diff_ids"] = json!([notes["digest"]]);
        manifest["layers"] = json!([notes]);
    });
    it.tag("alone", &alone);
    let registry = it.serve(|_, honest| honest)?;
    let seen = mark(&cri, &registry, "beside")?;
    ensure!(seen == "beside notes", "{seen:?}");
    let refused = cri.pull(&name(&registry, "alone")).expect_err("it has no layer");
    ensure!(refused.message().contains("which is no layer of a container image"), "{refused:?}");
    Ok(())
}

fn foreign_layer_is_refused_by_the_key_and_fetched_where_that_is_set() -> Result<()> {
    let tar = layer(&[file("mark", "foreign")]);
    let sent = tar.clone();
    let elsewhere = Registry::serve(move |request, honest| match request.path.starts_with("/foreign") {
        true => Reply::new(200, sent.clone()),
        false => honest,
    })?;
    let mut it = Repository::new()?;
    let urls = json!([
        format!("http://{}/gone", elsewhere.address()),
        format!("http://{}/foreign", elsewhere.address())
    ]);
    let manifest = it.marked("foreign", |_, manifest| {
        let layer = manifest["layers"].as_array_mut().and_then(|layers| layers.last_mut()).expect("a layer");
        layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
        layer["urls"] = urls;
    });
    it.tag("foreign", &manifest);
    let digest: String = Sha256::digest(&tar).iter().map(|byte| format!("{byte:02x}")).collect();
    it.documents.remove(&format!("/v2/isopod/busybox/blobs/sha256:{digest}"));
    let registry = it.serve(|_, honest| honest)?;

    daemon::configured("[image]\nforeign_layers = false\n", |cri| {
        let before = held::of_images();
        let refused = cri.pull(&name(&registry, "foreign")).expect_err("it is off");
        ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
        ensure!(refused.message().contains("image.foreign_layers = true"), "{refused:?}");
        ensure!(refused.message().contains(&digest), "which layer? {refused:?}");
        ensure!(elsewhere.asked("").is_empty(), "{:?}", elsewhere.asked(""));
        held::images_as_before(&before, "of a foreign layer that was refused")
    })?;
    let seen = mark(&Cri::connect()?, &registry, "foreign")?;
    ensure!(seen == "foreign", "{seen:?}");
    ensure!(elsewhere.asked("/foreign").len() == 1, "{:?}", elsewhere.asked(""));
    Ok(())
}

fn registry_behind_a_redirect_with_tokens_of_its_own_sees_no_password() -> Result<()> {
    let cri = Cri::connect()?;
    let mut it = Repository::new()?;
    let image = it.marked("behind", |_, _| {});
    it.tag("behind", &image);
    let behind = it.serve(|request, honest| {
        if request.path.starts_with("/token") {
            return Reply::new(200, r#"{"token": "behind"}"#);
        }
        match request.headers.get("authorization").map(String::as_str) {
            Some("Bearer behind") => honest,
            _ => Reply::challenge(&format!(
                "Bearer realm=\"http://{}/token\",service=\"b\"",
                request.headers["host"]
            )),
        }
    })?;
    let address = behind.address();
    let front = Registry::serve(move |request, _| {
        if request.headers.get("authorization").is_none_or(|sent| !sent.starts_with("Basic ")) {
            return Reply::challenge("Basic realm=\"front\"");
        }
        let mut reply = Reply::new(307, "");
        reply.headers.push(("Location".to_owned(), format!("http://{address}{}", request.path)));
        reply
    })?;
    let auth = AuthConfig { username: "diver".into(), password: "sesame".into(), ..AuthConfig::default() };
    let request = PullImageRequest {
        image: image_spec(&name(&front, "behind")),
        auth: Some(auth),
        ..PullImageRequest::default()
    };
    cri.wait(cri.images().pull_image(request))?;
    let asked = behind.asked("");
    ensure!(
        asked.iter().any(|request| request.path.contains("/blobs/")),
        "nothing came from there: {asked:?}"
    );
    let sent: Vec<_> = asked.iter().filter_map(|request| request.headers.get("authorization")).collect();
    ensure!(sent.iter().all(|sent| *sent == "Bearer behind"), "{sent:?}");
    ensure!(mark(&cri, &front, "behind").is_err(), "a pull without the password");
    Ok(())
}
