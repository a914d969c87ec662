//! What `tonic-build` would generate from a `.proto` file, and the model behind it.

use bytes::{Buf as _, BufMut as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use llm_serve_adapters::layer::Assignment;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tower_service::Service;

/// The one method: a question, and the answer word by word.
pub(crate) const ANSWER: &str = "/chat.Chat/Answer";

/// Messages that are text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining()).to_vec();
        let text = String::from_utf8(bytes);
        text.map(Some)
            .map_err(|_| Status::invalid_argument("a message is no text"))
    }
}

/// The service as tonic routes to it.
#[derive(Debug, Clone)]
pub(crate) struct ChatServer;

impl NamedService for ChatServer {
    const NAME: &'static str = "chat.Chat";
}

impl Service<http::Request<Body>> for ChatServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(if request.uri().path() == ANSWER {
                Grpc::new(Text).server_streaming(Model, request).await
            } else {
                Status::unimplemented("there is no such method").into_http()
            })
        })
    }
}

/// Says which version it is, then the question word by word; one question breaks it off.
struct Model;

impl Service<Request<String>> for Model {
    type Response = Response<BoxStream<'static, Result<String, Status>>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let assignment = request.extensions().get::<Assignment>();
        let Some(version) = assignment.and_then(Assignment::version) else {
            return ready(Err(Status::internal(
                "nobody has decided which version answers",
            )));
        };
        let mut words = vec![Ok(version.reference().to_string())];
        if request.get_ref() == "break off" {
            words.push(Err(Status::internal("out of memory")));
        } else {
            words.extend(request.get_ref().split(' ').map(|word| Ok(word.to_owned())));
        }
        ready(Ok(Response::new(stream::iter(words).boxed())))
    }
}
