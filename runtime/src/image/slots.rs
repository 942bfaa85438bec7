//! Schedules conversions: at most so many work at the same time, shared out between registries and pulls by time slices.
//!
//! ```text
//! claim --> acquire --> has a slot --> dropped: the slot is free
//!              ^            |
//!              |            +--> idle for `idle` (it waits for the network): any waiter may take the slot
//!              +------------+--> has had it for `slice`: a registry or a pull with fewer slots may take it
//! ```
//!
//! A conversion that several pulls wait for is scheduled for the one that has the fewest slots: whoever began
//! it, and may be in no hurry, does not delay the others. Its slot counts for each of them.
//!
//! A conversion whose slot is taken is not stopped: it acquires another one before its next piece, and for
//! each part of what its pieces become. So a registry that sends a byte now and then delays no other
//! registry, and one that sends a lot, or a little that becomes a lot, gets its share and no more.
//!
//! Used by `layer`. It must not know what is done in a slot.

use super::flight::Passengers;
use crate::lock::lock;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// All slots of the node. Clones share them.
#[derive(Clone)]
pub struct Slots(Arc<Shared>);

struct Shared {
    rules: Rules,
    table: Mutex<Table>,
}

/// Number of slots, and when one may be taken from its holder.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Conversions that work at the same time.
    pub slots: usize,
    /// After this long, a registry or a pull that has fewer slots may take this one.
    pub slice: Duration,
    /// After this long without use, any waiter may take the slot.
    pub idle: Duration,
}

/// For whom a conversion is made: slots are shared out between registries, then between the pulls of one registry.
#[derive(Debug, Clone)]
pub struct Requester {
    /// The registry in the images' names.
    pub registry: String,
    /// The pulls that wait for it.
    pub pulls: Passengers,
}

/// One conversion's claim to a slot. Dropped, it releases the slot and leaves the queue.
pub struct Claim {
    slots: Slots,
    requester: Requester,
    number: u64,
    granted: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    numbers: u64,
    /// Claims that have a slot, the longest first.
    holders: Vec<Holder>,
    /// Claims that wait for one, the longest first.
    waiters: Vec<Waiter>,
    /// Claims that wait for the network, with or without a slot.
    idle: BTreeSet<u64>,
}

struct Holder {
    number: u64,
    requester: Requester,
    since: Instant,
    /// Since when the slot is unused; absent while it is used.
    idle_since: Option<Instant>,
}

struct Waiter {
    number: u64,
    requester: Requester,
    granted: Arc<Notify>,
}

impl Slots {
    /// Slots that are all free.
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(Shared { rules, table: Mutex::default() }))
    }

    /// A claim without a slot, not yet in the queue.
    pub fn claim(&self, requester: Requester) -> Claim {
        let mut table = self.table();
        table.numbers += 1;
        Claim { slots: self.clone(), requester, number: table.numbers, granted: Arc::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0.table)
    }
}

impl Claim {
    /// Waits until the claim has a slot; returns at once where it still has one.
    pub async fn acquire(&self) {
        let rules = self.slots.0.rules;
        loop {
            let granted = self.granted.notified();
            if self.slots.table().request(self, &rules, Instant::now()) {
                return;
            }
            // Slots become free to be taken by time alone, so the table is looked at again whichever comes first.
            let _ = tokio::time::timeout(rules.idle.min(rules.slice), granted).await;
        }
    }

    /// Releases the slot, if the claim has one, and leaves the queue.
    pub fn release(&self) {
        self.slots.table().leave(self.number, &self.slots.0.rules, Instant::now());
    }

    /// Runs what needs no slot, such as waiting for the network. The claim keeps its slot unless a waiter
    /// needs it; so it does with one that it acquires meanwhile, for what the network has brought before.
    pub async fn while_idle<T>(&self, work: impl Future<Output = T>) -> T {
        self.slots.table().mark(self.number, Some(Instant::now()));
        let done = work.await;
        self.slots.table().mark(self.number, None);
        done
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.slots.table().mark(self.number, None);
        self.release();
    }
}

impl Table {
    /// Puts a claim in the queue, unless it has a slot; returns whether it has one now.
    fn request(&mut self, claim: &Claim, rules: &Rules, now: Instant) -> bool {
        if !self.has(claim.number) && self.waiters.iter().all(|waiter| waiter.number != claim.number) {
            let (requester, granted) = (claim.requester.clone(), Arc::clone(&claim.granted));
            self.waiters.push(Waiter { number: claim.number, requester, granted });
        }
        self.grant(rules, now);
        self.has(claim.number)
    }

    /// Removes a claim, with its slot.
    fn leave(&mut self, number: u64, rules: &Rules, now: Instant) {
        self.holders.retain(|holder| holder.number != number);
        self.waiters.retain(|waiter| waiter.number != number);
        self.grant(rules, now);
    }

