//! Cases about the files that a container begins with: its working directory, the pod's files in its root, its volumes, its root
//! directory. Most images are made here, as no usual builder writes such layers.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{
    self as v1, ContainerConfig, LinuxContainerConfig, LinuxContainerSecurityContext,
};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, pod_config};
use isopod_tests::image::{Image, character_device, directory, fifo, file, hard_link, layer, symlink};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::registry::Registry;
use serde_json::json;
use std::process::ExitCode;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["filesystem":
            working_directory_of_no_layer_is_made_for_any_user,
            working_directory_behind_a_link_or_closed_to_its_user_is_entered,
            working_directory_that_is_a_file_is_refused_by_path,
            exec_does_not_follow_its_working_directory_out_of_the_container,
            files_of_the_pod_are_mounted_where_dangling_links_lead,
            files_of_the_pod_are_mounted_below_links,
            links_that_loop_or_lead_to_the_kernels_files_are_refused_by_path,
            image_of_one_program_runs_also_with_a_read_only_root,
            volumes_begin_with_the_images_content,
            volumes_are_the_containers_own_and_gone_with_it,
            volumes_may_be_nested_named_twice_and_behind_links,
            volume_keeps_every_kind_of_file,
            volume_that_is_a_file_is_refused_by_path,
            root_directory_has_owner_and_mode_of_the_topmost_layer,
            image_without_layers_has_an_empty_root,
        ],
    )
}

/// A node's Isopod, a pod, and an image that the case made, pulled; the image's full name is the last.
fn begin(name: &str, image: Image) -> Result<(Cri, Pod, String)> {
    let cri = Cri::connect()?;
    let image = pull(&cri, name, image)?;
    let pod = cri.run_pod(name)?;
    Ok((cri, pod, image))
}

fn pull(cri: &Cri, name: &str, image: Image) -> Result<String> {
    let layouts = tempfile::tempdir()?;
    image.write(layouts.path(), name)?;
    let name = Registry::serve_layouts(layouts.path(), |_, honest| honest)?.name(name);
    cri.pull(&name)?;
    Ok(name)
}

fn busybox() -> Result<Image> {
    Image::based_on("busybox")
}

fn sleeper(name: &str, image: &str) -> ContainerConfig {
    container_config(name, image, &["sleep", "100000"])
}

fn with(mut config: ContainerConfig, context: LinuxContainerSecurityContext) -> ContainerConfig {
    config.linux = Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    config
}

fn read_only(config: ContainerConfig) -> ContainerConfig {
    with(config, LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() })
}

/// What refusing to make a container says.
fn refusal(cri: &Cri, pod: &Pod, config: ContainerConfig) -> Result<String> {
    match cri.create(pod, config) {
        Ok(_) => anyhow::bail!("it was made"),
        Err(error) => Ok(error.message().to_owned()),
    }
}

fn working_directory_of_no_layer_is_made_for_any_user() -> Result<()> {
    let image = busybox()?.config(json!({"WorkingDir": "/home/app/of/no/layer", "User": "1000"}));
    let (cri, pod, image) = begin("no-workdir", image)?;
    for config in [sleeper("writable", &image), read_only(sleeper("read-only", &image))] {
        let container = cri.run_container(&pod, config)?;
        let seen = cri.shell(&container, "pwd; id -u; stat -c '%u:%g %a' . .. /home/app")?;
        ensure!(seen == "/home/app/of/no/layer\n1000\n0:0 755\n0:0 755\n0:0 755", "{seen}");
    }
    cri.clean()
}

fn working_directory_behind_a_link_or_closed_to_its_user_is_entered() -> Result<()> {
    let tree = layer(&[directory("srv/app"), symlink("app", "/srv/app"), directory("closed").mode(0o700)]);
    let (cri, pod, image) = begin("workdir-link", busybox()?.layer(tree).config(json!({"User": "1000"})))?;
    for (name, asked, entered) in [
        ("link", "/app", "/srv/app"),
        ("below", "/app/new", "/srv/app/new"),
        ("closed", "/closed", "/closed"),
    ] {
        let config = ContainerConfig { working_dir: asked.into(), ..sleeper(name, &image) };
        let container = cri.run_container(&pod, config)?;
        let seen = cri.shell(&container, "pwd -P; readlink /proc/self/cwd; id -u")?;
        ensure!(seen == format!("{entered}\n{entered}\n1000"), "{asked}: {seen}");
    }
    cri.clean()
}

