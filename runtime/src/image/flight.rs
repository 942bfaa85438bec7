//! One flight per layer and origin: however many pulls need the same blobs of the same registry, they are fetched and converted
//! once, and all wait for the one.
//!
//! ```text
//! board ---> no flight yet: the work starts, as a task of its own ---> outcome, for every passenger
//!    \-----> in the air: one passenger more
//! leave (outcome known, or the pull was cancelled) ---> the last one out aborts the work
//! ```
//!
//! What a flight is for is its key, a digest that `chain` makes: it must hold all that the outcome hangs on, as whoever begins
//! a flight may be hostile to its passengers. The work learns which pulls wait for it (`Passengers`), so that
//! it can be scheduled for any of them. Used by `chain`. It must not know what the work is.

use super::digest::Digest;
use super::error::ImageError;
use crate::lock::lock;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::task::AbortHandle;

type Outcome = Result<(), ImageError>;

/// All flights in the air.
#[derive(Clone, Default)]
pub struct Flights(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    flights: HashMap<Digest, Flight>,
    numbers: u64,
}

struct Flight {
    /// Tells it from an earlier flight of the same key, whose passengers may still be leaving.
    number: u64,
    /// The pull that began it.
    pull: u64,
    passengers: Passengers,
    work: AbortHandle,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The pulls that wait for one flight now, by number. Clones are of the same flight.
#[derive(Debug, Clone, Default)]
pub struct Passengers(Arc<Mutex<BTreeMap<u64, usize>>>);

impl Passengers {
    /// Those pulls, each once.
    pub fn pulls(&self) -> Vec<u64> {
        self.seats().keys().copied().collect()
    }

    /// Whether a pull is among them.
    pub fn include(&self, pull: u64) -> bool {
        self.seats().contains_key(&pull)
    }

    /// Adds a pull, which may be there already: each of its layers may wait for those below.
    pub(super) fn add(&self, pull: u64) {
        *self.seats().entry(pull).or_default() += 1;
    }

    /// Takes away what one [`Self::add`] has added; returns whether nobody is left.
    fn remove(&self, pull: u64) -> bool {
        let mut seats = self.seats();
        if let Some(count) = seats.get_mut(&pull) {
            *count -= 1;
            if *count == 0 {
                seats.remove(&pull);
            }
        }
        seats.is_empty()
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        lock(&self.0)
    }
}

/// How a flight ended for one passenger.
#[derive(Debug)]
pub struct Landed {
    /// What came of the work.
    pub outcome: Outcome,
    /// Whether the passenger's own pull began it. The failure of another pull's flight may be that pull's fault.
    pub own: bool,
}

/// A seat. Giving it up, for whatever reason, may end the work.
struct Seat {
    flights: Flights,
    key: Digest,
    number: u64,
    pull: u64,
}

impl Flights {
    /// Waits, for the pull of number `pull`, for the flight of `key`, beginning `work` where there is none.
    pub async fn board<F>(&self, key: Digest, pull: u64, work: impl FnOnce(Passengers) -> F) -> Landed
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (seat, mut outcome, own) = self.take_seat(key, pull, work);
        let known = outcome.wait_for(Option::is_some).await.map(|known| known.clone());
        let outcome = match known {
            Ok(Some(outcome)) => outcome,
            // the task panicked: nobody aborts it while this seat is taken
            Ok(None) | Err(_) => Err(ImageError::Interrupted("a layer".to_owned())),
        };
        drop(seat);
        Landed { outcome, own }
    }

