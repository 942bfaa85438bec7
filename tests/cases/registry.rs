//! Cases about pulls that go wrong: registries that are down, slow, broken, false or locked, and disks that are full.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{AuthConfig, PullImageRequest};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, REGISTRY, image_name, image_spec, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::registry::{self, Pace, Registry, Reply};
use isopod_tests::{daemon, held};
use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Seconds that a stalling registry gets in these cases, instead of half a minute.
const IMPATIENT: &str = "[image]\nstall_timeout_s = 2\n";

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["registry":
            what_cannot_be_pulled_is_told_apart,
            slow_registry_is_waited_for,
            registries_that_send_a_byte_now_and_then_hold_up_nobody,
            registry_that_stalls_is_given_up_and_leaves_nothing,
            registry_that_never_answers_is_given_up,
            broken_connection_is_taken_up_where_it_broke,
            corrupt_layer_is_named_and_leaves_nothing,
            registry_with_passwords_wants_the_right_one,
            token_service_is_asked_with_the_password,
            mirrors_are_asked_before_the_registry,
            cancelled_pull_leaves_nothing,
            full_disk_is_told_and_a_later_pull_works,
            image_beyond_the_limit_is_refused_by_its_key,
            converters_share_a_bound_of_memory,
        ],
    )
}

/// A connection to a node that has no images.
fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.remove_images()?;
    Ok(cri)
}

fn pull_as(cri: &Cri, image: &str, username: &str, password: &str) -> Result<String, Status> {
    let auth = AuthConfig { username: username.into(), password: password.into(), ..AuthConfig::default() };
    let request =
        PullImageRequest { image: image_spec(image), auth: Some(auth), ..PullImageRequest::default() };
    cri.wait(cri.images().pull_image(request)).map(|answer| answer.image_ref)
}

fn what_cannot_be_pulled_is_told_apart() -> Result<()> {
    let cri = cri()?;
    let told = [
        (format!("{REGISTRY}/isopod/busybox:absent"), Code::NotFound, "check the name and the tag"),
        (format!("{REGISTRY}/isopod/nothing"), Code::NotFound, "check the name and the tag"),
        (format!("{REGISTRY}/Not/A/Name"), Code::InvalidArgument, "capital letters"),
        (format!("{REGISTRY}/isopod/busybox:no tag"), Code::InvalidArgument, "has a space in it"),
        (format!("{REGISTRY}/isopod/busybox@sha256:12"), Code::InvalidArgument, "a name looks like"),
        ("127.0.0.1:1/nobody/listens".to_owned(), Code::Unknown, "RegistryUnavailable: "),
        ("no-such-host.invalid/a/b".to_owned(), Code::Unknown, "RegistryUnavailable: "),
    ];
    for (name, code, words) in told {
        let error = cri.pull(&name).expect_err("there is nothing to pull");
        ensure!(error.code() == code && error.message().contains(words), "{name}: {error:?}");
    }
    ensure!(cri.image("never/pulled")?.is_none(), "an absent image is no error");
    cri.remove_image("never/pulled")?;
    Ok(())
}

fn slow_registry_is_waited_for() -> Result<()> {
    daemon::configured(IMPATIENT, |cri| {
        cri.remove_images()?;
        let registry = Registry::serve(|request, mut honest| {
            if request.is_large(&honest) {
                honest.pace = Pace::Trickles(Duration::from_secs(1));
            }
            honest
        })?;
        let begin = Instant::now();
        cri.pull(&registry.name("web"))?;
        ensure!(begin.elapsed() > Duration::from_secs(4), "it was not slow: {:?}", begin.elapsed());
        let asked = registry.asked(&registry::layers("web")?[0]).len();
        ensure!(asked == 1, "the slow layer was asked for {asked} times");
        Ok(())
    })
}