fn working_directory_that_is_a_file_is_refused_by_path() -> Result<()> {
    let image = busybox()?.layer(layer(&[file("file", "")]));
    let (cri, pod, image) = begin("workdir-file", image)?;
    for path in ["/file", "/file/below"] {
        let told = refusal(&cri, &pod, ContainerConfig { working_dir: path.into(), ..sleeper("c", &image) })?;
        ensure!(told.contains(path) && told.contains("directory"), "{told}");
    }
    cri.clean()
}

fn exec_does_not_follow_its_working_directory_out_of_the_container() -> Result<()> {
    let (cri, pod, image) = begin("workdir-moved", busybox()?.config(json!({"WorkingDir": "/work"})))?;
    // The agent's descriptors are closed by then; its processes can be seen, as the pod's share one namespace.
    let descriptors = (3..10).map(|number| (format!("/proc/self/fd/{number}"), "cannot be entered"));
    let processes =
        ["root", "cwd"].map(|link| (format!("/proc/1/{link}"), "leads out of the container's root"));
    for (number, (target, expected)) in descriptors.chain(processes).enumerate() {
        let script =
            format!("cd / && rmdir /work && ln -s {target} /work && echo moved && exec sleep 100000");
        let config = container_config(&format!("c-{number}"), &image, &["/bin/sh", "-c", &script]);
        let container = cri.run_container(&pod, config)?;
        cri.wait_logged(&container, "moved")?;
        let told = cri.exec(&container, &["/bin/pwd"]).err().with_context(|| format!("{target}: entered"))?;
        ensure!(told.message().contains(expected), "{target}: {told:?}");
    }
    cri.clean()
}

fn files_of_the_pod_are_mounted_where_dangling_links_lead() -> Result<()> {
    let tree = layer(&[
        symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        symlink("etc/hosts", "../../../../nothing/hosts"),
        symlink("etc/hostname", "/run/name"),
        symlink("run/name", "deep/name"),
    ]);
    let cri = Cri::connect()?;
    let image = pull(&cri, "dangling", busybox()?.layer(tree))?;
    let mut pod = pod_config("dangling");
    pod.dns_config = Some(v1::DnsConfig { servers: vec!["192.0.2.53".into()], ..Default::default() });
    let pod = cri.run_pod_with(pod)?;
    for config in [sleeper("writable", &image), read_only(sleeper("read-only", &image))] {
        let container = cri.run_container(&pod, config)?;
        let seen =
            cri.shell(&container, "cat /etc/resolv.conf /run/deep/name; grep -c localhost /nothing/hosts")?;
        ensure!(seen.starts_with("nameserver 192.0.2.53") && seen.contains("\ndangling\n"), "{seen}");
        let links = cri.shell(&container, "readlink /etc/hosts; stat -c '%a %u:%g' /run/systemd/resolve")?;
        ensure!(links == "../../../../nothing/hosts\n755 0:0", "{links}");
    }
    cri.clean()
}

fn files_of_the_pod_are_mounted_below_links() -> Result<()> {
    // The directory of the lower layers is hidden by a link to one that no layer has.
    let (cri, pod, image) = begin("etc-link", busybox()?.layer(layer(&[symlink("etc", "/usr/config/etc")])))?;
    let container = cri.run_container(&pod, sleeper("c", &image))?;
    let seen = cri.shell(&container, "cat /usr/config/etc/hostname; ls /etc/; readlink /etc")?;
    ensure!(seen == "etc-link\nhostname\nhosts\nresolv.conf\n/usr/config/etc", "{seen}");
    cri.clean()
}