    fn mark(&mut self, number: u64, idle_since: Option<Instant>) {
        match idle_since {
            Some(_) => self.idle.insert(number),
            None => self.idle.remove(&number),
        };
        if let Some(holder) = self.holders.iter_mut().find(|holder| holder.number == number) {
            holder.idle_since = idle_since;
        }
    }

    fn has(&self, number: u64) -> bool {
        self.holders.iter().any(|holder| holder.number == number)
    }

    /// Grants slots that are free, and those that may be taken from their holders.
    fn grant(&mut self, rules: &Rules, now: Instant) {
        while let Some(first) = self.first_waiter() {
            if self.holders.len() >= rules.slots {
                let Some(at) = self.slot_to_take(&self.waiters[first].requester, rules, now) else { return };
                self.holders.remove(at);
            }
            let Waiter { number, requester, granted } = self.waiters.remove(first);
            let idle_since = self.idle.contains(&number).then_some(now);
            self.holders.push(Holder { number, requester, since: now, idle_since });
            granted.notify_waiters();
        }
    }

    /// The waiter whose registry has the fewest slots, then whose pull has, then who has waited longest.
    fn first_waiter(&self) -> Option<usize> {
        let slots = |at: &usize| {
            let requester = &self.waiters[*at].requester;
            (self.of_registry(requester), self.of_pull(requester))
        };
        (0..self.waiters.len()).min_by_key(slots)
    }

    /// The slot that `requester` may take from its holder: one that is not used; else, of those that were
    /// held for their slice, the longest of whoever has the most.
    fn slot_to_take(&self, requester: &Requester, rules: &Rules, now: Instant) -> Option<usize> {
        let lasts = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let unused = |holder: &Holder| holder.idle_since.is_some_and(|since| lasts(since, rules.idle));
        let overdue = |holder: &Holder| {
            lasts(holder.since, rules.slice) && self.has_fewer(requester, &holder.requester)
        };
        let slots = |holder: &Holder| (self.of_registry(&holder.requester), self.of_pull(&holder.requester));
        self.holders.iter().position(unused).or_else(|| {
            let overdue = self.holders.iter().enumerate().filter(|(_, holder)| overdue(holder));
            overdue.min_by_key(|(_, holder)| Reverse(slots(holder))).map(|(at, _)| at)
        })
    }

    /// Whether `one` has fewer slots than `other`: counted by registry, within a registry by pull.
    fn has_fewer(&self, one: &Requester, other: &Requester) -> bool {
        match one.registry == other.registry {
            true => self.of_pull(one) < self.of_pull(other),
            false => self.of_registry(one) < self.of_registry(other),
        }
    }

    fn of_registry(&self, requester: &Requester) -> usize {
        self.holders.iter().filter(|holder| holder.requester.registry == requester.registry).count()
    }