fn registries_that_send_a_byte_now_and_then_hold_up_nobody() -> Result<()> {
    daemon::configured(&format!("{IMPATIENT}min_rate_kib_s = 0\n"), |cri| {
        cri.remove_images()?;
        let serve = |_| {
            Registry::serve(|request, mut honest| {
                if request.is_large(&honest) {
                    honest.pace = Pace::Drips(Duration::from_secs(1));
                }
                honest
            })
        };
        // one more than the layers that are worked on at the same time
        let slow: Vec<Registry> = (0..4).map(serve).collect::<Result<_>>()?;
        let pulls: Vec<_> = slow.iter().map(|registry| begin_pull(cri, &registry.name("web"))).collect();
        let layer = &registry::layers("web")?[0];
        let asked = || slow.iter().filter(|registry| !registry.asked(layer).is_empty()).count();
        wait_for("slow pulls", || Ok((asked() >= 3).then_some(())))?;
        let begin = Instant::now();
        cri.pull("web")?;
        ensure!(begin.elapsed() < Duration::from_secs(60), "it was held up for {:?}", begin.elapsed());
        ensure!(pulls.iter().all(|pull| !pull.is_finished()), "they were not slow");
        pulls.iter().for_each(|pull| pull.abort());
        Ok(())
    })
}

/// A pull in the background.
fn begin_pull(cri: &Cri, image: &str) -> JoinHandle<Result<(), Status>> {
    let mut images = cri.images();
    let request = PullImageRequest { image: image_spec(image), ..PullImageRequest::default() };
    cri.begin(async move { images.pull_image(request).await.map(drop) })
}

fn registry_that_stalls_is_given_up_and_leaves_nothing() -> Result<()> {
    daemon::configured(IMPATIENT, |cri| {
        cri.remove_images()?;
        let before = held::of_images();
        let registry = Registry::serve(|request, mut honest| {
            if request.is_large(&honest) {
                honest.pace = Pace::Stalls(10_000);
            }
            honest
        })?;
        let begin = Instant::now();
        let refused = cri.pull(&registry.name("web")).expect_err("it never ends");
        ensure!(begin.elapsed() < Duration::from_secs(60), "only after {:?}", begin.elapsed());
        let message = refused.message();
        ensure!(message.starts_with("RegistryUnavailable: ") && message.contains("broke off"), "{refused:?}");
        ensure!(message.contains(&registry::layers("web")?[0]), "which layer? {message}");
        held::images_as_before(&before, "of a pull that stalled")
    })
}

fn registry_that_never_answers_is_given_up() -> Result<()> {
    daemon::configured(IMPATIENT, |cri| {
        let registry = Registry::serve(|_, honest| {
            std::thread::sleep(Duration::from_secs(60));
            honest
        })?;
        let begin = Instant::now();
        let refused = cri.pull(&registry.name("web")).expect_err("it says nothing");
        ensure!(begin.elapsed() < Duration::from_secs(40), "only after {:?}", begin.elapsed());
        ensure!(refused.message().contains("no answer within 2 s"), "{refused:?}");
        Ok(())
    })
}

fn broken_connection_is_taken_up_where_it_broke() -> Result<()> {
    let cri = cri()?;
    let registry = Registry::serve(|request, mut honest| {
        if request.is_large(&honest) {
            honest.pace = Pace::Breaks(25_000_000);
        }
        honest
    })?;
    cri.pull(&registry.name("large"))?;
    let asked = registry.asked(&registry::layers("large")?[1]);
    ensure!(asked.len() == 3, "64 MiB in pieces of 25 MB: {asked:?}");
    ensure!(!asked[0].headers.contains_key("range"), "{asked:?}");
    ensure!(asked[1..].iter().all(|request| request.headers.contains_key("range")), "{asked:?}");
    cri.remove_image(&registry.name("large"))?;
    Ok(())
}

fn corrupt_layer_is_named_and_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::of_images();
    let registry = Registry::serve(|request, mut honest| {
        if request.is_large(&honest) {
            let middle = honest.body.len() / 2;
            honest.body[middle] ^= 1;
        }
        honest
    })?;
    let refused = cri.pull(&registry.name("web")).expect_err("its digest is another");
    let layer = &registry::layers("web")?[0];
    ensure!(refused.code() == Code::DataLoss && refused.message().contains(layer), "{refused:?}");
    ensure!(refused.message().contains("corrupt"), "{refused:?}");
    ensure!(registry.asked(layer).len() == 2, "it is asked for once more");
    held::images_as_before(&before, "of a corrupt layer")
}

