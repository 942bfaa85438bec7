//! Whose turn it is to serve a stream: the latest connection's. An earlier one learns that it has lost it.

use tokio::sync::watch;

/// Number of the turn that nobody has: the stream is gone.
const RETIRED: u64 = u64::MAX;

/// The number of the latest connection of a stream.
#[derive(Debug)]
pub struct Turn {
    latest: watch::Sender<u64>,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn { latest: watch::Sender::new(0) }
    }
}

impl Turn {
    /// Takes the turn from whoever has it. Once the stream is gone, a turn is lost as it is taken.
    pub fn take(&self) -> Taken {
        let mut mine = 0;
        self.latest.send_if_modified(|latest| {
            let open = *latest != RETIRED;
            if open {
                *latest += 1;
                mine = *latest;
            }
            open
        });
        Taken { mine, latest: self.latest.subscribe() }
    }

    /// Ends the turn of whoever has it, and of all who come: the stream is gone.
    pub fn retire(&self) {
        self.latest.send_replace(RETIRED);
    }
}

/// The turn of one connection.
#[derive(Debug)]
pub struct Taken {
    mine: u64,
    latest: watch::Receiver<u64>,
}

impl Taken {
    /// Comes back when another connection has taken the turn or the stream is gone.
    pub async fn lost(&mut self) {
        let mine = self.mine;
        let _ = self.latest.wait_for(|latest| *latest != mine).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn is_lost(taken: &mut Taken) -> bool {
        tokio::time::timeout(Duration::from_millis(1), taken.lost()).await.is_ok()
    }

    #[tokio::test]
    async fn later_connection_takes_the_turn() {
        let turn = Turn::default();
        let mut first = turn.take();
        assert!(!is_lost(&mut first).await);
        let mut second = turn.take();
        assert!(is_lost(&mut first).await && !is_lost(&mut second).await);
        turn.retire();
        assert!(is_lost(&mut second).await && is_lost(&mut turn.take()).await);
    }
}
