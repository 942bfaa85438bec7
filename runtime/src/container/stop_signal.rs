//! Signals that stop containers, as images name them.
//!
//! Called by `cri` for images, and for records of version 1.

/// What stops a container for which nobody says otherwise.
pub const DEFAULT: i32 = libc::SIGTERM;

/// A signal by number, or by name with or without `SIG`; none where it is no signal.
pub fn parse(text: &str) -> Option<i32> {
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
}
