//! A CRI client for cases: what kubelet would send, in as few words as a story wants.
//!
//! Calls block. What fails is a [`tonic::Status`], so that cases can look at its code.

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use isopod_protocols::cri::image_service_client::ImageServiceClient;
use isopod_protocols::cri::runtime_service_client::RuntimeServiceClient;
use isopod_protocols::cri::{
    self as v1, ContainerConfig, ContainerMetadata, ImageSpec, PodSandboxConfig, PodSandboxMetadata,
};
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

/// Where the daemon listens in a node.
pub const SOCKET: &str = "/run/isopod/isopod.sock";

/// Where the node's registry listens.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// Most bytes of one message, as kubelet has it.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A connection to a CRI runtime.
pub struct Cri {
    runtime: Runtime,
    runtime_service: RuntimeServiceClient<Channel>,
    image_service: ImageServiceClient<Channel>,
}

/// A pod that was run, with what it was run with.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its sandbox's id.
    pub id: String,
    /// Its configuration.
    pub config: PodSandboxConfig,
}

impl Pod {
    /// The name it was run with.
    pub fn name(&self) -> Result<&str> {
        let metadata = self.config.metadata.as_ref();
        Ok(&metadata.with_context(|| format!("pod {} has no metadata", self.id))?.name)
    }
}

/// A pod's configuration; every call gives a pod of another uid.
pub fn pod_config(name: &str) -> PodSandboxConfig {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let uid = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let metadata =
        PodSandboxMetadata { name: name.into(), namespace: "cases".into(), uid: uid.clone(), attempt: 0 };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.into(),
        log_directory: format!("/tmp/logs/{name}-{uid}"),
        linux: Some(v1::LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    }
}

/// A container's configuration.
pub fn container_config(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: image_name(image), ..ImageSpec::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig::default()),
        ..ContainerConfig::default()
    }
}

/// The full name of an image of `tests/images`; a name with a slash or a colon is full already.
pub fn image_name(image: &str) -> String {
    if image.contains(['/', ':']) { image.to_owned() } else { format!("{REGISTRY}/isopod/{image}:latest") }
}

/// The same, as requests want it.
pub fn image_spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image_name(image), ..ImageSpec::default() })
}

impl Cri {
    /// Connects to the node's Isopod.
    pub fn connect() -> Result<Self> {
        Self::connect_to(SOCKET)
    }

    /// Connects to the runtime at a socket; it need not be there yet.
    pub fn connect_to(socket: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let _context = runtime.enter();
        let channel = Endpoint::from_static("http://cri").connect_with_connector_lazy(connect);
        let runtime_service =
            RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let image_service = ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        drop(_context);
        Ok(Self { runtime, runtime_service, image_service })
    }

    /// The raw runtime service, for calls that have no short form here.
    pub fn service(&self) -> RuntimeServiceClient<Channel> {
        self.runtime_service.clone()
    }

