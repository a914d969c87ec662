//! A stand-in for pingora: its phases, in its order, on hyper. Nothing of this is to be copied; a host has the real one.
//!
//! The phases have the names and the meaning of `pingora_proxy::ProxyHttp`. Left out is what this example does not need, and
//! types are those of the `http` crate.

use bytes::Bytes;
use http::{Request, Response, StatusCode, request, response};
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The client's request.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) request: request::Parts,
}

/// Whose side something went wrong on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Upstream,
    Downstream,
}

#[derive(Debug)]
pub(crate) struct Error {
    phase: Phase,
    what: String,
}

impl Error {
    pub(crate) fn new(phase: Phase, what: impl fmt::Display) -> Self {
        Self {
            phase,
            what: what.to_string(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.phase, self.what)
    }
}

pub(crate) trait ProxyHttp: Send + Sync + 'static {
    type CTX: Send;

    fn new_ctx(&self) -> Self::CTX;

    /// A status ends the request here.
    fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> impl Future<Output = Result<Option<StatusCode>, Error>> + Send;

    fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> impl Future<Output = Result<SocketAddr, Error>> + Send;

    fn upstream_request_filter(&self, request: &mut request::Parts, ctx: &mut Self::CTX);

    fn response_filter(&self, response: &mut response::Parts, ctx: &mut Self::CTX);

    fn response_body_filter(
        &self,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    );

    fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &mut Self::CTX,
    ) -> impl Future<Output = ()> + Send;
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Serves clients until it is dropped.
pub(crate) async fn serve<P: ProxyHttp>(
    listener: TcpListener,
    proxy: Arc<P>,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                let proxy = Arc::clone(&proxy);
                async move {
                    let (head, answered) = oneshot::channel();
                    // On a task of its own: it ends by itself when the client has gone.
                    tokio::spawn(pass(proxy, request, head));
                    Ok::<_, Infallible>(
                        answered
                            .await
                            .unwrap_or_else(|_| status(StatusCode::BAD_GATEWAY)),
                    )
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            // A client that hangs up ends its own connection only.
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// One request through all phases.
async fn pass<P: ProxyHttp>(
    proxy: Arc<P>,
    request: Request<Incoming>,
    head: oneshot::Sender<Response<Body>>,
) {
    let mut ctx = proxy.new_ctx();
    let (parts, body) = request.into_parts();
    let mut session = Session { request: parts };
    let ended = phases(&*proxy, &mut session, &mut ctx, body, head).await;
    proxy
        .logging(&mut session, ended.as_ref().err(), &mut ctx)
        .await;
}

async fn phases<P: ProxyHttp>(
    proxy: &P,
    session: &mut Session,
    ctx: &mut P::CTX,
    body: Incoming,
    head: oneshot::Sender<Response<Body>>,
) -> Result<(), Error> {
    let upstream = |e: &dyn fmt::Display| Error::new(Phase::Upstream, e);
    let gone = || Error::new(Phase::Downstream, "the client has gone");
    if let Some(refused) = proxy.request_filter(session, ctx).await? {
        return head.send(status(refused)).map_err(|_| gone());
    }
    let peer = proxy.upstream_peer(session, ctx).await?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = session.request.method.clone();
    parts.uri = session.request.uri.clone();
    parts.headers = session.request.headers.clone();
    proxy.upstream_request_filter(&mut parts, ctx);
    let stream = TcpStream::connect(peer).await.map_err(|e| upstream(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| upstream(&e))?;
    tokio::spawn(connection);
    let asked = sender.send_request(Request::from_parts(parts, body));
    let (mut parts, mut reply) = asked.await.map_err(|e| upstream(&e))?.into_parts();
    proxy.response_filter(&mut parts, ctx);
    parts.headers.remove(http::header::TRANSFER_ENCODING);
    let (mut to, from) = Channel::<Bytes, Infallible>::new(1);
    head.send(Response::from_parts(parts, from.boxed_unsync()))
        .map_err(|_| gone())?;
    while let Some(frame) = reply.frame().await {
        let mut data = frame.map_err(|e| upstream(&e))?.into_data().ok();
        proxy.response_body_filter(&mut data, hyper::body::Body::is_end_stream(&reply), ctx);
        if let Some(data) = data {
            to.send_data(data).await.map_err(|_| gone())?;
        }
    }
    proxy.response_body_filter(&mut None, true, ctx);
    Ok(())
}
