//! Turns of pods that are being made. A storm of pods queues for them: if all were made at once, each boot
//! would take as long as all of them, and pass the limit that it has.
//!
//! Used by `start`. A turn is for work of the node: where a pod's own guest is what takes long, the turn goes
//! to the next pod before that guest has answered. The next is one of the namespace that has the fewest turns
//! just then. So neither slow pods, by accident or on purpose, nor very many of them keep the pods of others
//! waiting for longer than one turn lasts.

use crate::lock::lock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest time that a pod has its turn: several times what a pod takes that starts beside few others.
pub const LONGEST: Duration = Duration::from_secs(10);

/// The turns of the node.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<Queue>>);

struct Queue {
    free: usize,
    /// By namespace, for those that have any.
    held: BTreeMap<String, usize>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    namespace: String,
    place: oneshot::Sender<Place>,
}

/// What is held of the turns. Dropped, it is the next one's.
struct Place {
    turns: Turns,
    namespace: String,
}

/// A turn, until it is dropped or has lasted too long.
pub struct Turn(JoinHandle<()>);

impl Turns {
    /// So many at a time.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue { free: count, held: BTreeMap::new(), waiting: VecDeque::new() })))
    }

    /// Waits for a turn for a pod of that namespace, which lasts for `longest` at most.
    pub async fn take(&self, namespace: &str, longest: Duration) -> Turn {
        let (place, given) = oneshot::channel();
        lock(&self.0).waiting.push_back(Waiting { namespace: namespace.to_owned(), place });
        self.give();
        let place = given.await;
        Turn(tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            drop(place);
        }))
    }

    /// Gives what is free to those who wait.
    fn give(&self) {
        loop {
            let next = lock(&self.0).next();
            let Some(Waiting { namespace, place }) = next else { return };
            // Whoever left meanwhile does not take it, so that it is free again.
            drop(place.send(Place { turns: self.clone(), namespace }));
        }
    }
}

impl Queue {
    /// Who is next, with the turn counted as theirs.
    fn next(&mut self) -> Option<Waiting> {
        if self.free == 0 {
            return None;
        }
        let held = |waiting: &Waiting| self.held.get(&waiting.namespace).copied().unwrap_or(0);
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(_, waiting)| held(waiting))?;
        let next = self.waiting.remove(at)?;
        self.free -= 1;
        *self.held.entry(next.namespace.clone()).or_default() += 1;
        Some(next)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.turns.0);
            queue.free += 1;
            let held = queue.held.entry(self.namespace.clone()).or_default();
            *held = held.saturating_sub(1);
            queue.held.retain(|_, held| *held > 0);
        }
        self.turns.give();
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
    const SOON: Duration = Duration::from_secs(5);

    fn free(turns: &Turns) -> usize {
        lock(&turns.0).free
    }

    #[tokio::test]
    async fn next_one_has_its_turn_when_the_last_is_done() {
        let turns = Turns::new(1);
        let first = turns.take("a", NEVER).await;
        assert!(timeout(MOMENT, turns.take("a", NEVER)).await.is_err(), "there is one turn");
        drop(first);
        timeout(SOON, turns.take("a", NEVER)).await.expect("the one that gave up has not kept its place");
    }

    #[tokio::test]
    async fn next_one_has_its_turn_though_the_last_is_never_done() {
        let turns = Turns::new(1);
        let stuck = turns.take("a", MOMENT).await;
        let next = timeout(SOON, turns.take("a", NEVER)).await.unwrap();
        drop(stuck);
        assert_eq!(free(&turns), 0, "a turn that was over is not given back twice");
        drop(next);
    }

    #[tokio::test]
    async fn pod_of_another_namespace_goes_before_all_that_one_namespace_has_queued() {
        let turns = Turns::new(2);
        let first = turns.take("many", NEVER).await;
        let _second = turns.take("many", NEVER).await;
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        for namespace in ["many", "many", "many", "few"] {
            let (turns, told) = (turns.clone(), told.clone());
            tokio::spawn(async move {
                let _turn = turns.take(namespace, NEVER).await;
                told.send(namespace).unwrap();
            });
            tokio::time::sleep(MOMENT).await;
        }
        drop(first);
        let mut served = Vec::new();
        for _ in 0..4 {
            served.push(timeout(SOON, order.recv()).await.unwrap().unwrap());
        }
        assert_eq!(served, ["few", "many", "many", "many"]);
    }

    #[tokio::test]
    async fn turn_given_to_one_who_left_goes_on() {
        let turns = Turns::new(1);
        let first = turns.take("a", NEVER).await;
        {
            let mut left = std::pin::pin!(turns.take("b", NEVER));
            assert!(timeout(MOMENT, &mut left).await.is_err());
            // Given, and never looked at.
            drop(first);
            tokio::time::sleep(MOMENT).await;
        }
        timeout(SOON, turns.take("c", NEVER)).await.expect("the turn is lost");
    }
}
