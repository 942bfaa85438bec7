//! Which device nodes a container may make and open: OCI device rules as a BPF program, which is how cgroup
//! v2 has them. Pure; [`super::group`] attaches it.
//!
//! What no rule allows is refused, except the devices that every container has, and so without any rule.
//! Nodes of any kind may be made, as in other runtimes, because only opening them gives access. This matters
//! in a guest, too: the pod's disk holds the roots of its other containers, and containers may usually make
//! nodes. Only a last rule that allows everything, which a privileged container has, leaves the container
//! without a program.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Bits of an access, as the kernel passes them (`BPF_DEVCG_ACC_*`).
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY: u32 = MAKE | READ | WRITE;

/// Kinds of device, as the kernel passes them (`BPF_DEVCG_DEV_*`).
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// Most rules; a program has room for thousands of instructions.
const MAX_RULES: usize = 256;

/// Rules that make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DevicesError {
    /// Letters other than r, w and m.
    #[error("device rule's access {0:?} must be letters of \"rwm\"")]
    Access(String),
    /// A kind that has no rules.
    #[error("device rule's type {0:?} must be a (all), b (block) or c (character)")]
    Type(LinuxDeviceType),
    /// A number that no device has.
    #[error("device rule's number {0} is none")]
    Number(i64),
    /// Too many rules.
    #[error("{0} device rules, more than {MAX_RULES}")]
    Count(usize),
}

/// One rule; absent parts match everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeviceRule {
    allow: bool,
    kind: Option<u32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: u32,
}

/// The program for these rules, of which the last that matches decides; none where the last allows
/// everything.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<u64>>, DevicesError> {
    if rules.len() > MAX_RULES {
        return Err(DevicesError::Count(rules.len()));
    }
    let mut parsed: Vec<DeviceRule> = rules.iter().map(parse).collect::<Result<_, _>>()?;
    let everything = DeviceRule { allow: true, kind: None, major: None, minor: None, access: ANY };
    if parsed.last() == Some(&everything) {
        return Ok(None);
    }
    parsed.extend(every_containers_devices());
    Ok(Some(assemble(&parsed)))
}

/// null, zero, full, random, urandom; tty, ptmx; terminals; and the making of any node. Not 5:1, which is the
/// guest's console: a container's `/dev/console` is its terminal.
fn every_containers_devices() -> impl Iterator<Item = DeviceRule> {
    let numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
    let character =
        |major, minor| DeviceRule { allow: true, kind: Some(CHARACTER), major, minor, access: ANY };
    let make = DeviceRule { allow: true, kind: None, major: None, minor: None, access: MAKE };
    numbers
        .into_iter()
        .map(move |(major, minor)| character(Some(major), Some(minor)))
        .chain([character(Some(136), None), make])
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, DevicesError> {
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
        other @ LinuxDeviceType::P => return Err(DevicesError::Type(other)),
    };
    let access = match rule.access().as_deref().unwrap_or_default() {
        "" => ANY,
        letters => letters.chars().try_fold(0, |bits, letter| match letter {
            'r' => Ok(bits | READ),
            'w' => Ok(bits | WRITE),
            'm' => Ok(bits | MAKE),
            _ => Err(DevicesError::Access(letters.to_owned())),
        })?,
    };
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

/// A device number; -1 and absence mean any.
fn number(number: Option<i64>) -> Result<Option<i32>, DevicesError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => match i32::try_from(number) {
            Ok(number @ 0..) => Ok(Some(number)),
            _ => Err(DevicesError::Number(number)),
        },
    }
}

/// Registers of the program. The kernel passes the context in [`CONTEXT`] and takes the verdict from
/// [`VERDICT`].
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 1;

/// Operations (linux/bpf.h): a class, a width or operation, a source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const JUMP_IF_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`: operation, registers, jump or memory offset, constant.
fn instruction(operation: u8, target: u8, source: u8, offset: i16, constant: i32) -> u64 {
    let registers = target | (source << 4);
    u64::from(operation)
        | (u64::from(registers) << 8)
        | (u64::from(offset.cast_unsigned()) << 16)
        | (u64::from(constant.cast_unsigned()) << 32)
}

