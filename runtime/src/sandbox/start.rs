//! RunPodSandbox as a story:
//!
//! ```text
//!   validate -> reserve name, id, user -> wait for a turn -> directories, cgroup
//!     -> at once: { namespace, CNI, tap } { VMM, clone or boot, agent } { scratch disk }
//!     -> join tap and disk to the VM -> the guest's identity -> Ready
//! ```
//!
//! Every step pushes its undo. A failure, or a caller that leaves, runs them all; what cannot be undone stays visible as a
//! sandbox that is Stopping, so that kubelet's next StopPodSandbox tries again.

use super::identity;
use super::resize::resize_vm;
use super::turn;
use super::validate::Plan;
use super::{Guest, Machine, PodNetworks, Sandbox, SandboxError, SandboxSpec, Sandboxes, State};
use crate::agent_client::{AgentClient, ENTROPY};
use crate::hypervisor::{Booted, VmRecord, VmSpec};
use crate::id::fill_random;
use crate::network::{NetworkError, Pod, PodNetwork};
use crate::scratch::ScratchDisk;
use crate::undo::Undo;
use isopod_protocols::agent::Extent;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{Instrument, info_span};

/// What the steps have taken. Two of them work at the same time, so each has a stack of its own.
struct Undos {
    sandbox: Undo,
    network: NetworkTask,
    vm: Undo,
}

impl Undos {
    fn new() -> Self {
        Self {
            sandbox: Undo::new("RunPodSandbox"),
            network: NetworkTask::Idle,
            vm: Undo::new("RunPodSandbox.vm"),
        }
    }

    async fn keep(self) {
        self.vm.keep();
        if let Some(undo) = self.network.into_undo().await {
            undo.keep();
        }
        self.sandbox.keep();
    }

    /// Releases everything, the VM first: it holds the tap, and lives in the cgroup.
    async fn run(self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(self.vm.run().await.err());
        if let Some(undo) = self.network.into_undo().await {
            left.extend(undo.run().await.err());
        }
        left.extend(self.sandbox.run().await.err());
        left.iter().map(ToString::to_string).collect()
    }
}

/// The making of the network, on a task that nothing cuts short: a CNI plugin that is killed half-way can leave what all
/// pods share, such as a bridge, so that no pod gets a network any more.
enum NetworkTask {
    Idle,
    Working(JoinHandle<(Result<PodNetwork, NetworkError>, Undo)>),
    Done(Undo),
}

impl NetworkTask {
    fn begin(&mut self, networks: Arc<dyn PodNetworks>, pod: Pod) {
        let work = async move {
            let mut undo = Undo::new("RunPodSandbox.network");
            (networks.add(&pod, &mut undo).await, undo)
        };
        *self = Self::Working(tokio::spawn(work.instrument(info_span!("network"))));
    }

    /// Waits for the network.
    async fn outcome(&mut self, sandbox: &Sandbox) -> Result<PodNetwork, SandboxError> {
        let Self::Working(task) = self else { return Err(SandboxError::GoingDown(sandbox.id.clone())) };
        // The only way in which a task ends without its result is the end of the daemon, or a defect in it.
        let Ok((outcome, undo)) = task.await else {
            return Err(SandboxError::GoingDown(sandbox.id.clone()));
        };
        *self = Self::Done(undo);
        Ok(outcome?)
    }

    /// Waits for the end of the work, whatever came of it.
    async fn into_undo(self) -> Option<Undo> {
        match self {
            Self::Idle => None,
            Self::Working(task) => task.await.ok().map(|(_, undo)| undo),
            Self::Done(undo) => Some(undo),
        }
    }
}

impl Sandboxes {
    /// Makes a sandbox; answers its id when it is Ready. Dropping the future undoes everything.
    ///
    /// # Errors
    /// Nothing is left behind but what the error names.
    pub async fn start(self: &Arc<Self>, spec: SandboxSpec) -> Result<String, SandboxError> {
        let plan = Plan::new(&self.config, spec)?;
        let sandbox = self.reserve(&plan)?;
        let (id, span) = (sandbox.id.clone(), info_span!("RunPodSandbox", sandbox = sandbox.id));
        // The work is a task of its own: a caller that leaves must not stop it between a step and its undo.
        let (here, left) = oneshot::channel::<()>();
        let work = Arc::clone(self).start_or_undo(sandbox, plan, left).instrument(span);
        let outcome = tokio::spawn(work).await;
        drop(here);
        outcome.unwrap_or(Err(SandboxError::GoingDown(id)))
    }

    async fn start_or_undo(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        plan: Plan,
        caller: oneshot::Receiver<()>,
    ) -> Result<String, SandboxError> {
        let mut undos = Undos::new();
        let outcome = tokio::select! {
            outcome = self.steps(&sandbox, &plan, &mut undos) => outcome,
            _ = caller => Err(SandboxError::Abandoned(sandbox.id.clone())),
        };
        match outcome {
            Ok(()) => {
                undos.keep().await;
                self.watch(&sandbox);
                tracing::info!("pod sandbox is ready");
                Ok(sandbox.id.clone())
            }
            Err(cause) => Err(self.give_up(&sandbox, cause, undos).await),
        }
    }

    async fn give_up(&self, sandbox: &Sandbox, cause: SandboxError, undos: Undos) -> SandboxError {
        tracing::warn!(error = %cause, "pod sandbox failed to start");
        let mut left = undos.run().await;
        if left.is_empty()
            && let Err(error) = self.forget(sandbox)
        {
            left.push(error.to_string());
        }
        if left.is_empty() {
            return cause;
        }
        if let Err(error) = self.change(sandbox, |record| record.state = State::Stopping) {
            left.push(error.to_string());
        }
        SandboxError::Undo { cause: Box::new(cause), leftovers: left.join("; ") }
    }