/// Debian's registry over the same images as the node's, with a password file. Killed when dropped.
struct Locked(Child);

impl Drop for Locked {
    fn drop(&mut self) {
        // It may have gone by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Locked {
    const ADDRESS: &str = "127.0.0.1:5001";

    /// The user is "diver", the password "sesame".
    fn start() -> Result<Self> {
        let line = "diver:$2b$04$X2OGTZBUwn.7dJpLHAs/6O0WnyhcozrwTrT18PbQHT9prXmRqMcc.\n";
        fs::write("/run/htpasswd", line)?;
        let open = fs::read_to_string("/run/node/registry.yml")?.replace(REGISTRY, Self::ADDRESS);
        let auth = "auth: {htpasswd: {realm: cases, path: /run/htpasswd}}\n";
        fs::write("/run/locked.yml", open + auth)?;
        let log = File::create("/run/locked.log")?;
        let mut command = Command::new("docker-registry");
        command.args(["serve", "/run/locked.yml"]).stdout(log.try_clone()?).stderr(log);
        let registry = Self(command.spawn().context("docker-registry")?);
        wait_for("the locked registry", || Ok(TcpStream::connect(Self::ADDRESS).ok()))?;
        Ok(registry)
    }
}

fn registry_with_passwords_wants_the_right_one() -> Result<()> {
    let cri = cri()?;
    let _registry = Locked::start()?;
    let image = format!("{}/isopod/web:latest", Locked::ADDRESS);
    let anonymous = cri.pull(&image).expect_err("it is locked");
    ensure!(anonymous.code() == Code::Unauthenticated, "{anonymous:?}");
    ensure!(anonymous.message().contains("wants a name and a password"), "{anonymous:?}");
    let wrong = pull_as(&cri, &image, "diver", "open").expect_err("a wrong password");
    ensure!(wrong.code() == Code::Unauthenticated && !wrong.message().contains("open"), "{wrong:?}");
    ensure!(wrong.message().contains("check the image pull secret"), "{wrong:?}");
    pull_as(&cri, &image, "diver", "sesame")?;
    Ok(())
}

fn token_service_is_asked_with_the_password() -> Result<()> {
    let cri = cri()?;
    let registry = Registry::serve(|request, honest| {
        let sent = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
        let host = request.headers.get("host").cloned().unwrap_or_default();
        if request.path.starts_with("/token") {
            // "diver:sesame"
            let known =
                sent == "Basic ZGl2ZXI6c2VzYW1l" && request.path.contains("repository%3Aisopod%2Fweb%3Apull");
            return if known {
                Reply::new(200, r#"{"token":"a-token"}"#)
            } else {
                Reply::new(401, "who are you?")
            };
        }
        if sent == "Bearer a-token" {
            return honest;
        }
        Reply::challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"cases\""))
    })?;
    let wrong = pull_as(&cri, &registry.name("web"), "diver", "open").expect_err("a wrong password");
    ensure!(wrong.code() == Code::Unauthenticated && wrong.message().contains("who are you?"), "{wrong:?}");
    pull_as(&cri, &registry.name("web"), "diver", "sesame")?;
    ensure!(
        registry.asked("/token?").len() == 2,
        "one token does for a pull: {:?}",
        registry.asked("/token")
    );
    Ok(())
}