fn assemble(rules: &[DeviceRule]) -> Vec<u64> {
    // struct bpf_cgroup_dev_ctx { access << 16 | kind, major, minor }, 32 bits each.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    // The last rule that matches decides, so the last is asked first.
    for rule in rules.iter().rev() {
        let body = conditions(rule);
        let decides = body.is_empty();
        let verdict = [instruction(SET, VERDICT, 0, 0, i32::from(rule.allow)), instruction(EXIT, 0, 0, 0, 0)];
        let length = body.len() + verdict.len();
        for (place, condition) in body.into_iter().enumerate() {
            // Behind the verdict, counted from the next instruction.
            let skip = i16::try_from(length - place - 1).expect("a rule has a dozen instructions at most");
            program.push(condition(skip));
        }
        program.extend(verdict);
        if decides {
            // Of what would follow nothing could be reached, and the kernel takes no such program.
            return program;
        }
    }
    program.extend([instruction(SET, VERDICT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// The instructions that leave a rule which does not match, each waiting to be told how far it must jump.
fn conditions(rule: &DeviceRule) -> Vec<Box<dyn Fn(i16) -> u64>> {
    let mut body: Vec<Box<dyn Fn(i16) -> u64>> = Vec::new();
    for (register, wanted) in
        [(KIND, rule.kind.map(|kind| kind as i32)), (MAJOR, rule.major), (MINOR, rule.minor)]
    {
        if let Some(wanted) = wanted {
            body.push(Box::new(move |skip| instruction(JUMP_IF_NOT_EQUAL, register, 0, skip, wanted)));
        }
    }
    if rule.access != ANY {
        // An allowance must cover all that is asked; a refusal holds if it covers any of it.
        let (mask, jump) =
            if rule.allow { (!rule.access & ANY, JUMP_IF_NOT_EQUAL) } else { (rule.access, JUMP_IF_EQUAL) };
        body.push(Box::new(|_| instruction(MOVE, SCRATCH, ACCESS, 0, 0)));
        body.push(Box::new(move |_| instruction(AND, SCRATCH, 0, 0, mask as i32)));
        body.push(Box::new(move |skip| instruction(jump, SCRATCH, 0, skip, 0)));
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel would make of the program.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0;
        loop {
            let code = program[at];
            let (operation, target, source) =
                (code as u8, (code >> 8) as usize & 15, (code >> 12) as usize & 15);
            let (offset, constant) = ((code >> 16) as i16, (code >> 32) as u32);
            at += 1;
            match operation {
                LOAD_WORD => registers[target] = context[offset as usize / 4],
                MOVE => registers[target] = registers[source],
                SET => registers[target] = constant,
                AND => registers[target] &= constant,
                SHIFT_RIGHT => registers[target] >>= constant,
                JUMP_IF_NOT_EQUAL if registers[target] != constant => at += offset as usize,
                JUMP_IF_EQUAL if registers[target] == constant => at += offset as usize,
                JUMP_IF_NOT_EQUAL | JUMP_IF_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn parsed(json: &str) -> Result<Option<Vec<u64>>, DevicesError> {
        program(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    #[test]
    fn container_that_may_nothing_and_one_without_rules_have_the_devices_of_all() {
        for rules in [r#"[{"allow":false,"access":"rwm"}]"#, "[]"] {
            let program = parsed(rules).unwrap().unwrap();
            assert!(run(&program, CHARACTER, READ | WRITE, 1, 3), "{rules}");
            assert!(run(&program, CHARACTER, WRITE, 136, 7), "{rules}");
            assert!(run(&program, BLOCK, MAKE, 254, 0), "{rules}");
            assert!(!run(&program, BLOCK, READ, 254, 0), "{rules}");
            assert!(!run(&program, CHARACTER, READ, 1, 1), "{rules}");
            assert!(!run(&program, CHARACTER, WRITE, 5, 1), "{rules}: the guest's console");
            assert!(is_reachable(&program), "{rules}");
        }
    }

    #[test]
    fn only_privilege_restricts_nothing() {
        assert_eq!(parsed(r#"[{"allow":false},{"allow":true,"access":"rwm"}]"#), Ok(None));
    }

    /// Whether a run can come to each instruction, without which the kernel refuses a program.
    fn is_reachable(program: &[u64]) -> bool {
        let mut reached = vec![false; program.len()];
        let mut next = vec![0];
        while let Some(at) = next.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let operation = program[at] as u8;
            if operation != EXIT {
                next.push(at + 1);
            }
            if matches!(operation, JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL) {
                next.push(at + 1 + (program[at] >> 16) as i16 as usize);
            }
        }
        reached.into_iter().all(|reached| reached)
    }

    #[test]
    fn later_rule_wins() {
        let program = parsed(
            r#"[{"allow":true,"type":"b","major":8,"access":"rw"},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#,
        );
        let program = program.unwrap().unwrap();
        assert!(run(&program, BLOCK, READ | WRITE, 8, 0));
        assert!(run(&program, BLOCK, READ, 8, 1) && !run(&program, BLOCK, READ | WRITE, 8, 1));
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        assert_eq!(parsed(r#"[{"allow":true,"access":"x"}]"#), Err(DevicesError::Access("x".to_owned())));
        assert_eq!(parsed(r#"[{"allow":true,"major":-5}]"#), Err(DevicesError::Number(-5)));
    }

    /// The rules read as their documentation says, without a program.
    fn decide(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let matches = |rule: &&DeviceRule| {
            rule.kind.is_none_or(|wanted| wanted == kind)
                && rule.major.is_none_or(|wanted| wanted as u32 == major)
                && rule.minor.is_none_or(|wanted| wanted as u32 == minor)
                && if rule.allow { access & !rule.access == 0 } else { access & rule.access != 0 }
        };
        rules.iter().rev().find(matches).is_some_and(|rule| rule.allow)
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let part = || proptest::option::of(0i32..3);
        (any::<bool>(), proptest::option::of(1u32..3), part(), part(), 1u32..8)
            .prop_map(|(allow, kind, major, minor, access)| DeviceRule { allow, kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn program_decides_as_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..12),
            kind in 1u32..3, access in 1u32..8, major in 0u32..3, minor in 0u32..3,
        ) {
            let program = assemble(&rules);
            prop_assert!(is_reachable(&program));
            prop_assert_eq!(run(&program, kind, access, major, minor), decide(&rules, kind, access, major, minor));
        }
    }
}
