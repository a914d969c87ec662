//! The embedding: what a host writes into its own `ProxyHttp`. Everything is synchronous and in the phases that pingora has.

use crate::proxy::{Error, Phase, ProxyHttp, Session};
use bytes::Bytes;
use http::{StatusCode, request, response};
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::layer::{End, Observer, VERSION_HEADER};
use llm_serve_adapters::recorder::{OutcomeClass, Ticket};
use llm_serve_adapters::router::{Decision, Key, Version, VersionSlot};
use std::net::SocketAddr;

/// Where a version is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) serves: VersionSlot,
    pub(crate) address: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) plane: DataPlane,
    pub(crate) peers: Vec<Peer>,
}

/// What is known about a request from phase to phase.
#[derive(Debug, Default)]
pub(crate) struct Ctx {
    ticket: Option<Ticket>,
    decision: Option<Decision>,
    observer: Option<Observer>,
    complete: bool,
}

impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    /// What is no request for a model is answered here, and is nobody's evidence.
    async fn request_filter(
        &self,
        session: &mut Session,
        _: &mut Ctx,
    ) -> Result<Option<StatusCode>, Error> {
        let known = session.request.uri.path().starts_with("/v1/");
        Ok((!known).then_some(StatusCode::NOT_FOUND))
    }

    /// Decides, and chooses among the peers that serve the version.
    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<SocketAddr, Error> {
        let now = self.plane.router.now();
        let key = session.request.headers.get("x-session-id");
        let key = key.map_or(Key::keyless(), |value| Key::session(value.as_bytes()));
        let decision = self.plane.decide(&key, now);
        ctx.decision = Some(decision);
        ctx.ticket = Some(self.plane.recorder.begin(decision, now));
        // A host's own balancer, by load or by cache, chooses here.
        let peer = decision.filter(&self.peers, |peer| peer.serves).next();
        peer.map(|peer| peer.address)
            .ok_or(Error::new(Phase::Upstream, "no peer serves the version"))
    }

    fn upstream_request_filter(&self, request: &mut request::Parts, ctx: &mut Ctx) {
        // A host that applies profiles (`Decision::apply`) does it where it has the body.
        if let Some(reference) = ctx
            .decision
            .and_then(Decision::version)
            .and_then(Version::header)
        {
            request.headers.insert("x-asked-of", reference);
        }
    }

    fn response_filter(&self, response: &mut response::Parts, ctx: &mut Ctx) {
        ctx.observer = Some(Observer::new(response.status, &response.headers));
        if let Some(reference) = ctx
            .decision
            .and_then(Decision::version)
            .and_then(Version::header)
        {
            response.headers.insert(VERSION_HEADER, reference);
        }
    }

    fn response_body_filter(&self, body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) {
        if let (Some(data), Some(observer), Some(ticket)) =
            (body, &mut ctx.observer, &mut ctx.ticket)
        {
            observer.data(ticket, data, self.plane.router.now());
        }
        ctx.complete |= end_of_stream;
    }

    /// The last phase, however the request has ended.
    async fn logging(&self, _: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let (Some(ticket), Some(decision)) = (ctx.ticket.take(), ctx.decision) else {
            return;
        };
        let end = match error.map(Error::phase) {
            _ if ctx.complete => End::Complete,
            Some(Phase::Downstream) => End::Dropped,
            Some(Phase::Upstream) => End::Broken,
            None => End::Complete,
        };
        // Without a head the version could not be reached, or the client did not wait for it.
        let none = match end {
            End::Dropped => OutcomeClass::ClientCancel,
            _ => OutcomeClass::UpstreamError,
        };
        let observer = ctx.observer.take().unwrap_or(Observer::settled(none));
        let now = self.plane.router.now();
        let class = observer.finish(ticket, end, now);
        self.plane.observe(decision, class, now);
    }
}
