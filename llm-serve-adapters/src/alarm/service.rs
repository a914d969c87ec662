//! The webhook before an endpoint, as a tower service.

use super::{AlarmWebhook, Delivered};
use crate::endpoint::{CommandError, Endpoint};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tower_service::Service;

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

type Confirm = Arc<dyn Fn(String) + Send + Sync>;

/// Puts alarms before an endpoint. For axum: `Router::new().route_service("/alarms", AlarmService::new(webhook, &endpoint))`.
///
/// | answer | means |
/// |---|---|
/// | 204 | every alarm is logged, or has nothing to act on; also what came before |
/// | 202 | SNS asks for a confirmation, and somebody was told ([`confirm`](Self::confirm)) |
/// | 400, 401, 413 | refused: see [`Refused`](super::Refused) |
/// | 408, 503 | the body did not arrive, or the alarm could not be logged: senders try again |
///
/// It runs on a tokio runtime. Let nobody but the senders reach it: the check of the sender is not a rate limit.
#[derive(Clone)]
pub struct AlarmService {
    webhook: Arc<AlarmWebhook>,
    endpoint: Endpoint,
    confirm: Option<Confirm>,
}

impl AlarmService {
    /// Alarms of this webhook go to this endpoint.
    pub fn new(webhook: AlarmWebhook, endpoint: &Endpoint) -> Self {
        Self {
            webhook: Arc::new(webhook),
            endpoint: endpoint.clone(),
            confirm: None,
        }
    }

    /// Told of the address by whose visit a subscription of SNS is confirmed, checked to be one of SNS. It must not block.
    #[must_use]
    pub fn confirm(mut self, tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.confirm = Some(Arc::new(tell));
        self
    }

    async fn answer<B: Body<Data = Bytes>>(&self, headers: HeaderMap, body: B) -> (u16, String) {
        let read = tokio::time::timeout(PATIENCE, collect(body, self.webhook.largest())).await;
        let body = match read {
            Ok(Some(body)) => body,
            Ok(None) => return (400, "the body broke off".to_owned()),
            Err(_) => return (408, "the body did not arrive".to_owned()),
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let delivery = match self.webhook.receive(header, &body, SystemTime::now()) {
            Ok(Delivered::Alarms(delivery)) => delivery,
            Ok(Delivered::Confirm { url }) => {
                return match &self.confirm {
                    Some(confirm) => {
                        confirm(url);
                        (202, String::new())
                    }
                    None => (403, "nobody here confirms subscriptions".to_owned()),
                };
            }
            Err(refused) => return (refused.status(), refused.to_string()),
        };
        for alarm in &delivery.alarms {
            let told = self.endpoint.alarm(&alarm.name, &alarm.detail).await;
            if let Err(e @ (CommandError::StoreUnavailable | CommandError::Stopped(_))) = told {
                self.webhook.failed(delivery);
                return (503, e.to_string());
            }
            // Without a rollout that it could act on, an alarm does nothing.
        }
        (204, String::new())
    }
}

/// The whole body, or as much of it as shows that it is too large; none if it breaks off.
async fn collect<B: Body<Data = Bytes>>(body: B, largest: usize) -> Option<Vec<u8>> {
    let mut body = pin!(body);
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            let room = (largest + 1).saturating_sub(whole.len());
            whole.extend_from_slice(data.get(..room).unwrap_or(&data));
            if whole.len() > largest {
                break;
            }
        }
    }
    Some(whole)
}

impl fmt::Debug for AlarmService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlarmService")
            .field("webhook", &self.webhook)
            .field("endpoint", self.endpoint.id())
            .finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for AlarmService
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let (status, text) = this.answer(parts.headers, body).await;
            let mut response = Response::new(text);
            let status = StatusCode::from_u16(status);
            *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(response)
        })
    }
}
