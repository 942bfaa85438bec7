//! Turns of pods that are being made. A storm of pods queues for them: if all were made at once, each boot
//! would take as long as all of them, and pass the limit that it has.
//!
//! Used by `start`. A turn is for work of the node: where a pod's own guest is what takes long, the turn goes
//! to the next pod before that guest has answered. So no pods, slow by accident or on purpose, keep all
//! turns.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Longest time that a pod has its turn: several times what a pod takes that starts beside few others.
pub const LONGEST: Duration = Duration::from_secs(10);

/// A turn, until it is dropped or has lasted too long.
pub struct Turn(JoinHandle<()>);

impl Turn {
    /// Waits for one, which lasts for `longest` at most.
    pub async fn take(turns: &Arc<Semaphore>, longest: Duration) -> Self {
        // It fails only where the turns are closed, which nobody does.
        let turn = Arc::clone(turns).acquire_owned().await;
        Self(tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            drop(turn);
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const NEVER: Duration = Duration::from_secs(3600);
    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn next_one_has_its_turn_when_the_last_is_done() {
        let turns = Arc::new(Semaphore::new(1));
        let first = Turn::take(&turns, NEVER).await;
        assert!(timeout(MOMENT, Turn::take(&turns, NEVER)).await.is_err(), "there is one turn");
        drop(first);
        Turn::take(&turns, NEVER).await;
    }

    #[tokio::test]
    async fn next_one_has_its_turn_though_the_last_is_never_done() {
        let turns = Arc::new(Semaphore::new(1));
        let stuck = Turn::take(&turns, MOMENT).await;
        let next = Turn::take(&turns, NEVER).await;
        drop(stuck);
        assert_eq!(turns.available_permits(), 0, "a turn that was over is not given back twice");
        drop(next);
    }
}