    fn take_seat<F>(
        &self,
        key: Digest,
        pull: u64,
        work: impl FnOnce(Passengers) -> F,
    ) -> (Seat, watch::Receiver<Option<Outcome>>, bool)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut table = self.table();
        if let Some(flight) = table.flights.get_mut(&key) {
            flight.passengers.add(pull);
            let seat = Seat { flights: self.clone(), key, number: flight.number, pull };
            return (seat, flight.outcome.clone(), flight.pull == pull);
        }
        table.numbers += 1;
        let number = table.numbers;
        let (tell, outcome) = watch::channel(None);
        let passengers = Passengers::default();
        passengers.add(pull);
        let (work, flights) = (work(passengers.clone()), self.clone());
        let task = tokio::spawn(async move {
            let outcome = work.await;
            flights.close(&key, number);
            tell.send_replace(Some(outcome));
        });
        let work = task.abort_handle();
        table.flights.insert(key, Flight { number, pull, passengers, work, outcome: outcome.clone() });
        (Seat { flights: self.clone(), key, number, pull }, outcome, true)
    }

    /// No more passengers: the work is done.
    fn close(&self, key: &Digest, number: u64) {
        let mut table = self.table();
        if table.flights.get(key).is_some_and(|flight| flight.number == number) {
            table.flights.remove(key);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.flights.table();
        let Some(flight) = table.flights.get_mut(&self.key).filter(|flight| flight.number == self.number)
        else {
            return;
        };
        if flight.passengers.remove(self.pull) {
            flight.work.abort();
            table.flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::oneshot;

    /// Counts how often the work was begun and how often it was dropped unfinished.
    #[derive(Clone, Default)]
    struct Counts {
        begun: Arc<AtomicUsize>,
        aborted: Arc<AtomicUsize>,
    }

    struct Unfinished(Arc<AtomicUsize>);

    impl Drop for Unfinished {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Counts {
        fn work(
            &self,
            end: oneshot::Receiver<Outcome>,
        ) -> impl FnOnce(Passengers) -> std::pin::Pin<Box<dyn Future<Output = Outcome> + Send>> + use<>
        {
            let counts = self.clone();
            move |_| {
                counts.begun.fetch_add(1, Ordering::SeqCst);
                Box::pin(async move {
                    let unfinished = Unfinished(counts.aborted);
                    let outcome = end.await.unwrap();
                    std::mem::forget(unfinished);
                    outcome
                })
            }
        }

        fn seen(&self) -> (usize, usize) {
            (self.begun.load(Ordering::SeqCst), self.aborted.load(Ordering::SeqCst))
        }
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    fn key() -> Digest {
        Digest::of(b"key")
    }

    #[tokio::test]
    async fn concurrent_pulls_share_one_flight() {
        let (flights, counts) = (Flights::default(), Counts::default());
        let (end, ended) = oneshot::channel();
        let (_unused, never) = oneshot::channel();
        let first = tokio::spawn({
            let (f, w) = (flights.clone(), counts.work(ended));
            async move { f.board(key(), 1, w).await }
        });
        settle().await;
        let second = tokio::spawn({
            let (f, w) = (flights.clone(), counts.work(never));
            async move { f.board(key(), 2, w).await }
        });
        settle().await;
        end.send(Ok(())).unwrap();
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(first.outcome.is_ok() && second.outcome.is_ok());
        assert!(first.own && !second.own);
        assert_eq!(counts.seen(), (1, 0));
    }

    #[tokio::test]
    async fn work_goes_on_when_its_beginner_is_cancelled() {
        let (flights, counts) = (Flights::default(), Counts::default());
        let (end, ended) = oneshot::channel();
        let (_unused, never) = oneshot::channel();
        let first = tokio::spawn({
            let (f, w) = (flights.clone(), counts.work(ended));
            async move { f.board(key(), 1, w).await }
        });
        settle().await;
        let second = tokio::spawn({
            let (f, w) = (flights.clone(), counts.work(never));
            async move { f.board(key(), 2, w).await }
        });
        settle().await;
        first.abort();
        settle().await;
        end.send(Ok(())).unwrap();
        assert!(second.await.unwrap().outcome.is_ok());
        assert_eq!(counts.seen(), (1, 0));
    }

    #[tokio::test]
    async fn work_knows_the_pulls_that_wait_for_it() {
        let (flights, known) = (Flights::default(), Arc::new(Mutex::new(None)));
        let board = |pull| {
            let (flights, known) = (flights.clone(), Arc::clone(&known));
            let work = move |passengers: Passengers| async move {
                *known.lock().unwrap() = Some(passengers);
                std::future::pending().await
            };
            tokio::spawn(async move { flights.board(key(), pull, work).await })
        };
        let pulls = [board(1), board(2), board(2)];
        settle().await;
        let passengers = known.lock().unwrap().take().unwrap();
        assert_eq!(passengers.pulls(), [1, 2]);
        pulls[0].abort();
        pulls[1].abort();
        settle().await;
        assert_eq!((passengers.pulls(), passengers.include(1)), (vec![2], false));
        pulls[2].abort();
        settle().await;
        assert!(passengers.pulls().is_empty() && flights.table().flights.is_empty());
    }

    #[tokio::test]
    async fn work_is_aborted_when_the_last_passenger_leaves() {
        let (flights, counts) = (Flights::default(), Counts::default());
        let (_end, ended) = oneshot::channel();
        let only = tokio::spawn({
            let (f, w) = (flights.clone(), counts.work(ended));
            async move { f.board(key(), 1, w).await }
        });
        settle().await;
        only.abort();
        settle().await;
        assert_eq!(counts.seen(), (1, 1));
        assert!(flights.table().flights.is_empty());
    }

    #[tokio::test]
    async fn layers_of_one_pull_know_its_flights_for_their_own() {
        let (flights, counts) = (Flights::default(), Counts::default());
        let (end, ended) = oneshot::channel();
        let (_unused, never) = oneshot::channel();
        let (first, second) =
            (flights.board(key(), 1, counts.work(ended)), flights.board(key(), 1, counts.work(never)));
        let landed = futures_util::future::join(first, second);
        end.send(Err(ImageError::Interrupted("x".to_owned()))).unwrap();
        let (first, second) = landed.await;
        assert!(first.own && second.own && second.outcome.is_err());
        assert_eq!(counts.seen(), (1, 0));
    }

    #[tokio::test]
    async fn next_flight_starts_anew_after_a_failure() {
        let (flights, counts) = (Flights::default(), Counts::default());
        let (end, ended) = oneshot::channel();
        end.send(Err(ImageError::Interrupted("x".to_owned()))).unwrap();
        assert!(flights.board(key(), 1, counts.work(ended)).await.outcome.is_err());
        let (end, ended) = oneshot::channel();
        end.send(Ok(())).unwrap();
        assert!(flights.board(key(), 1, counts.work(ended)).await.outcome.is_ok());
        assert_eq!(counts.seen(), (2, 0));
    }

    #[tokio::test]
    async fn panic_in_the_work_is_an_error_for_its_passengers() {
        let flights = Flights::default();
        let landed = flights.board(key(), 1, |_| async { panic!("on purpose") }).await;
        assert!(matches!(landed.outcome, Err(ImageError::Interrupted(_))));
    }
}