    /// Slots of the pull that has the fewest of those that wait; very many where none waits any more.
    fn of_pull(&self, requester: &Requester) -> usize {
        let slots = |pull: u64| {
            let of_registry = |holder: &&Holder| holder.requester.registry == requester.registry;
            let holders = self.holders.iter().filter(of_registry);
            holders.filter(|holder| holder.requester.pulls.include(pull)).count()
        };
        requester.pulls.pulls().into_iter().map(slots).min().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { slots: 3, slice: Duration::from_secs(10), idle: Duration::from_secs(2) };

    /// Slots with a clock that the test sets, and claims by name.
    struct Node {
        slots: Slots,
        claims: Vec<(&'static str, Claim)>,
        begin: Instant,
    }

    fn requester(registry: &str, pull: u64) -> Requester {
        let pulls = Passengers::default();
        pulls.add(pull);
        Requester { registry: registry.to_owned(), pulls }
    }

    impl Node {
        fn new() -> Self {
            Self { slots: Slots::new(RULES), claims: Vec::new(), begin: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.begin + Duration::from_secs(seconds)
        }

        fn claim(&self, name: &str) -> &Claim {
            &self.claims.iter().find(|(known, _)| *known == name).unwrap().1
        }

        /// A conversion for `registry` requests a slot at the second `seconds`; returns whether it has one at once.
        fn request(&mut self, name: &'static str, registry: &str, pull: u64, seconds: u64) -> bool {
            if self.claims.iter().all(|(known, _)| *known != name) {
                self.claims.push((name, self.slots.claim(requester(registry, pull))));
            }
            self.slots.table().request(self.claim(name), &RULES, self.at(seconds))
        }

        fn idle(&self, name: &str, seconds: u64) {
            self.slots.table().mark(self.claim(name).number, Some(self.at(seconds)));
        }

        /// Who has a slot at the second `seconds`.
        fn holders(&self, seconds: u64) -> Vec<&'static str> {
            let mut table = self.slots.table();
            table.grant(&RULES, self.at(seconds));
            self.claims.iter().filter(|(_, claim)| table.has(claim.number)).map(|(name, _)| *name).collect()
        }
    }

    #[test]
    fn slot_that_waits_for_bytes_goes_to_any_waiter() {
        let mut node = Node::new();
        for name in ["slow 1", "slow 2", "slow 3"] {
            assert!(node.request(name, "slow.test", 1, 0));
            node.idle(name, 0);
        }
        assert!(!node.request("victim", "good.test", 2, 1), "they may be about to get their bytes");
        assert_eq!(node.holders(2), ["slow 2", "slow 3", "victim"]);
    }

    #[test]
    fn slot_acquired_while_bytes_are_waited_for_goes_to_any_waiter_too() {
        let mut node = Node::new();
        for name in ["bomb", "b", "c"] {
            assert!(node.request(name, "slow.test", 1, 0));
            node.idle(name, 0);
            node.claim(name).release();
        }
        for name in ["bomb", "b", "c"] {
            assert!(node.request(name, "slow.test", 1, 5));
        }
        assert!(!node.request("victim", "good.test", 2, 6));
        assert_eq!(node.holders(7), ["b", "c", "victim"]);
    }

    #[test]
    fn busy_registry_yields_to_one_with_fewer_slots_after_its_slice() {
        let mut node = Node::new();
        for name in ["a", "b", "c"] {
            assert!(node.request(name, "busy.test", 1, 0));
        }
        assert!(!node.request("victim", "good.test", 2, 1));
        assert_eq!(node.holders(9), ["a", "b", "c"]);
        assert_eq!(node.holders(10), ["b", "c", "victim"]);
        assert!(!node.request("a", "busy.test", 1, 11), "its registry still has more than the other");
    }

    #[test]
    fn many_registries_take_turns() {
        let mut node = Node::new();
        for (name, registry) in [("a", "a.test"), ("b", "b.test"), ("c", "c.test"), ("d", "d.test")] {
            node.request(name, registry, 1, 0);
        }
        assert_eq!(node.holders(10), ["b", "c", "d"]);
        assert!(node.request("a", "a.test", 1, 10), "the next one has had its slice too");
        assert_eq!(node.holders(10), ["a", "c", "d"]);
    }

    #[test]
    fn pulls_of_one_registry_share_its_slots() {
        let mut node = Node::new();
        for name in ["a", "b", "c"] {
            assert!(node.request(name, "hub.test", 1, 0));
        }
        assert!(!node.request("victim", "hub.test", 2, 0));
        assert_eq!(node.holders(10), ["b", "c", "victim"]);
    }

    #[test]
    fn layers_of_one_pull_do_not_take_each_others_slots() {
        let mut node = Node::new();
        for name in ["a", "b", "c", "d"] {
            node.request(name, "hub.test", 1, 0);
        }
        assert_eq!(node.holders(1000), ["a", "b", "c"]);
        node.claims.remove(0);
        assert_eq!(node.holders(1000), ["b", "c", "d"]);
    }

    #[test]
    fn conversion_is_scheduled_for_the_pull_that_has_the_fewest_slots_of_those_that_wait() {
        let mut node = Node::new();
        for name in ["a", "b", "c", "shared"] {
            node.request(name, "hub.test", 1, 0);
        }
        assert_eq!(node.holders(1000), ["a", "b", "c"]);
        node.claim("shared").requester.pulls.add(2);
        assert_eq!(node.holders(1000), ["b", "c", "shared"]);
        assert!(node.request("d", "hub.test", 3, 1010));
        assert_eq!(node.holders(1010), ["c", "shared", "d"], "of the pull that has the most");
    }

    #[test]
    fn free_slot_goes_to_the_registry_with_the_fewest() {
        let mut node = Node::new();
        for (name, registry) in [
            ("a", "busy.test"),
            ("b", "busy.test"),
            ("c", "other.test"),
            ("d", "busy.test"),
            ("e", "new.test"),
        ] {
            node.request(name, registry, 1, 0);
        }
        node.claims.remove(0);
        assert_eq!(node.holders(1), ["b", "c", "e"]);
    }

    #[tokio::test]
    async fn dropped_claim_wakes_a_waiter() {
        let rules = Rules { slots: 1, slice: Duration::from_secs(100), idle: Duration::from_secs(100) };
        let slots = Slots::new(rules);
        let claim = |pull| slots.claim(requester("r.test", pull));
        let (first, second, third) = (claim(1), claim(2), claim(3));
        first.acquire().await;
        first.acquire().await;
        let waiting = tokio::spawn(async move { second.acquire().await });
        let last = tokio::spawn(async move { third.acquire().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
        last.await.unwrap();
        assert!(slots.table().holders.is_empty() && slots.table().waiters.is_empty());
    }
}
