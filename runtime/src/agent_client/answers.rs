//! What is taken of an agent's answers: so many bytes of one, one message of a call that is answered once,
//! and lists no longer than an honest agent's.
//!
//! Used by the calls of [`super::AgentClient`].

use super::MAX_ANSWER;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use isopod_protocols::agent::{CreateContainerResponse, StatsResponse};
use isopod_protocols::guest::{MAX_CONTAINERS, MAX_GROUPS};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, StdError, http};

/// What stands before a message in an answer, bytes: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The one call whose answer is a stream; `events` has its limits.
const STREAM: &str = "/Watch";

/// Sends calls on by `S`, and takes as much of an answer as one message has. Without it, whoever takes the
/// one message of an answer goes on to read all that follow, to the call's deadline.
#[derive(Debug, Clone)]
pub struct Bounded<S>(pub S);

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Error: Into<StdError>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_stream = request.uri().path().ends_with(STREAM);
        let answer = self.0.call(request);
        Box::pin(
            async move { answer.await.map(|answer| if is_stream { answer } else { answer.map(bounded) }) },
        )
    }
}

fn bounded(body: Body) -> Body {
    let limited = Limited::new(body, MAX_ANSWER + PREFIX).map_err(|error| match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(error) if error.is::<LengthLimitError>() => {
            Status::out_of_range(format!("its answer is longer than {MAX_ANSWER} bytes"))
        }
        Err(error) => Status::from_error(error),
    });
    Body::new(limited)
}

/// Answers what is right of a container that was made, or what is wrong.
pub fn check_created(made: CreateContainerResponse) -> Result<CreateContainerResponse, String> {
    // They go into a record, which is written anew with every change.
    match made.user.as_ref().map_or(0, |user| user.supplemental_groups.len()) {
        groups if groups > MAX_GROUPS => Err(format!("{groups} supplemental groups, more than {MAX_GROUPS}")),
        _ => Ok(made),
    }
}

/// Answers figures that are right, or what is wrong.
pub fn check_figures(stats: StatsResponse) -> Result<StatsResponse, String> {
    match stats.containers.len() {
        count if count > MAX_CONTAINERS => {
            Err(format!("figures of {count} containers, more than {MAX_CONTAINERS}"))
        }
        _ => Ok(stats),
    }
}
