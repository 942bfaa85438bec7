//! Signals that stop containers: as the CRI numbers them, and as Linux does.

/// Linux's numbers of the CRI's enumeration Signal, up to SIGXFSZ. Those after it, the real-time signals, are
/// one more than Linux's.
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
pub fn to_cri(signal: i32) -> i32 {
    (1..=LAST).find(|&number| from_cri(number) == Some(signal)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
