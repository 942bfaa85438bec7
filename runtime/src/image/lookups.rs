//! Looking names up, which blocks a thread for as long as a name server keeps it waiting: at most [`MOST`] at
//! once, and [`MOST_OF_HOST`] of one name, so that names that are never answered leave threads to the rest of
//! the daemon, and turns to other names.
//!
//! A lookup cannot be stopped: it keeps its turn until it ends, whether or not somebody still waits for it.
//! Used by `destinations`. It must not judge the addresses.

use crate::lock::lock;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::Semaphore;

/// Lookups at once: a small part of the threads that all blocking work of the daemon shares.
const MOST: usize = 32;

/// Lookups of one name at once.
const MOST_OF_HOST: usize = 4;

/// What looks a name up, and blocks.
type LookUp = fn(&str) -> io::Result<Vec<SocketAddr>>;

/// All lookups of the daemon. Clones share their bounds.
#[derive(Clone)]
pub struct Lookups(Arc<Shared>);

struct Shared {
    look_up: LookUp,
    all: Arc<Semaphore>,
    /// Turns of the names that are being looked up, or wait for it.
    of_hosts: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self::by(system)
    }
}

impl Lookups {
    fn by(look_up: LookUp) -> Self {
        let all = Arc::new(Semaphore::new(MOST));
        Self(Arc::new(Shared { look_up, all, of_hosts: Mutex::default() }))
    }

    /// The addresses of `host`, with port 0, once it has its turn.
    ///
    /// # Errors
    /// Those of the system's resolver.
    pub async fn addresses(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        // of its name first: whoever waits for that takes no turn from others
        let of_host = self.of_host(host).acquire_owned().await.map_err(io::Error::other)?;
        let of_all = Arc::clone(&self.0.all).acquire_owned().await.map_err(io::Error::other)?;
        let (look_up, host) = (self.0.look_up, host.to_owned());
        let looking = tokio::task::spawn_blocking(move || {
            let _turns = (of_host, of_all);
            look_up(&host)
        });
        looking.await.map_err(io::Error::other)?
    }

    /// The turns of one name. They are forgotten once nobody has or wants one.
    fn of_host(&self, host: &str) -> Arc<Semaphore> {
        let mut of_hosts = lock(&self.0.of_hosts);
        if let Some(turns) = of_hosts.get(host).and_then(Weak::upgrade) {
            return turns;
        }
        of_hosts.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(MOST_OF_HOST));
        of_hosts.insert(host.to_owned(), Arc::downgrade(&turns));
        turns
    }
}

/// As the system's configuration says: hosts file, name servers.
fn system(host: &str) -> io::Result<Vec<SocketAddr>> {
    // the port is the client's to fill in
    Ok((host, 0).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};
    use tokio::task::JoinHandle;

    /// Longer than anything here takes that waits for no lookup.
    const HANGS: Duration = Duration::from_secs(3);

    /// Begins a lookup of each name.
    fn begin(lookups: &Lookups, hosts: impl Iterator<Item = String>) -> Vec<JoinHandle<()>> {
        let begin = |host: String| {
            let lookups = lookups.clone();
            tokio::spawn(async move { drop(lookups.addresses(&host).await) })
        };
        hosts.map(begin).collect()
    }

    #[tokio::test]
    async fn names_that_are_never_answered_leave_threads_to_other_work() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST_RUNNING: AtomicUsize = AtomicUsize::new(0);
        fn hang(_: &str) -> io::Result<Vec<SocketAddr>> {
            MOST_RUNNING.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(HANGS);
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Ok(Vec::new())
        }
        let (lookups, begun) = (Lookups::by(hang), Instant::now());
        // of 600 requests, most are given up at once: their lookups go on
        for round in 0..20 {
            let calls = begin(&lookups, (0..30).map(|number| format!("{round}-{number}.evil.test")));
            tokio::time::sleep(Duration::from_millis(5)).await;
            calls.iter().for_each(JoinHandle::abort);
        }
        let calls = begin(&lookups, (0..600).map(|number| format!("{number}.evil.test")));
        tokio::time::sleep(Duration::from_millis(5)).await;
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(begun.elapsed() < HANGS, "other work waited for lookups: {:?}", begun.elapsed());
        assert_eq!(MOST_RUNNING.load(Ordering::SeqCst), MOST);
        calls.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn name_that_is_never_answered_leaves_turns_to_others() {
        static HANGING: AtomicUsize = AtomicUsize::new(0);
        fn hang_for_one(host: &str) -> io::Result<Vec<SocketAddr>> {
            if host == "evil.test" {
                HANGING.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(HANGS);
            }
            Ok(vec![SocketAddr::from(([192, 0, 2, 1], 0))])
        }
        let (lookups, begun) = (Lookups::by(hang_for_one), Instant::now());
        let calls = begin(&lookups, (0..600).map(|_| "evil.test".to_owned()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(lookups.addresses("good.test").await.unwrap().len(), 1);
        assert!(begun.elapsed() < HANGS, "it waited for another name: {:?}", begun.elapsed());
        assert_eq!(HANGING.load(Ordering::SeqCst), MOST_OF_HOST);
        calls.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn turns_of_names_that_nobody_looks_up_are_forgotten() {
        let lookups = Lookups::by(|_| Ok(Vec::new()));
        for number in 0..100 {
            lookups.addresses(&format!("{number}.test")).await.unwrap();
        }
        assert_eq!(lock(&lookups.0.of_hosts).len(), 1);
        let wrong = Lookups::by(|_| Err(io::Error::other("no such name"))).addresses("x.test").await;
        assert_eq!(wrong.unwrap_err().to_string(), "no such name");
    }
}
