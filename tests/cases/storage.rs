//! Cases about images: what of them is kept, what containers see of them, what is freed. Faults of registries and disks are in `registry.rs`.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, ImageSpec};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, REGISTRY, container_config, image_name, image_spec};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::registry::{self, Registry};
use isopod_tests::{daemon, held};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["storage":
            image_has_one_id_under_all_its_names,
            two_tags_are_one_image_that_goes_with_both,
            index_gives_the_image_for_this_machine,
            layer_formats_hold_the_same_files,
            upper_layers_change_and_hide_lower_ones,
            owners_modes_links_and_attributes_are_kept,
            many_layers_make_one_root,
            root_is_the_containers_own_and_gone_with_it,
            concurrent_pulls_fetch_a_shared_layer_once,
            removed_image_frees_what_no_other_image_uses,
            removed_image_is_gone_and_its_container_reads_a_large_file_on,
            images_outlive_the_daemon,
            file_system_info_counts_images,
        ],
    )
}

/// A container of an image in a pod of its own.
fn run(cri: &Cri, image: &str) -> Result<String> {
    cri.pull(image)?;
    let pod = cri.run_pod(image)?;
    Ok(cri.run_container(&pod, container_config("c", image, &["sleep", "100000"]))?)
}

/// The layers' files in the image store.
fn layer_files() -> BTreeSet<String> {
    held::of_images().into_iter().filter(|path| path.ends_with(".erofs")).collect()
}

fn image_has_one_id_under_all_its_names() -> Result<()> {
    let cri = Cri::connect()?;
    let id = cri.pull("busybox")?;
    let tag = image_name("busybox");
    let image = cri.image(&tag)?.context("it was pulled")?;
    ensure!(image.id == id && image.repo_tags == [tag.clone()] && image.size > 0, "{image:?}");
    let digest = image.repo_digests.first().cloned().unwrap_or_default();
    ensure!(digest.starts_with(&format!("{REGISTRY}/isopod/busybox@sha256:")), "{digest}");
    for name in [id.as_str(), &digest, tag.trim_end_matches(":latest")] {
        ensure!(cri.image(name)?.as_ref() == Some(&image), "{name} gives another image");
    }
    // `image_name` would make the name of a test image of it.
    let begin = id.trim_start_matches("sha256:")[..12].to_owned();
    let spec = Some(ImageSpec { image: begin, ..ImageSpec::default() });
    let answer =
        cri.wait(cri.images().image_status(v1::ImageStatusRequest { image: spec, verbose: true }))?;
    ensure!(answer.image.as_ref() == Some(&image) && answer.info["info"].contains("imageSpec"), "{answer:?}");
    ensure!(cri.list_images()?.contains(&image), "it is not listed");
    ensure!(cri.pull(&digest)? == id, "another id by digest");
    Ok(())
}

fn two_tags_are_one_image_that_goes_with_both() -> Result<()> {
    let cri = Cri::connect()?;
    cri.remove_images()?;
    let registry = Registry::serve(|_, honest| honest)?;
    let (first, second) = (registry.name("web"), registry.name("web").replace(":latest", ":second"));
    let id = cri.pull(&first)?;
    ensure!(cri.pull(&second)? == id, "another id by another tag");
    let images = cri.list_images()?;
    ensure!(images.len() == 1 && images[0].repo_tags == [first.clone(), second.clone()], "{images:?}");
    cri.remove_image(&second)?;
    ensure!(cri.image(&first)?.is_none() && cri.list_images()?.is_empty(), "a name of it is left");
    Ok(())
}

fn index_gives_the_image_for_this_machine() -> Result<()> {
    let cri = Cri::connect()?;
    // The other image of the index has no program to run.
    let container = run(&cri, "multi")?;
    ensure!(cri.shell(&container, "uname -m")? == "x86_64", "another machine");
    cri.clean()
}

fn layer_formats_hold_the_same_files() -> Result<()> {
    let cri = Cri::connect()?;
    cri.remove_images()?;
    let pod = cri.run_pod("formats")?;
    let mut seen = Vec::new();
    for image in ["gzip", "zstd", "uncompressed"] {
        cri.pull(image)?;
        let container = cri.run_container(&pod, container_config(image, image, &["sleep", "100000"]))?;
        // Not all of /etc: some of its files are the pod's.
        let script = "cd / && find bin sbin usr www etc/passwd | sort | xargs stat -c '%n %F %a %u:%g %s %Y'; \
            md5sum /bin/busybox /www/index.html";
        seen.push(cri.shell(&container, script)?);
    }
    ensure!(seen[0].contains("/www/index.html") && seen[0].lines().count() > 300, "{}", seen[0]);
    ensure!(seen[0] == seen[1] && seen[1] == seen[2], "layer formats differ");
    ensure!(layer_files().len() == 2, "a layer in three formats is kept once: {:?}", layer_files());
    cri.clean()
}

