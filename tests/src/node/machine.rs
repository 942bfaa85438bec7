//! The node's QEMU command line.
//!
//! Three kinds of time: real CPUs where the machine has KVM with nesting, else emulated ones (an AMD CPU with SVM, so that KVM in the node
//! is real all the same), else counted instructions, which give the same figures on every run whatever else the machine does.

use super::kernel::Kernel;
use super::process::Process;
use super::qemu::Qemu;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What drives the node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The clock on the wall.
    Wall,
    /// One nanosecond per executed instruction, bit-exact from run to run; one CPU. The clock jumps ahead whenever the node waits
    /// for something outside it, so measure only what stays in a tmpfs.
    Counted,
}

/// The emulated processor: an AMD one with its virtualization, and without fast string instructions, which the emulator takes
/// byte by byte. See docs/decisions/0006.
const EMULATED_CPU: &str = "max,svm=on,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off";

/// The frequency of the counted clock, in kHz: instructions per millisecond.
const COUNTED_KHZ: u32 = 1_000_000;

/// What a machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) kernel: &'a Kernel,
    pub(super) time: Time,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    /// Whether QEMU's own stdin and stdout are a terminal for the node.
    pub(super) terminal: bool,
    pub(super) initramfs: &'a Path,
    pub(super) console_log: &'a Path,
    pub(super) root_socket: &'a Path,
    pub(super) run_socket: &'a Path,
}

impl Machine<'_> {
    /// The command that starts it. The job's output arrives on the command's stdout and stderr.
    pub fn command(&self) -> Command {
        let nested_kvm = self.time == Time::Wall && nested_kvm().is_some();
        let mut command = Process::command(&self.qemu.program);
        for directory in &self.qemu.firmware {
            command.arg("-L").arg(directory);
        }
        let memory = self.memory_mib;
        command.args(["-M", "microvm,x-option-roms=off,memory-backend=mem0"]);
        // shared, because the file servers read the node's memory
        command.args([
            "-object",
            &format!("memory-backend-memfd,id=mem0,size={memory}M,share=on"),
            "-m",
            &memory.to_string(),
        ]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        self.processor(&mut command, nested_kvm);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &self.kernel_command_line(nested_kvm)]);
        command.arg("-serial").arg(format!("file:{}", self.console_log.display()));
        for (tag, socket) in [("root", self.root_socket), ("run", self.run_socket)] {
            command.args(["-chardev", &format!("socket,id={tag},path={}", socket.display())]);
            command.args(["-device", &format!("vhost-user-fs-device,chardev={tag},tag={tag}")]);
        }
        self.ports(&mut command);
        command
    }

    fn processor(&self, command: &mut Command, nested_kvm: bool) {
        let cpus = match self.time {
            Time::Counted => 1,
            Time::Wall if nested_kvm || self.qemu.trusted_with_two_cpus => self.cpus,
            Time::Wall => 1,
        };
        command.args(["-smp", &cpus.to_string()]);
        if nested_kvm {
            command.args(["-accel", "kvm", "-cpu", "host"]);
            return;
        }
        // with a host thread per CPU, guests in the node hang or end with a triple fault now and then: docs/decisions/0004
        command.args(["-accel", "tcg,thread=single,tb-size=1024", "-cpu", EMULATED_CPU]);
        if self.time == Time::Counted {
            command.args(["-icount", "shift=0,sleep=off,align=off", "-seed", "42"]);
            command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        }
    }

    fn kernel_command_line(&self, nested_kvm: bool) -> String {
        // rcu_expedited: else making a VM waits for ticks, which is noise in every figure
        let mut line =
            "console=ttyS0 quiet panic=-1 reboot=t rcupdate.rcu_expedited=1 mitigations=off".to_owned();
        if !nested_kvm {
            line.push_str(" no_timer_check tsc=reliable");
        }
        match (self.time, tsc_khz()) {
            (Time::Counted, _) => line.push_str(&format!(" tsc_early_khz={COUNTED_KHZ} norandmaps nokaslr")),
            // emulated CPUs show the machine's own counter, and calibrating it against an emulated timer fails under load
            (Time::Wall, Some(khz)) if !nested_kvm => line.push_str(&format!(" tsc_early_khz={khz}")),
            (Time::Wall, _) => {}
        }
        line
    }

    fn ports(&self, command: &mut Command) {
        command.args(["-device", "virtio-serial-device"]);
        if self.terminal {
            // QEMU itself puts the caller's terminal into raw mode and back
            command.args([
                "-chardev",
                "stdio,id=terminal,signal=off",
                "-device",
                "virtconsole,chardev=terminal,nr=0",
            ]);
            return;
        }
        for (port, name) in [(1, "stdout"), (2, "stderr")] {
            command.args(["-chardev", &format!("file,id={name},path=/proc/self/fd/{port},append=on")]);
            command.args(["-device", &format!("virtserialport,chardev={name},name={name},nr={port}")]);
        }
    }
}

/// The module that makes /dev/kvm in a node.
pub fn kvm_module(time: Time) -> &'static str {
    match time {
        Time::Wall => nested_kvm().unwrap_or("kvm_amd"),
        Time::Counted => "kvm_amd",
    }
}

/// The machine's KVM module if its guests can use KVM themselves. /dev/kvm alone does not tell: there are kernels that answer to it
/// and cannot boot a stock guest.
fn nested_kvm() -> Option<&'static str> {
    fs::File::options().read(true).write(true).open("/dev/kvm").ok()?;
    ["kvm_amd", "kvm_intel"].into_iter().find(|module| {
        let parameter =
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
        matches!(parameter.trim(), "1" | "Y")
    })
}

/// The rate of the machine's time stamp counter if the kernel was told it by a hypervisor: then it is what /proc/cpuinfo shows as
/// the CPU's clock. On bare metal that figure follows the load, and the node must measure.
fn tsc_khz() -> Option<u32> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    parse_tsc_khz(&cpuinfo)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u32> {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    if !field("flags")?.split(' ').any(|flag| flag == "tsc_known_freq") {
        return None;
    }
    // "2596.150": MHz with exactly three decimals
    let (mhz, khz) = field("cpu MHz")?.split_once('.')?;
    (khz.len() == 3).then(|| format!("{mhz}{khz}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_rate_is_read_when_a_hypervisor_told_it() {
        let cpuinfo = "flags\t\t: fpu tsc tsc_known_freq svm\ncpu MHz\t\t: 2596.150\n";
        assert_eq!(parse_tsc_khz(cpuinfo), Some(2_596_150));
    }

    #[test]
    fn a_clock_that_follows_the_load_is_not_taken_for_the_counter_rate() {
        assert_eq!(parse_tsc_khz("flags\t\t: fpu tsc svm\ncpu MHz\t\t: 800.000\n"), None);
    }
}