fn mirrors_are_asked_before_the_registry() -> Result<()> {
    let mirror = Registry::serve(|_, honest| honest)?;
    // The first is down; the registry of the name does not exist.
    let text = format!(
        "[registry.\"registry.invalid\"]\nmirrors = [\"http://127.0.0.1:1\", \"http://{}\"]\n",
        mirror.address()
    );
    daemon::configured(&text, |cri| {
        cri.remove_images()?;
        let name = "registry.invalid/isopod/web:latest";
        cri.pull(name)?;
        let image = cri.image(name)?.context("it was pulled")?;
        ensure!(image.repo_tags == [name], "{image:?}");
        let asked = mirror.asked("/manifests/latest");
        ensure!(asked.iter().all(|r| r.path.ends_with("?ns=registry.invalid")), "{asked:?}");
        let absent = cri.pull("registry.invalid/isopod/nothing").expect_err("nobody has it");
        ensure!(absent.message().contains(&mirror.address().to_string()), "{absent:?}");
        Ok(())
    })
}

fn cancelled_pull_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::of_images();
    for millis in [1, 50, 200, 800] {
        let request = PullImageRequest { image: image_spec("large"), ..PullImageRequest::default() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_millis(millis));
        let outcome = cri.wait(cri.images().pull_image(request));
        ensure!(outcome.is_err(), "64 MiB in {millis} ms");
        held::images_as_before(&before, &format!("after {millis} ms"))?;
    }
    Ok(())
}

/// A small disk for images while it lives.
struct SmallDisk;

impl SmallDisk {
    fn mount(size: &str) -> Result<Self> {
        daemon::kill()?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", held::IMAGES])?;
        let disk = Self;
        daemon::start()?;
        Ok(disk)
    }

    fn grow(&self, size: &str) -> Result<()> {
        run("mount", &["-o", &format!("remount,size={size}"), held::IMAGES])
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The next case tells where one of these fails: its node has no daemon.
        let _ = daemon::kill();
        let _ = run("umount", &[held::IMAGES]);
        let _ = daemon::start();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

fn full_disk_is_told_and_a_later_pull_works() -> Result<()> {
    let disk = SmallDisk::mount("30m")?;
    let cri = Cri::connect()?;
    cri.pull("web")?;
    let before = held::of_images();
    let refused = cri.pull("large").expect_err("64 MiB do not fit into 30");
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    ensure!(
        refused.message().contains("no space left") && refused.message().contains(held::IMAGES),
        "{refused:?}"
    );
    held::images_as_before(&before, "on the full disk")?;
    ensure!(cri.image("web")?.is_some_and(|image| image.repo_tags == [image_name("web")]), "others are gone");
    disk.grow("200m")?;
    cri.pull("large")?;
    Ok(())
}

fn image_beyond_the_limit_is_refused_by_its_key() -> Result<()> {
    daemon::configured("[image]\nmax_image_mib = 32\n", |cri| {
        cri.remove_images()?;
        let before = held::of_images();
        let refused = cri.pull("large").expect_err("64 MiB are more than 32");
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(refused.message().contains("image.max_image_mib"), "{refused:?}");
        held::images_as_before(&before, "of an image beyond the limit")?;
        cri.pull("web")?;
        Ok(())
    })
}

/// Where the daemon keeps images in a case that wants no tmpfs: there, files are memory, and converters have no bound together.
const NO_TMPFS: &str = "/srv/isopod-case";

fn converters_share_a_bound_of_memory() -> Result<()> {
    let text = format!("[daemon]\nroot_dir = \"{NO_TMPFS}\"\n[image]\nconverter_memory_mib = 512\n");
    daemon::configured(&text, |cri| {
        let registry = Registry::serve(|request, mut honest| {
            if request.is_large(&honest) {
                honest.pace = Pace::Stalls(10_000);
            }
            honest
        })?;
        let pull = begin_pull(cri, &registry.name("web"));
        let bounded =
            || anyhow::Ok(held::converters()?.iter().any(|cgroup| cgroup.contains("/isopod-converters")));
        wait_for("a converter in its cgroup", || Ok(bounded()?.then_some(())))?;
        pull.abort();
        let limit = fs::read_to_string("/sys/fs/cgroup/isopod-converters/memory.max")?;
        ensure!(limit.trim() == "536870912", "{limit}");
        Ok(())
    })?;
    fs::remove_dir_all(NO_TMPFS)?;
    Ok(())
}