fn upper_layers_change_and_hide_lower_ones() -> Result<()> {
    let cri = Cri::connect()?;
    let container = run(&cri, "busybox")?;
    let shell = |script: &str| cri.shell(&container, script);
    ensure!(shell("cat /data/kept /data/changed /data/replaced")? == "first\nsecond\nsecond", "changes");
    ensure!(shell("ls /data/opaque")? == "new", "an opaque directory shows its lower files");
    ensure!(shell("ls -d /data/removed* 2>/dev/null | wc -l")? == "0", "a whiteout is not honoured");
    ensure!(shell("find / -xdev -name '.wh.*' | wc -l")? == "0", "a whiteout shows");
    shell("rm /data/kept && echo third >/data/changed")?;
    ensure!(shell("ls /data/kept 2>/dev/null; cat /data/changed")? == "third", "the root is not writable");
    cri.clean()
}

fn owners_modes_links_and_attributes_are_kept() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    let pod = cri.run_pod("kept")?;
    let mut config = container_config("c", "busybox", &["sleep", "100000"]);
    let user = v1::LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        ..Default::default()
    };
    config.linux = Some(v1::LinuxContainerConfig { security_context: Some(user), ..Default::default() });
    let container = cri.run_container(&pod, config)?;
    let shell = |script: &str| cri.shell(&container, script);
    ensure!(shell("stat -c '%a %u:%g' /data/owned")? == "640 1000:2000", "owner and mode");
    ensure!(shell("stat -c %h /data/hard-a")? == "2", "hard link");
    ensure!(shell("stat -c %i /data/hard-a")? == shell("stat -c %i /data/hard-b")?, "hard link's inode");
    ensure!(
        shell("readlink /data/absolute-link; readlink /data/dangling-link")?.starts_with("/data/kept\n/etc"),
        "symlinks"
    );
    ensure!(shell("stat -c %F /data/fifo")? == "fifo", "fifo");
    ensure!(shell("stat -c %s /data/zeros")? == "1048576", "a file of zeros");
    ensure!(shell("cat '/data/grüße 世界' /data/n*/n*")? == "utf-8\nlong", "names");
    ensure!(shell("stat -c %Y /data/kept")? == "1767225600", "time of modification: 2026-01-01");
    ensure!(shell("id -u; effective-uid")? == "1000\nEffective uid: 0", "setuid");
    ensure!(shell("getfattr -n user.isopod /data/xattr")?.contains("user.isopod=\"value\""), "attribute");
    let capability = "getfattr -n security.capability /usr/bin/with-capability";
    ensure!(shell(capability)?.contains("security.capability="), "{}", shell(capability)?);
    cri.clean()
}

fn many_layers_make_one_root() -> Result<()> {
    let cri = Cri::connect()?;
    let container = run(&cri, "many")?;
    let seen = cri.shell(&container, "ls /many | wc -l; cat /many/1 /many/45 /many/last")?;
    ensure!(seen == "46\n1\n45\n45", "{seen}");
    cri.clean()
}

fn root_is_the_containers_own_and_gone_with_it() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    let pod = cri.run_pod("roots")?;
    let config = |name| container_config(name, "busybox", &["sleep", "100000"]);
    let one = cri.run_container(&pod, config("c"))?;
    let other = cri.run_container(&pod, config("other"))?;
    cri.shell(&one, "dd if=/dev/zero of=/data/mine bs=1M count=20 && rm /data/kept")?;
    ensure!(cri.shell(&other, "ls /data/mine 2>/dev/null; cat /data/kept")? == "first", "roots are shared");
    let free = "df -k / | awk 'NR == 2 { print $4 }'";
    let before: u64 = cri.shell(&other, free)?.parse()?;
    cri.remove(&one)?;
    let after: u64 = cri.shell(&other, free)?.parse()?;
    ensure!(after >= before + 20_000, "{before} KiB were free, and {after} without the removed root");
    let again = cri.run_container(&pod, config("c"))?;
    ensure!(cri.shell(&again, "ls /data/mine 2>/dev/null; cat /data/kept")? == "first", "an old root");
    cri.clean()
}

