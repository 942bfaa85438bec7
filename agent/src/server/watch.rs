//! The stream that `Watch` answers with: the states of all containers, and each change after that.

use crate::container::ContainerStates;
use futures_util::Stream;
use isopod_protocols::agent::{ContainerState, Event, event};
use std::pin::Pin;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

/// What `Watch` answers with.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

/// Answers `Watch`. The first event is the state of every container; a watcher that falls behind is cut off.
pub fn watch(states: &ContainerStates) -> EventStream {
    let (snapshot, changes) = states.watch();
    let first = Event { event: Some(event::Event::Snapshot(snapshot)) };
    let stream = futures_util::stream::unfold(Some((Some(first), changes)), |state| async {
        let (first, mut changes) = state?;
        if let Some(first) = first {
            return Some((Ok(first), Some((None, changes))));
        }
        match next(&mut changes).await {
            Ok(change) => {
                let event = Event { event: Some(event::Event::Changed(change)) };
                Some((Ok(event), Some((None, changes))))
            }
            Err(cut) => Some((Err(cut), None)),
        }
    });
    Box::pin(stream)
}

async fn next(changes: &mut broadcast::Receiver<ContainerState>) -> Result<ContainerState, Status> {
    changes.recv().await.map_err(|error| match error {
        RecvError::Lagged(missed) => Status::resource_exhausted(format!(
            "watcher fell behind by {missed} changes and was cut off: open the stream again"
        )),
        RecvError::Closed => Status::unavailable("the agent is ending"),
    })
}