fn links_that_loop_or_lead_to_the_kernels_files_are_refused_by_path() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    let pod = cri.run_pod("links")?;
    for (name, link, target, words) in [
        ("loop", "etc/hosts", "../etc/hosts", "/etc/hosts leads through more than 40 symbolic links"),
        ("into-proc", "etc/hosts", "/proc/self/environ", "/etc/hosts leads by a symbolic link to /proc/self"),
        ("into-dev", "etc/hostname", "/dev/null", "/etc/hostname leads by a symbolic link to /dev/null"),
        ("proc", "proc", "/etc", "/proc leads by a symbolic link to /etc"),
        ("sys", "sys", "etc", "/sys leads by a symbolic link to /etc"),
        ("dev", "dev", "/run", "/dev leads by a symbolic link to /run"),
        ("root", "etc/resolv.conf", "..", "/etc/resolv.conf"),
    ] {
        let image = pull(&cri, name, busybox()?.layer(layer(&[symlink(link, target)])))?;
        let told = refusal(&cri, &pod, sleeper(name, &image))?;
        ensure!(told.contains(words), "{name}: {told}");
    }
    // What was refused left nothing that would stop the next.
    cri.run_container(&pod, sleeper("c", "busybox"))?;
    cri.clean()
}

fn image_of_one_program_runs_also_with_a_read_only_root() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("pause")?;
    let pod = cri.run_pod("alone")?;
    let hardened = LinuxContainerSecurityContext {
        readonly_rootfs: true,
        run_as_user: Some(v1::Int64Value { value: 65532 }),
        no_new_privs: true,
        capabilities: Some(v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() }),
        ..Default::default()
    };
    let config = |name: &str| ContainerConfig {
        working_dir: "/none/such".into(),
        ..container_config(name, "pause", &["/pause"])
    };
    for config in [config("writable"), read_only(config("read-only")), with(config("hardened"), hardened)] {
        let container = cri.run_container(&pod, config)?;
        let state = cri.status(&container)?.state;
        ensure!(state == i32::from(v1::ContainerState::ContainerRunning), "state {state}");
    }
    cri.clean()
}

fn volumes_begin_with_the_images_content() -> Result<()> {
    let tree = layer(&[
        directory("opt/kept").mode(0o2750).owner(1000, 1001).mtime(1_000_000_000),
        file("opt/kept/file", "kept\n").owner(1000, 7).mode(0o640),
    ]);
    let config = json!({"Volumes": {"/data/volume": {}, "/opt/kept": {}}});
    let (cri, pod, image) = begin("volumes", busybox()?.layer(tree).config(config))?;
    for config in [sleeper("writable", &image), read_only(sleeper("read-only", &image))] {
        let container = cri.run_container(&pod, config)?;
        let seen = cri.shell(
            &container,
            "stat -c '%a %u:%g' /opt/kept /opt/kept/file /data/volume; cat /opt/kept/file",
        )?;
        ensure!(seen == "2750 1000:1001\n640 1000:7\n755 0:0\nkept", "{seen}");
        ensure!(cri.shell(&container, "stat -c %Y /opt/kept")? == "1000000000", "its time");
        let written =
            "echo hi >/data/volume/f && echo more >>/opt/kept/file && cat /data/volume/f /opt/kept/file";
        ensure!(cri.shell(&container, written)? == "hi\nkept\nmore", "a volume cannot be written");
    }
    cri.clean()
}

fn volumes_are_the_containers_own_and_gone_with_it() -> Result<()> {
    let (cri, pod, image) = begin("own-volumes", busybox()?.config(json!({"Volumes": {"/data": {}}})))?;
    let one = cri.run_container(&pod, sleeper("one", &image))?;
    let other = cri.run_container(&pod, sleeper("other", &image))?;
    cri.shell(&one, "dd if=/dev/zero of=/data/mine bs=1M count=20 && rm /data/kept")?;
    ensure!(cri.shell(&other, "ls /data/mine 2>/dev/null; cat /data/kept")? == "first", "volumes are shared");
    let free = "df -k /data | awk 'NR == 2 { print $4 }'";
    let before: u64 = cri.shell(&other, free)?.parse()?;
    cri.remove(&one)?;
    let after: u64 = cri.shell(&other, free)?.parse()?;
    ensure!(after >= before + 20_000, "{before} KiB were free, and {after} without the removed volume");
    cri.clean()
}