    /// The raw image service.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.image_service.clone()
    }

    /// Waits for a call that answers a stream, and for the end of that.
    pub fn collect<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    ) -> Result<Vec<T>, Status> {
        self.runtime.block_on(async {
            let mut messages = call.await?.into_inner();
            let mut all = Vec::new();
            while let Some(message) = messages.message().await? {
                all.push(message);
            }
            Ok(all)
        })
    }

    /// Waits for a call.
    pub fn wait<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// Runs futures of the caller's own.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Begins a call of the caller's own; aborting the task is a client that leaves.
    pub fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Pulls an image of `tests/images`; answers its id.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let request = v1::PullImageRequest { image: image_spec(image), ..v1::PullImageRequest::default() };
        self.wait(self.images().pull_image(request)).map(|answer| answer.image_ref)
    }

    /// An image as it is on the node; `None` where it is not.
    pub fn image(&self, name: &str) -> Result<Option<v1::Image>, Status> {
        let request = v1::ImageStatusRequest { image: image_spec(name), verbose: false };
        self.wait(self.images().image_status(request)).map(|answer| answer.image)
    }

    /// All images.
    pub fn list_images(&self) -> Result<Vec<v1::Image>, Status> {
        self.wait(self.images().list_images(v1::ListImagesRequest::default())).map(|answer| answer.images)
    }

    /// Removes an image with all its names.
    pub fn remove_image(&self, name: &str) -> Result<(), Status> {
        self.wait(self.images().remove_image(v1::RemoveImageRequest { image: image_spec(name) })).map(drop)
    }

    /// Removes all images.
    pub fn remove_images(&self) -> Result<(), Status> {
        self.list_images()?.iter().try_for_each(|image| self.remove_image(&image.id))
    }

    /// Runs a pod of that name.
    pub fn run_pod(&self, name: &str) -> Result<Pod, Status> {
        self.run_pod_with(pod_config(name))
    }

    /// Runs a pod of that configuration.
    pub fn run_pod_with(&self, config: PodSandboxConfig) -> Result<Pod, Status> {
        self.run_pod_by("", config)
    }

    /// Runs a pod by that runtime handler.
    pub fn run_pod_by(&self, handler: &str, config: PodSandboxConfig) -> Result<Pod, Status> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer = self.wait(self.service().run_pod_sandbox(request))?;
        Ok(Pod { id: answer.pod_sandbox_id, config })
    }

    /// Makes a container in a pod; answers its id.
    pub fn create(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        self.wait(self.service().create_container(request)).map(|answer| answer.container_id)
    }

    /// Lets a container run.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: container.into() };
        self.wait(self.service().start_container(request)).map(drop)
    }

    /// Makes and starts a container; answers its id.
    pub fn run_container(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let container = self.create(pod, config)?;
        self.start(&container)?;
        Ok(container)
    }

    /// A pod with one container that sleeps.
    pub fn run_sleeper(&self, name: &str) -> Result<(Pod, String), Status> {
        let pod = self.run_pod(name)?;
        let container =
            self.run_container(&pod, container_config("sleeper", "busybox", &["sleep", "100000"]))?;
        Ok((pod, container))
    }

    /// Ends a container.
    pub fn stop(&self, container: &str, grace_s: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: container.into(), timeout: grace_s };
        self.wait(self.service().stop_container(request)).map(drop)
    }

    /// Removes a container.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: container.into() };
        self.wait(self.service().remove_container(request)).map(drop)
    }

    /// Ends a pod.
    pub fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.into() };
        self.wait(self.service().stop_pod_sandbox(request)).map(drop)
    }

    /// Removes a pod, running or not.
    pub fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
        self.wait(self.service().remove_pod_sandbox(request)).map(drop)
    }

    /// Runs a command in a container, for at most 60 s.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        self.exec_for(container, command, 60)
    }

    /// Runs a command in a container, with a limit in seconds.
    pub fn exec_for(
        &self,
        container: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout };
        self.wait(self.service().exec_sync(request))
    }

    /// What a shell script in a container prints, without its last newline; it must succeed.
    pub fn shell(&self, container: &str, script: &str) -> Result<String> {
        let ran = self.exec(container, &["/bin/sh", "-c", script]).with_context(|| script.to_owned())?;
        anyhow::ensure!(
            ran.exit_code == 0,
            "{script:?} exited with {}: {}",
            ran.exit_code,
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(String::from_utf8_lossy(&ran.stdout).trim_end().to_owned())
    }

    /// A container's status.
    pub fn status(&self, container: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: container.into(), verbose: false };
        self.wait(self.service().container_status(request)).map(|answer| answer.status.unwrap_or_default())
    }

    /// A pod's status.
    pub fn pod_status(&self, pod: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: false };
        self.wait(self.service().pod_sandbox_status(request)).map(|answer| answer.status.unwrap_or_default())
    }

    /// All pods.
    pub fn pods(&self) -> Result<Vec<v1::PodSandbox>, Status> {
        self.wait(self.service().list_pod_sandbox(v1::ListPodSandboxRequest::default()))
            .map(|answer| answer.items)
    }

    /// All containers.
    pub fn containers(&self) -> Result<Vec<v1::Container>, Status> {
        self.wait(self.service().list_containers(v1::ListContainersRequest::default()))
            .map(|answer| answer.containers)
    }

    /// Waits until a container has exited; answers its status.
    pub fn wait_exited(&self, container: &str) -> Result<v1::ContainerStatus> {
        let exited = i32::from(v1::ContainerState::ContainerExited);
        wait_for("the container to exit", || Ok(Some(self.status(container)?).filter(|s| s.state == exited)))
    }

    /// A container's log on the host.
    pub fn log(&self, container: &str) -> Result<String> {
        let path = self.status(container)?.log_path;
        std::fs::read_to_string(&path).with_context(|| path.clone())
    }

    /// Waits until a container's log has some words; answers the log.
    pub fn wait_logged(&self, container: &str, words: &str) -> Result<String> {
        let what = format!("{words:?} in the log");
        // The log is made with the container, its first line later.
        wait_for(&what, || Ok(self.log(container).ok().filter(|log| log.contains(words))))
    }

    /// Removes all pods, so that the next case finds the node as this one did.
    pub fn clean(&self) -> Result<()> {
        for pod in self.pods()? {
            self.remove_pod(&pod.id).with_context(|| format!("removing pod {}", pod.id))?;
        }
        Ok(())
    }
}

/// Looks again and again, for up to 60 s, until `look` finds something.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_within(Duration::from_secs(60), what, look)
}

/// Looks again and again, ten times a second and for about as long as `limit`, until `look` finds something.
pub fn wait_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..limit.as_secs() * 10 {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("waited {} s for {what}", limit.as_secs())
}
