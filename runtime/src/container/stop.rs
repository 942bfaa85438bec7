//! StopContainer: the container's own stop signal, its grace, then SIGKILL for all of its processes.

use super::record::State;
use super::{Container, ContainerError, Containers};
use crate::sandbox::Sandbox;
use isopod_protocols::agent::SignalProcessRequest;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time that a killed container has to be gone.
const KILLED: Duration = Duration::from_secs(20);

impl Containers {
    /// Ends a container. One that does not run is no error.
    ///
    /// Stops of one container may run side by side: a shorter grace is not held up by a longer one.
    ///
    /// # Errors
    /// Where it could not be killed.
    pub async fn stop(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        if !container.is_running() {
            return Ok(());
        }
        let Some(machine) = sandbox.machine_until_stopped() else {
            // The VM has ended, and the container with it.
            return container.exited(KILLED).await;
        };
        let signal = |signal: i32, whole_tree| SignalProcessRequest {
            container_id: container.id.clone(),
            process_id: String::new(),
            signal: signal.cast_unsigned(),
            whole_tree,
        };
        if !grace.is_zero() {
            if !container.asked_to_stop.swap(true, Ordering::Relaxed) {
                machine.agent.signal_process(signal(stop_signal(container), false)).await?;
            }
            if container.exited(grace).await.is_ok() {
                return Ok(());
            }
        }
        machine.agent.signal_process(signal(libc::SIGKILL, true)).await?;
        container.exited(KILLED).await
    }
}

impl Container {
    /// Waits until it has exited.
    async fn exited(&self, limit: Duration) -> Result<(), ContainerError> {
        let mut changes = self.changes.subscribe();
        let gone = async {
            while !matches!(self.state(), State::Exited(_)) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let late = |_| ContainerError::StillRunning { id: self.id.clone(), seconds: limit.as_secs() };
        tokio::time::timeout(limit, gone).await.map_err(late)
    }
}

fn stop_signal(container: &Container) -> i32 {
    container.record().image.stop_signal.as_deref().and_then(parse_signal).unwrap_or(libc::SIGTERM)
}

/// A signal by number, or by name with or without `SIG`: what images have as their stop signal.
fn parse_signal(text: &str) -> Option<i32> {
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
    fn stop_signals_come_by_name_or_number() {
        assert_eq!(parse_signal("SIGQUIT"), Some(libc::SIGQUIT));
        assert_eq!(parse_signal("term"), Some(libc::SIGTERM));
        assert_eq!(parse_signal("9"), Some(9));
        assert_eq!(parse_signal("SIGRTMIN+3"), Some(37));
        assert_eq!(parse_signal("SIGRTMAX-1"), Some(63));
        for bad in ["", "SIGNONE", "0", "65", "RTMIN+99", "-3"] {
            assert_eq!(parse_signal(bad), None, "{bad}");
        }
    }
}