fn volumes_may_be_nested_named_twice_and_behind_links() -> Result<()> {
    let tree = layer(&[
        file("srv/real/file", "real\n"),
        symlink("linked", "/srv/real"),
        file("nest/outer", "outer\n"),
        file("nest/in/inner", "inner\n"),
    ]);
    let volumes = json!({"/linked": {}, "/nest": {}, "/nest/in": {}, "/nest/": {}, "/x/../nest/./in//": {},
        "/sys/fs/cgroup": {}});
    let (cri, pod, image) = begin("odd-volumes", busybox()?.layer(tree).config(json!({"Volumes": volumes})))?;
    let container = cri.run_container(&pod, sleeper("c", &image))?;
    let seen = cri
        .shell(&container, "cat /linked/file /srv/real/file /nest/outer /nest/in/inner; readlink /linked")?;
    ensure!(seen == "real\nreal\nouter\ninner\n/srv/real", "{seen}");
    let mounted = "awk '$5 ~ \"^/(nest|srv)\" { print $5 }' /proc/self/mountinfo | sort";
    let mounted = cri.shell(&container, mounted)?;
    ensure!(mounted == "/nest\n/nest/in\n/srv/real", "{mounted}");
    ensure!(cri.shell(&container, "touch /sys/fs/cgroup/made; ls /sys/fs/cgroup")? == "made", "the cgroups");
    cri.clean()
}

fn volume_keeps_every_kind_of_file() -> Result<()> {
    let tree = layer(&[
        directory("vol"),
        file("vol/one", "text"),
        hard_link("vol/two", "vol/one"),
        symlink("vol/link", "/etc/passwd"),
        character_device("vol/null", 1, 3),
        fifo("vol/pipe"),
        file("vol/attribute", "").xattr("user.isopod", "value"),
        file("vol/zeros", vec![0; 1 << 20]),
        directory(&format!("vol/{}", "d/".repeat(200))),
    ]);
    let config = json!({"Volumes": {"/vol": {}, "/usr/bin": {}}, "User": "1000"});
    let (cri, pod, image) = begin("kinds", busybox()?.layer(tree).config(config))?;
    let container = cri.run_container(&pod, sleeper("c", &image))?;
    let shell = |script: &str| cri.shell(&container, script);
    ensure!(shell("stat -c '%h %F' /vol/one; cat /vol/two")? == "2 regular file\ntext", "hard links");
    ensure!(
        shell("readlink /vol/link; stat -c %F /vol/null /vol/pipe")?
            == "/etc/passwd\ncharacter special file\nfifo",
        "kinds"
    );
    ensure!(shell("echo lost >/vol/null; wc -c </vol/null; wc -c </vol/zeros")? == "0\n1048576", "a device");
    ensure!(shell("getfattr -n user.isopod /vol/attribute")?.contains("user.isopod=\"value\""), "attribute");
    ensure!(shell("find /vol -type d | wc -l")? == "201", "directories");
    // Its setuid bit and the mount's flags.
    ensure!(shell("effective-uid")? == "Effective uid: 0", "a program of a volume is not setuid");
    cri.clean()
}

fn volume_that_is_a_file_is_refused_by_path() -> Result<()> {
    let image = busybox()?.config(json!({"Volumes": {"/etc/passwd": {}}}));
    let (cri, pod, image) = begin("file-volume", image)?;
    let told = refusal(&cri, &pod, sleeper("c", &image))?;
    ensure!(told.contains("volume /etc/passwd: the image has a file there"), "{told}");
    cri.clean()
}

fn root_directory_has_owner_and_mode_of_the_topmost_layer() -> Result<()> {
    let tree = layer(&[directory("./").mode(0o775).owner(1000, 1001), file("./there", "there\n")]);
    let image = busybox()?.layer(tree).config(json!({"User": "1000:1001"}));
    let (cri, pod, image) = begin("root-of-app", image)?;
    let container = cri.run_container(&pod, sleeper("c", &image))?;
    let seen = cri.shell(&container, "stat -c '%u:%g %a' /; touch /made && cat /there")?;
    ensure!(seen == "1000:1001 775\nthere", "{seen}");
    cri.clean()
}

fn image_without_layers_has_an_empty_root() -> Result<()> {
    let (cri, pod, image) = begin("no-layers", Image::empty().config(json!({"Cmd": ["/program"]})))?;
    let container = cri.create(&pod, container_config("c", &image, &[]))?;
    let error = cri.start(&container).expect_err("there is no program");
    ensure!(error.message().contains("/program"), "{error:?}");
    cri.clean()
}
