//! Room for what execs write: the daemon keeps it until the exec has ended and is answered, so it is bounded
//! per pod and for the node, and not only per exec.
//!
//! Used by `exec`. Nobody waits for room: what finds none is dropped, as what is beyond an exec's own limit
//! is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of a pod's execs at a time: of two whose output is as long as it may be.
const POD: usize = 32 << 20;

/// Most bytes of all execs of the node.
const NODE: usize = 256 << 20;

/// Bytes that are kept, of so many that may be.
#[derive(Debug)]
pub struct Room {
    used: AtomicUsize,
    most: usize,
}

impl Room {
    /// A pod's.
    pub fn of_pod() -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most: POD })
    }

    /// The node's.
    pub fn of_node() -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most: NODE })
    }

    fn take(&self, wanted: usize) -> usize {
        let mut taken = 0;
        let take = |used: usize| {
            taken = wanted.min(self.most - used);
            Some(used + taken)
        };
        // It never says no.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one exec's stream has of its pod's room and of the node's, until it is dropped.
#[derive(Debug)]
pub struct Share {
    pod: Arc<Room>,
    node: Arc<Room>,
    bytes: usize,
}

impl Share {
    /// None yet.
    pub fn new(pod: Arc<Room>, node: Arc<Room>) -> Self {
        Self { pod, node, bytes: 0 }
    }

    /// Takes room for so many bytes more, or for as many as there is.
    pub fn take(&mut self, wanted: usize) -> usize {
        let of_pod = self.pod.take(wanted);
        let taken = self.node.take(of_pod);
        self.pod.give_back(of_pod - taken);
        self.bytes += taken;
        taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pod.give_back(self.bytes);
        self.node.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execs_of_one_pod_have_its_room_together_and_leave_the_nodes_to_others() {
        let (pod, node) = (Room::of_pod(), Room::of_node());
        let mut shares: Vec<_> = (0..64).map(|_| Share::new(Arc::clone(&pod), Arc::clone(&node))).collect();
        let taken: usize = shares.iter_mut().map(|share| share.take(7 << 20)).sum();
        assert_eq!(taken, POD);
        assert_eq!(Share::new(Room::of_pod(), Arc::clone(&node)).take(1), 1, "another pod has room");
        shares.pop();
        shares.clear();
        assert_eq!(Share::new(pod, node).take(usize::MAX), POD, "what has ended has given back its room");
    }

    #[test]
    fn room_of_the_node_is_never_more_than_there_is_whoever_asks() {
        let node = Room::of_node();
        let mut shares: Vec<_> = (0..10).map(|_| Share::new(Room::of_pod(), Arc::clone(&node))).collect();
        let taken: usize = shares.iter_mut().map(|share| share.take(POD)).sum();
        assert_eq!(taken, NODE);
    }
}
