//! A container's seccomp filter: translated from its profile when the container is created, kept as a program
//! in the container's bundle, and loaded by every process of the container as its last act before execve(2).
//!
//! A recorded profile allows little more than what the program itself calls. So the filter must not judge
//! what the agent does to start it: nothing happens between [`Filter::load`] and execve, not even an
//! allocation. Without `no_new_privs` loading needs CAP_SYS_ADMIN, which the process keeps in its permitted
//! set until execve takes it away: the kernel computes a program's capabilities from the bounding,
//! inheritable and ambient sets, which are the container's by then.
//!
//! Not with the container library's loader: that one runs before the library's own last steps, and compares
//! the arguments of `SCMP_CMP_MASKED_EQ` the wrong way round.
//!
//! Source: OCI runtime specification, "Seccomp"; runc's libcontainer/seccomp (conversion, and ENOSYS for
//! newer calls).

use super::message::Failure;
use crate::sys;
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

/// The file's name in the bundle; a container without a filter has none.
pub const FILE: &str = "filter";

/// Rules from which on libseccomp searches a tree instead of a list.
const MANY_RULES: usize = 8;

/// `struct sock_filter` of linux/filter.h: size, and the opcodes used here.
const INSTRUCTION: usize = 8;
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`; the bit that tells a call of x32 from one of x86_64.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

/// `SECCOMP_RET_ERRNO` with ENOSYS.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// A profile that cannot be a filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Notifications go to a process outside of the container, and none is named or none can be reached.
    #[error(
        "seccomp action SCMP_ACT_NOTIFY needs a listener, which a pod in a VM cannot have: use another action"
    )]
    Notify,
    /// No file for the program.
    #[error("seccomp filter cannot be kept in memory: {0}")]
    File(io::Error),
    /// libseccomp does not take a part of it.
    #[error("seccomp profile: {part} is refused by libseccomp: {source}")]
    Refused {
        /// Which part.
        part: String,
        /// Why.
        source: SeccompError,
    },
}

fn refused(part: impl Into<String>) -> impl FnOnce(SeccompError) -> FilterError {
    let part = part.into();
    move |source| FilterError::Refused { part, source }
}

/// A program for the kernel, and how to load it.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    flags: u64,
    program: Vec<u8>,
}

impl Filter {
    /// Translates a profile.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, FilterError> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let mut context = ScmpFilterContext::new(default).map_err(refused("defaultAction"))?;
        for arch in profile.architectures().iter().flatten() {
            context.add_arch(architecture(*arch)).map_err(refused(format!("architecture {arch:?}")))?;
        }
        let rules = profile.syscalls().as_deref().unwrap_or_default();
        if rules.len() > MANY_RULES {
            // A libseccomp that is too old for it makes a slower filter.
            let _ = context.set_ctl_optimize(2);
        }
        for rule in rules {
            let action = action(rule.action(), rule.errno_ret())?;
            if action == default {
                continue;
            }
            for name in rule.names() {
                // Calls of other kernels or architectures: there is nothing to filter.
                let Ok(call) = ScmpSyscall::from_name(name) else { continue };
                let arguments = rule.args().as_deref().unwrap_or_default();
                add(&mut context, action, call, arguments).map_err(refused(format!("rule for {name}")))?;
            }
        }
        let mut program = missing_calls(profile);
        program.extend(export(&context)?);
        Ok(Filter { flags: flags(profile), program })
    }

    /// The filter as bytes, for the bundle.
    pub fn encode(&self) -> Vec<u8> {
        [&self.flags.to_le_bytes()[..], &self.program].concat()
    }

    /// The filter of a container, if it has one.
    pub fn read(bundle: &Path) -> Result<Option<Filter>, Failure> {
        let bytes = match std::fs::read(bundle.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes
                .map_err(|error| Failure::guest("the container's seccomp filter cannot be read", error))?,
        };
        let broken =
            || Failure::guest("the container's seccomp filter", io::Error::from(io::ErrorKind::InvalidData));
        let (flags, program) = bytes.split_first_chunk().ok_or_else(broken)?;
        Ok(Some(Filter { flags: u64::from_le_bytes(*flags), program: program.to_vec() }))
    }

    /// Puts the calling process, which has one thread, under the filter. Allocates nothing.
    pub fn load(&self) -> io::Result<()> {
        sys::exec::load_seccomp_program(self.flags, &self.program)
    }
}

/// The program that libseccomp makes, by way of a file in memory: older ones write to descriptors only.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, FilterError> {
    let file =
        memfd_create("filter", MemfdFlags::CLOEXEC).map_err(|errno| FilterError::File(errno.into()))?;
    let mut file = File::from(file);
    context.export_bpf(&file).map_err(refused("the whole"))?;
    let mut program = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut program)).map_err(FilterError::File)?;
    Ok(program)
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    let errno = errno.map_or(libc::EPERM, u32::cast_signed);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err(FilterError::Notify),
    })
}

/// Conditions on one call hold together, unless two are about one argument: then each is a rule of its own,
/// as runc has it.
fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    arguments: &[LinuxSeccompArg],
) -> Result<(), SeccompError> {
    let conditions: Vec<ScmpArgCompare> = arguments.iter().map(condition).collect();
    let mut seen = HashSet::new();
    if arguments.iter().all(|argument| seen.insert(argument.index())) {
        context.add_rule_conditional(action, call, &conditions)?;
        return Ok(());
    }
    for condition in conditions {
        context.add_rule_conditional(action, call, &[condition])?;
    }
    Ok(())
}

/// In the OCI specification `value` is the mask of a masked comparison, and `valueTwo` what is compared.
fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, two) = (argument.value(), argument.value_two().unwrap_or(0));
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), two),
    };
    ScmpArgCompare::new(argument.index() as u32, operator, datum)
}

/// For seccomp(2). Without any named, runc asks for no mitigation of speculative stores. TSYNC concerns
/// threads, of which there is one, and WAIT_KILLABLE_RECV listeners, of which there are none.
fn flags(profile: &LinuxSeccomp) -> u64 {
    let Some(named) = profile.flags() else { return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    let value = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    named.iter().map(value).fold(0, std::ops::BitOr::bitor)
}

/// Instructions that precede the filter of a profile which does not allow by default: calls that are newer
/// than all that it names do not exist (ENOSYS), so that a C library falls back to older ones. Whoever wrote
/// the profile knew none of them. As in runc, calls are as new as their numbers are high.
fn missing_calls(profile: &LinuxSeccomp) -> Vec<u8> {
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    let highest = |arch| {
        let rules = profile.syscalls().iter().flatten();
        let numbers = rules.flat_map(|rule| rule.names()).filter_map(|name| {
            let call = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
            u32::try_from(call.as_raw_syscall()).ok()
        });
        numbers.max().unwrap_or(0)
    };
    let mut program = Vec::new();
    if permissive {
        return program;
    }
    let named = profile.architectures().as_deref().unwrap_or_default();
    for (audit, arch, oci) in
        [(X86_64, ScmpArch::X8664, Arch::ScmpArchX86_64), (I386, ScmpArch::X86, Arch::ScmpArchX86)]
    {
        let native = audit == X86_64;
        let highest = highest(arch);
        if highest == 0 || !(native || named.contains(&oci)) {
            continue;
        }
        // Jumps count the instructions that follow: all others go to the end of this block.
        instruction(&mut program, LOAD_WORD, 0, 0, ARCHITECTURE);
        instruction(&mut program, JUMP_IF_EQUAL, 0, 4, audit);
        instruction(&mut program, LOAD_WORD, 0, 0, NUMBER);
        instruction(&mut program, JUMP_IF_ANY_BIT, if native { 2 } else { 0 }, 0, X32_BIT);
        instruction(&mut program, JUMP_IF_GREATER, 0, 1, highest);
        instruction(&mut program, RETURN, 0, 0, NO_SUCH_CALL);
    }
    program
}

fn instruction(program: &mut Vec<u8>, code: u16, if_true: u8, if_false: u8, value: u32) {
    program.extend(code.to_ne_bytes());
    program.extend([if_true, if_false]);
    program.extend(value.to_ne_bytes());
    debug_assert_eq!(program.len() % INSTRUCTION, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compile(profile: Value) -> Result<Filter, FilterError> {
        Filter::compile(&serde_json::from_value(profile).unwrap())
    }

    /// What the program says of a call, as the kernel would run it: the part of classic BPF that filters use.
    fn verdict(filter: &Filter, audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number.to_ne_bytes(), audit.to_ne_bytes(), [0; 4], [0; 4]].concat();
        arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
        let (mut at, mut accumulator, mut memory) = (0, 0u32, [0u32; 16]);
        loop {
            let raw = &filter.program[at * INSTRUCTION..][..INSTRUCTION];
            let code = u16::from_ne_bytes([raw[0], raw[1]]);
            let value = u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]);
            let holds = match code {
                LOAD_WORD => {
                    accumulator = u32::from_ne_bytes(data[value as usize..][..4].try_into().unwrap());
                    false
                }
                RETURN => return value,
                0x02 => {
                    memory[value as usize] = accumulator;
                    false
                }
                0x60 => {
                    accumulator = memory[value as usize];
                    false
                }
                0x54 => {
                    accumulator &= value;
                    false
                }
                0x05 => {
                    at += value as usize;
                    false
                }
                JUMP_IF_EQUAL => accumulator == value,
                JUMP_IF_GREATER => accumulator > value,
                0x35 => accumulator >= value,
                JUMP_IF_ANY_BIT => accumulator & value != 0,
                other => panic!("instruction {other:#x}"),
            };
            let jumps = code & 0x07 == 0x05 && code != 0x05;
            at += 1 + if jumps { usize::from(raw[if holds { 2 } else { 3 }]) } else { 0 };
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    fn number(name: &str) -> u32 {
        ScmpSyscall::from_name(name).unwrap().as_raw_syscall().cast_unsigned()
    }

    #[test]
    fn calls_that_are_newer_than_the_profile_do_not_exist() {
        let filter = compile(json!({
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [{ "names": ["write", "exit_group", "no_such_call"], "action": "SCMP_ACT_ALLOW" }],
        }))
        .unwrap();
        let says = |name: &str| verdict(&filter, X86_64, number(name), [0; 6]);
        assert_eq!((says("write"), says("exit_group")), (ALLOW, ALLOW));
        assert_eq!(says("read"), 0x8000_0000, "older than exit_group: killed");
        assert_eq!(says("clone3"), NO_SUCH_CALL);
        let x32 = verdict(&filter, X86_64, X32_BIT | 500, [0; 6]);
        assert!(x32 != NO_SUCH_CALL && x32 != ALLOW, "another architecture: {x32:#x}");
        let allowing = compile(json!({ "defaultAction": "SCMP_ACT_ALLOW" })).unwrap();
        assert_eq!(verdict(&allowing, X86_64, number("clone3"), [0; 6]), ALLOW);
    }

    #[test]
    fn masked_comparison_takes_value_for_the_mask() {
        let clone = json!([{ "index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]);
        let filter = compile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95,
            "syscalls": [{ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": clone }],
        }))
        .unwrap();
        let says = |flags| verdict(&filter, X86_64, number("clone"), [flags, 0, 0, 0, 0, 0]);
        assert_eq!(says(libc::SIGCHLD as u64), ALLOW);
        assert_eq!(says(libc::CLONE_NEWUSER as u64), ERRNO | 95);
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives_and_on_several_hold_together() {
        let rule =
            |name: &str, args: Value| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
        let equal = |index, value| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
        let filter = compile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                rule("personality", json!([equal(0, 1), equal(0, 2)])),
                rule("socket", json!([equal(0, 1), equal(1, 2)])),
            ],
        }))
        .unwrap();
        let says = |name, a, b| verdict(&filter, X86_64, number(name), [a, b, 0, 0, 0, 0]);
        assert_eq!((says("personality", 1, 0), says("personality", 2, 0)), (ALLOW, ALLOW));
        assert_eq!(says("personality", 3, 0), ERRNO | libc::EPERM as u32);
        assert_eq!((says("socket", 1, 2), says("socket", 1, 3)), (ALLOW, ERRNO | libc::EPERM as u32));
    }

    /// What RuntimeDefault says of sockets. `socketcall` takes the family from memory: libseccomp allows it
    /// where `socket` is.
    #[test]
    fn family_of_a_socket_is_judged_in_both_architectures_where_a_filter_sees_it() {
        let not_vsock = json!([{ "index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE" }]);
        let filter = compile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                // The last one is newer than `socket` of i386, which would not exist without it.
                { "names": ["socketcall", "openat2"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": not_vsock },
            ],
        }))
        .unwrap();
        let (socket_of_i386, socketcall) = (359, 102);
        for (audit, socket) in [(X86_64, number("socket")), (I386, socket_of_i386)] {
            let says = |family: i32| verdict(&filter, audit, socket, [family as u64, 1, 0, 0, 0, 0]);
            assert_eq!((says(libc::AF_UNIX), says(libc::AF_VSOCK)), (ALLOW, ERRNO | libc::EPERM as u32));
        }
        assert_eq!(verdict(&filter, I386, socketcall, [1, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn notifications_need_a_listener() {
        let rule = json!({ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" });
        let refused = compile(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
        assert!(matches!(refused, Err(FilterError::Notify)));
        assert!(matches!(compile(json!({ "defaultAction": "SCMP_ACT_NOTIFY" })), Err(FilterError::Notify)));
    }

    #[test]
    fn filter_comes_back_from_its_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Filter::read(bundle.path()).unwrap(), None);
        let flags = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]);
        let filter = compile(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags })).unwrap();
        assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_LOG);
        std::fs::write(bundle.path().join(FILE), filter.encode()).unwrap();
        assert_eq!(Filter::read(bundle.path()).unwrap(), Some(filter));
    }
}
