//! A list as a stream: what the Stream RPCs answer.

use tokio_stream::{Iter, iter};
use tonic::Status;

/// Items in one message. The longest message has room for all labels and annotations that the node's pods, or
/// its containers, may have together, so it has for those of any of them.
const CHUNK: usize = 64;

/// Messages of a list, in its order.
pub type Messages<A> = Iter<std::vec::IntoIter<Result<A, Status>>>;

/// The items in messages of [`CHUNK`], which `message` makes. An empty list is an empty stream.
pub fn messages<T, A>(items: Vec<T>, message: impl Fn(Vec<T>) -> A) -> Messages<A> {
    let mut rest = items.into_iter();
    let mut messages = Vec::new();
    while rest.len() > 0 {
        messages.push(Ok(message(rest.by_ref().take(CHUNK).collect())));
    }
    iter(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    async fn sizes(count: usize) -> Vec<usize> {
        messages(vec![(); count], |items| items.len()).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn list_is_streamed_in_pieces_without_an_empty_one() {
        assert_eq!(sizes(0).await, [0; 0]);
        assert_eq!(sizes(CHUNK).await, [CHUNK]);
        assert_eq!(sizes(2 * CHUNK + 1).await, [CHUNK, CHUNK, 1]);
    }
}
