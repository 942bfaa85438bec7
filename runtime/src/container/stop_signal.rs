//! Signals that stop containers: as images name them, as the CRI numbers them, as Linux does.

use super::Container;

/// Linux's numbers of the CRI's enumeration Signal, up to SIGXFSZ. Those after it, the real-time signals, are one more than Linux's.
const NUMBERS: [i32; 35] = [
    0,
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGBUS,
    libc::SIGCHLD,
    libc::SIGCHLD, // SIGCLD
    libc::SIGCONT,
    libc::SIGFPE,
    libc::SIGHUP,
    libc::SIGILL,
    libc::SIGINT,
    libc::SIGIO,
    libc::SIGABRT, // SIGIOT
    libc::SIGKILL,
    libc::SIGPIPE,
    libc::SIGIO, // SIGPOLL
    libc::SIGPROF,
    libc::SIGPWR,
    libc::SIGQUIT,
    libc::SIGSEGV,
    libc::SIGSTKFLT,
    libc::SIGSTOP,
    libc::SIGSYS,
    libc::SIGTERM,
    libc::SIGTRAP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGWINCH,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// The last of the CRI's enumeration, SIGRTMAX.
const LAST: i32 = 65;

/// Linux's number of a signal of the CRI; none for RUNTIME_DEFAULT, and for what is no signal.
pub fn from_cri(signal: i32) -> Option<i32> {
    match NUMBERS.get(usize::try_from(signal).ok()?) {
        Some(0) => None,
        Some(number) => Some(*number),
        None => (signal <= LAST).then_some(signal - 1),
    }
}

/// The CRI's number of one of Linux's.
fn to_cri(signal: i32) -> i32 {
    (1..=LAST).find(|&number| from_cri(number) == Some(signal)).unwrap_or(0)
}

/// What stops a container: the pod's word, else the image's, else SIGTERM.
pub fn of(container: &Container) -> i32 {
    let record = container.record();
    let of_image = || record.image.stop_signal.as_deref().and_then(parse);
    record.stop_signal.or_else(of_image).unwrap_or(libc::SIGTERM)
}

/// The same by the CRI's number, for a status.
pub fn in_cri(container: &Container) -> i32 {
    to_cri(of(container))
}

/// A signal by number, or by name with or without `SIG`: what images have as their stop signal.
fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: i32, rest: &str| match rest {
        "" => Some(base),
        rest => base.checked_add(rest.parse::<i32>().ok()?),
    };
    let number = match name {
        _ if name.starts_with("RTMIN") => real_time(34, &name[5..])?,
        _ if name.starts_with("RTMAX") => real_time(64, &name[5..])?,
        _ => match name.parse() {
            Ok(number) => number,
            Err(_) => name_to_number(name)?,
        },
    };
    (1..=64).contains(&number).then_some(number)
}

fn name_to_number(name: &str) -> Option<i32> {
    nix::sys::signal::Signal::iterator()
        .find(|signal| signal.as_str().strip_prefix("SIG") == Some(name))
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_name_signals_by_name_or_number() {
        assert_eq!(parse("SIGQUIT"), Some(libc::SIGQUIT));
        assert_eq!(parse("term"), Some(libc::SIGTERM));
        assert_eq!(parse("9"), Some(9));
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        for bad in ["", "SIGNONE", "0", "65", "RTMIN+99", "-3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_of_the_cri_are_those_it_published() {
        for (published, signal) in [(0, None), (10, Some(libc::SIGINT)), (23, Some(libc::SIGTERM))] {
            assert_eq!(from_cri(published), signal);
        }
        // SIGRTMIN, SIGRTMINPLUS15, SIGRTMAXMINUS14, SIGRTMAX.
        for (published, signal) in [(35, 34), (50, 49), (51, 50), (65, 64)] {
            assert_eq!(from_cri(published), Some(signal));
        }
        assert_eq!([from_cri(66), from_cri(-1)], [None, None]);
    }

    #[test]
    fn every_signal_comes_back_as_itself() {
        // The C library keeps 32 and 33 to itself, and the CRI has no names for them, nor for 0.
        for signal in (1..32).chain(34..=64) {
            assert_eq!(from_cri(to_cri(signal)), Some(signal));
        }
    }
}