fn concurrent_pulls_fetch_a_shared_layer_once() -> Result<()> {
    let cri = Cri::connect()?;
    cri.remove_images()?;
    let registry = Registry::serve(|_, honest| honest)?;
    let images = ["busybox", "web", "user", "gzip"];
    let pulls = images.map(|image| {
        let (mut service, image) = (cri.images(), image_spec(&registry.name(image)));
        async move { service.pull_image(v1::PullImageRequest { image, ..Default::default() }).await }
    });
    for pull in pulls.map(|pull| cri.begin(pull)) {
        cri.block_on(pull)??;
    }
    for layer in images.iter().map(|image| registry::layers(image)).collect::<Result<Vec<_>>>()?.concat() {
        let asked = registry.asked(&layer).len();
        ensure!(asked == 1, "layer {layer} was asked for {asked} times");
    }
    ensure!(layer_files().len() == 5, "{:?}", layer_files());
    Ok(())
}

fn removed_image_frees_what_no_other_image_uses() -> Result<()> {
    let cri = Cri::connect()?;
    cri.remove_images()?;
    cri.pull("user")?;
    let of_user = layer_files();
    cri.pull("busybox")?;
    ensure!(layer_files().len() == of_user.len() + 2, "the lowest layer is shared: {:?}", layer_files());
    cri.remove_image("busybox")?;
    ensure!(layer_files() == of_user, "{:?} instead of {of_user:?}", layer_files());
    let container = run(&cri, "user")?;
    ensure!(cri.shell(&container, "pwd")? == "/home/keeper", "the other image is not whole");
    cri.clean()?;
    cri.remove_image("user")?;
    ensure!(held::of_images().is_empty(), "left without any image: {:?}", held::of_images());
    Ok(())
}

fn removed_image_is_gone_and_its_container_reads_a_large_file_on() -> Result<()> {
    let cri = Cri::connect()?;
    let container = run(&cri, "large")?;
    cri.remove_image("large")?;
    ensure!(cri.image("large")?.is_none(), "it is there");
    // 64 MiB that nobody has read before.
    let layer = registry::layer_path("large", 1)?;
    let truth = format!("gunzip -c {} | tar -xOf - ./data/large | md5sum", layer.display());
    let truth = Command::new("sh").args(["-c", &truth]).output()?;
    let seen = cri.shell(&container, "md5sum </data/large")?;
    ensure!(
        String::from_utf8_lossy(&truth.stdout).trim() == seen && seen.len() > 32,
        "{seen} in the container, {truth:?} in the image"
    );
    cri.remove_image("large")?;
    cri.clean()
}

fn images_outlive_the_daemon() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.pull("user")?;
    let before = cri.list_images()?;
    let user = before.iter().find(|image| image.repo_tags == [image_name("user")]);
    ensure!(user.is_some_and(|image| image.username == "keeper" && image.uid.is_none()), "{user:?}");
    daemon::restart()?;
    let cri = Cri::connect()?;
    ensure!(cri.list_images()? == before, "other images after a restart");
    let container = run(&cri, "busybox")?;
    ensure!(cri.shell(&container, "cat /data/changed")? == "second", "the image is not whole");
    cri.clean()
}

fn file_system_info_counts_images() -> Result<()> {
    let cri = Cri::connect()?;
    let used = || -> Result<u64> {
        let info = cri.wait(cri.images().image_fs_info(v1::ImageFsInfoRequest {}))?;
        let usage = info.image_filesystems.first().cloned().unwrap_or_default();
        let place = usage.fs_id.unwrap_or_default().mountpoint;
        ensure!(Path::new(&place).is_dir() && usage.timestamp > 0, "{place:?}");
        ensure!(usage.inodes_used.is_some_and(|inodes| inodes.value > 0), "no inodes");
        Ok(usage.used_bytes.unwrap_or_default().value)
    };
    cri.remove_image("large")?;
    let before = used()?;
    cri.pull("large")?;
    let with = used()?;
    let kept: u64 =
        layer_files().iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.blocks() * 512).sum();
    ensure!(with >= before + (64 << 20) && with >= kept, "{before} bytes before and {with} with 64 MiB more");
    cri.remove_image("large")?;
    ensure!(used()? == before, "not all of it was given back");
    Ok(())
}