    /// Everything that is taken for a sandbox, in order.
    async fn steps(
        &self,
        sandbox: &Arc<Sandbox>,
        plan: &Plan,
        undos: &mut Undos,
    ) -> Result<(), SandboxError> {
        undos.sandbox.push("record", || async { Ok::<_, io::Error>(()) })?;
        let _turn = self.turns.take(&sandbox.spec.name.namespace, turn::LONGEST).await;
        make_directory(sandbox, &mut undos.sandbox)?;
        make_log_directory(sandbox).await?;
        make_cgroup(sandbox, &mut undos.sandbox)?;

        undos.network.begin(Arc::clone(&self.host.networks), pod_of(sandbox));
        let (network, machine, disk) = tokio::try_join!(
            undos.network.outcome(sandbox),
            self.boot(sandbox, plan, &mut undos.vm),
            self.scratch_disk(sandbox, plan).instrument(info_span!("scratch")),
        )?;
        let (machine, vm, guest) = machine;
        let PodNetwork { addresses, interface, tap, .. } = network;
        let attached = async {
            machine.vm.attach_tap(tap).await?;
            let file = disk.file().map_err(sandbox.file_error("scratch disk of", &sandbox.directory))?;
            let offset = machine.vm.attach_extent(file, disk.length, false).await?;
            Ok::<_, SandboxError>(Extent { offset, length: disk.length })
        };
        let extent = attached.instrument(info_span!("attach")).await?;
        sandbox.keep(disk);
        let identity = identity::request(sandbox, interface, &addresses, extent)?;
        machine.agent.set_up_sandbox(identity).instrument(info_span!("set_up")).await?;

        // The only one who sets it: restore is done before the door opens.
        let _ = sandbox.machine.set(machine);
        self.change(sandbox, |record| {
            record.state = State::Ready;
            record.vm = Some(vm);
            record.guest = guest;
            record.addresses = addresses;
        })
    }

    async fn boot(
        &self,
        sandbox: &Sandbox,
        plan: &Plan,
        undo: &mut Undo,
    ) -> Result<(Machine, VmRecord, Guest), SandboxError> {
        let spec = vm_spec(sandbox, plan);
        let booted = self.host.hypervisor.boot(&spec, undo).instrument(info_span!("boot")).await?;
        let Booted { vm, record, agent } = booted;
        let agent = AgentClient::connected(&sandbox.id, Arc::clone(&vm), agent);
        if spec.memory_mib > spec.boot_memory_mib {
            let grown = resize_vm(&sandbox.id, vm.as_ref(), spec.memory_mib);
            grown.instrument(info_span!("grow")).await?;
        }
        let mut entropy = [0; ENTROPY];
        let random = fill_random(&mut entropy);
        random.map_err(sandbox.file_error("random device", Path::new("/dev/urandom")))?;
        let hello = agent.hello(entropy).instrument(info_span!("hello")).await?;
        let guest = Guest {
            agent_version: hello.agent_version,
            kernel_release: hello.kernel_release,
            boot_id: hello.boot_id,
        };
        Ok((Machine { vm, agent }, record, guest.bounded()))
    }

    async fn scratch_disk(&self, sandbox: &Sandbox, plan: &Plan) -> Result<ScratchDisk, SandboxError> {
        Ok(self.host.scratch.disk(&sandbox.id, plan.vm.scratch_mib).await?)
    }
}

/// The directory of the VM's sockets.
fn make_directory(sandbox: &Sandbox, undo: &mut Undo) -> Result<(), SandboxError> {
    let directory = sandbox.directory.clone();
    let mut private = DirBuilder::new();
    private.mode(0o700).recursive(true);
    private.create(&directory).map_err(sandbox.file_error("vm directory", &directory))?;
    Ok(undo.push("directory", || async move { fs::remove_dir_all(&directory) })?)
}

/// The directory of the containers' logs, which is kubelet's to remove. Its disk may take no writes: the
/// thread that waits for it is none that serves calls.
async fn make_log_directory(sandbox: &Sandbox) -> Result<(), SandboxError> {
    match sandbox.log_directory() {
        Some(logs) => {
            tokio::fs::create_dir_all(logs).await.map_err(sandbox.file_error("log directory", logs))
        }
        None => Ok(()),
    }
}

fn make_cgroup(sandbox: &Sandbox, undo: &mut Undo) -> Result<(), SandboxError> {
    sandbox.cgroup.create()?;
    let cgroup = sandbox.cgroup.clone();
    undo.push("cgroup", || async move { cgroup.remove().await })?;
    Ok(())
}

fn pod_of(sandbox: &Sandbox) -> Pod {
    let spec = &sandbox.spec;
    Pod {
        sandbox_id: sandbox.id.clone(),
        name: spec.name.name.clone(),
        namespace: spec.name.namespace.clone(),
        uid: spec.name.uid.clone(),
        source: spec.network.clone(),
        annotations: spec.annotations.clone(),
        cgroup: sandbox.cgroup.path().display().to_string(),
    }
}

fn vm_spec(sandbox: &Sandbox, plan: &Plan) -> VmSpec {
    VmSpec {
        id: sandbox.id.clone(),
        directory: sandbox.directory.clone(),
        cgroup: Some(sandbox.cgroup.path().to_owned()),
        uid: sandbox.snapshot().uid,
        template_scope: plan.vm.template.scope(Some(&sandbox.spec.name.namespace)),
        vcpus: plan.size.vcpus,
        max_vcpus: sandbox.snapshot().max_vcpus,
        memory_mib: plan.size.memory_mib,
        boot_memory_mib: plan.vm.memory_mib.min(plan.size.memory_mib),
        ..VmSpec::new(plan.vm.clone())
    }
}
