use super::*;
use crate::backend::{ChatRequest, Golden, OtherModel};
use crate::host::ErrorKind;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use llm_rollout::{Fence, Seq};
use serde_json::{Value, json};
use std::sync::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;

fn version(digit: char) -> VersionId {
    format!("chat/v1.0.0-{}", digit.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn at(fence: u64, seq: u64) -> Position {
    Position {
        fence: Fence::new(fence),
        seq: Seq::new(seq),
    }
}

/// A server that lists "chat-v2" and does this for each completion.
async fn server<F>(complete: F) -> String
where
    F: Fn(Value) -> Response + Clone + Send + Sync + 'static,
{
    let app = Router::new()
        .route(
            "/v1/models",
            get(async || {
                Json(json!({"object": "list", "data": [{"id": "other"}, {"id": "chat-v2"}]}))
            }),
        )
        .route(
            "/v1/chat/completions",
            post(async move |Json(request): Json<Value>| complete(request)),
        );
    serve(app).await
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn says(text: &str) -> Response {
    Json(json!({
        "id": "x", "object": "chat.completion", "model": "chat-v2",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    }))
    .into_response()
}

fn backend(address: &str) -> OpenAiBackend {
    let upstream = Upstream::new(address, "chat-v2");
    OpenAiBackend::builder()
        .upstream(version('2'), upstream)
        .deadline(Duration::from_secs(5))
        .build()
        .unwrap()
}

async fn refusal(address: &str, kind: ErrorKind, parts: &[&str]) {
    let backend = backend(address);
    let error = backend.prepare(&version('2'), at(1, 1)).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "{part:?} is not in: {error}"
        );
    }
    assert!(!backend.is_ready(&version('2')));
}

#[tokio::test]
async fn prepares_by_real_generations() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let address = server(move |request| {
        seen.lock().unwrap().push(request);
        says("Hello")
    })
    .await;
    for base in [
        address.clone(),
        format!("{address}/"),
        format!("{address}/v1"),
        format!("{address}/v1/"),
    ] {
        let backend = backend(&base);
        backend.prepare(&version('2'), at(1, 1)).await.unwrap();
        assert!(backend.is_ready(&version('2')));
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4 * 3);
    let wanted = json!({
        "model": "chat-v2", "stream": false, "max_tokens": 16,
        "messages": [{"role": "user", "content": "Say hello."}]
    });
    assert_eq!(asked[0], wanted);
}

#[tokio::test]
async fn a_model_that_is_not_there_is_permanent() {
    let address = serve(Router::new().route(
        "/v1/models",
        get(async || Json(json!({"data": [{"id": "v1"}]}))),
    ))
    .await;
    refusal(
        &address,
        ErrorKind::Permanent,
        &["does not list", "chat-v2", "\"v1\"", "load it there"],
    )
    .await;
    let missing =
        json!({"object": "error", "message": "The model `chat-v2` does not exist.", "code": 404});
    let address =
        server(move |_| (StatusCode::NOT_FOUND, Json(missing.clone())).into_response()).await;
    refusal(
        &address,
        ErrorKind::Permanent,
        &["404", "does not exist", "load the model"],
    )
    .await;
    let address = serve(Router::new()).await;
    refusal(&address, ErrorKind::Permanent, &["404", "the address"]).await;
}

#[tokio::test]
async fn what_may_pass_is_transient() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let stuck = OpenAiBackend::builder()
        .upstream(version('2'), Upstream::new(&address, "chat-v2"))
        .deadline(Duration::from_millis(100))
        .build()
        .unwrap();
    let error = stuck.prepare(&version('2'), at(1, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(
        error.to_string().contains("did not answer within"),
        "{error}"
    );
    drop(listener);
    refusal(
        &address,
        ErrorKind::Transient,
        &["cannot be reached", &address],
    )
    .await;
    for status in [408, 429, 500, 502, 503, 504] {
        let status = StatusCode::from_u16(status).unwrap();
        let address = server(move |_| {
            (status, "{\"error\":{\"message\":\"Loading model\"}}").into_response()
        })
        .await;
        refusal(
            &address,
            ErrorKind::Transient,
            &[status.as_str(), "Loading model"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_in_a_reply_is_transient() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _read = socket.read(&mut request).await;
            let _written = socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"data\":[")
                .await;
        }
    });
    refusal(&address, ErrorKind::Transient, &["broke"]).await;
}

#[tokio::test]
async fn what_is_no_openai_server_is_permanent() {
    for (reply, part) in [
        (
            "<html>Welcome to the proxy</html>",
            "is not a chat completion",
        ),
        ("{\"choices\": 7}", "is not a chat completion"),
        ("{\"choices\": []}", "without a choice"),
        ("{}", "without a choice"),
        ("", "is not a chat completion"),
        (
            "{\"error\": {\"message\": \"bad template\", \"code\": null}}",
            "bad template",
        ),
    ] {
        let address = server(move |_| reply.into_response()).await;
        refusal(&address, ErrorKind::Permanent, &[part]).await;
    }
    let address = server(move |_| {
        Json(json!({"error": {"message": "engine died", "code": 500}})).into_response()
    })
    .await;
    refusal(
        &address,
        ErrorKind::Transient,
        &["answers 200 with an error", "engine died"],
    )
    .await;
    let address = server(|_| "x".repeat(9 << 20).into_response()).await;
    refusal(&address, ErrorKind::Permanent, &["more than"]).await;
}

#[tokio::test]
async fn another_model_is_noticed_unless_it_is_meant() {
    let other = || says("Hi");
    let address = server(move |_| other()).await;
    let asks = |upstream| {
        OpenAiBackend::builder()
            .upstream(version('2'), upstream)
            .build()
            .unwrap()
    };
    let error = asks(Upstream::new(&address, "other"))
        .prepare(&version('2'), at(1, 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(
        error.to_string().contains("answers as \"chat-v2\""),
        "{error}"
    );
    asks(Upstream::new(&address, "other").answers_as("chat-v2"))
        .prepare(&version('2'), at(1, 1))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_silent_model_is_permanent_and_one_silence_is_not() {
    let address = server(|_| says(" \n")).await;
    refusal(
        &address,
        ErrorKind::Permanent,
        &["with nothing", "chat template"],
    )
    .await;
    let address = server(|request| {
        says(if request.to_string().contains("hello") {
            ""
        } else {
            "4"
        })
    })
    .await;
    backend(&address)
        .prepare(&version('2'), at(1, 1))
        .await
        .unwrap();
    let thinks =
        json!({"choices": [{"message": {"content": null, "reasoning_content": "Let me"}}]});
    let address = server(move |_| Json(thinks.clone()).into_response()).await;
    backend(&address)
        .prepare(&version('2'), at(1, 1))
        .await
        .unwrap();
}

#[tokio::test]
async fn keys_are_sent_and_shown_nowhere() {
    let app = Router::new().fallback(async |headers: HeaderMap| {
        let key = headers
            .get("authorization")
            .map_or("none", |v| v.to_str().unwrap())
            .to_owned();
        (
            StatusCode::UNAUTHORIZED,
            Json(json!({"error": {"message": format!("not good: {key}")}})),
        )
    });
    let upstream = Upstream::new(serve(app).await, "chat-v2").api_key("sk-SECRET");
    let shown = format!("{upstream:?}");
    let backend = OpenAiBackend::builder()
        .upstream(version('2'), upstream)
        .build()
        .unwrap();
    let error = backend.prepare(&version('2'), at(1, 1)).await.unwrap_err();
    assert!(
        error.to_string().contains("not good: Bearer ..."),
        "{error}"
    );
    assert!(error.to_string().contains("check the key"), "{error}");
    let all = format!(
        "{shown}{backend:?}{error:?}{:?}",
        backend.client(&version('2'))
    );
    assert!(!all.contains("SECRET"), "{all}");
    assert!(ChatClient::new(&Upstream::new("http://localhost", "m").api_key("a\nb")).is_err());
}

#[tokio::test]
async fn older_loads_and_retirements_are_refused() {
    let address = server(|_| says("Hello")).await;
    let (backend, v) = (backend(&address), version('2'));
    backend.prepare(&v, at(2, 5)).await.unwrap();
    for old in [at(2, 4), at(1, 9)] {
        for error in [
            backend.retire(&v, old).await.unwrap_err(),
            backend.prepare(&v, old).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Permanent);
            assert!(
                error.to_string().contains("fence 2 step 5 came later"),
                "{error}"
            );
        }
    }
    assert!(backend.is_ready(&v), "what is refused has no effect");
    backend.retire(&v, at(2, 6)).await.unwrap();
    backend.retire(&v, at(2, 6)).await.unwrap();
    assert!(!backend.is_ready(&v));
    assert!(backend.prepare(&v, at(2, 5)).await.is_err());
    backend.prepare(&v, at(3, 0)).await.unwrap();
    assert!(backend.is_ready(&v));
    backend.retire(&version('9'), at(1, 1)).await.unwrap();
    let unknown = backend.prepare(&version('9'), at(1, 1)).await.unwrap_err();
    assert!(unknown.to_string().contains("no place to run"), "{unknown}");
}

#[tokio::test]
async fn a_retirement_during_the_warm_up_wins() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (in_server, wait) = (Arc::clone(&begun), Arc::clone(&go));
    let app = Router::new()
        .route(
            "/v1/models",
            get(async || Json(json!({"data": [{"id": "chat-v2"}]}))),
        )
        .route(
            "/v1/chat/completions",
            post(async move || {
                in_server.notify_one();
                wait.notified().await;
                wait.notify_one();
                says("Hello")
            }),
        );
    let backend = Arc::new(backend(&serve(app).await));
    let (other, v) = (Arc::clone(&backend), version('2'));
    let loading = tokio::spawn(async move { other.prepare(&version('2'), at(1, 1)).await });
    begun.notified().await;
    backend.retire(&v, at(1, 2)).await.unwrap();
    go.notify_one();
    assert_eq!(
        loading.await.unwrap().unwrap_err().kind(),
        ErrorKind::Permanent
    );
    assert!(!backend.is_ready(&v));
}

#[tokio::test]
async fn counts_only_what_the_host_counts() {
    let plain = OpenAiBackend::builder().build().unwrap();
    assert_eq!(plain.in_flight(&version('2')).await.unwrap(), None);
    let counts = OpenAiBackend::builder()
        .in_flight(|v| (*v == version('2')).then_some(3))
        .build()
        .unwrap();
    assert_eq!(counts.in_flight(&version('2')).await.unwrap(), Some(3));
    assert_eq!(counts.in_flight(&version('1')).await.unwrap(), None);
}

#[test]
fn what_cannot_work_is_refused_when_it_is_built() {
    let upstream = |u| OpenAiBackend::builder().upstream(version('2'), u).build();
    for bad in [
        "",
        "localhost:8000",
        "ftp://x",
        "http://u:secret@host/",
        "http://host/v1?key=secret",
    ] {
        let error = upstream(Upstream::new(bad, "m")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{bad}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(upstream(Upstream::new("http://host", "")).is_err());
    assert!(
        OpenAiBackend::builder()
            .warm_up(Vec::<String>::new())
            .build()
            .is_err()
    );
    assert!(OpenAiBackend::builder().warm_up_tokens(0).build().is_err());
    let backend = upstream(Upstream::new("http://host", "m")).unwrap();
    backend
        .add(version('2'), &Upstream::new("http://host", "m"))
        .unwrap();
    assert!(
        backend
            .add(version('2'), &Upstream::new("http://host", "n"))
            .is_err()
    );
}

#[tokio::test]
async fn a_completion_tells_what_the_server_told() {
    let address = server(|_| says("Paris")).await;
    let client = backend(&address).client(&version('2')).unwrap();
    let request = ChatRequest::new("Capital of France?")
        .before(super::super::Role::System, "One word.")
        .seed(7);
    let reply = client
        .complete(&request, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(reply.text, "Paris");
    assert_eq!(
        (reply.prompt_tokens, reply.completion_tokens),
        (Some(5), Some(2))
    );
    assert_eq!(
        (reply.finish.as_deref(), reply.model.as_deref()),
        (Some("stop"), Some("chat-v2"))
    );
    let shown = format!("{request:?} {reply:?}");
    assert!(
        !shown.contains("Paris") && !shown.contains("France"),
        "{shown}"
    );
}

#[tokio::test]
async fn another_model_under_the_right_name_is_told_by_its_golden_generation() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let address = server(move |request| {
        seen.lock().unwrap().push(request);
        says(" 1. Red\n2. Blue ")
    })
    .await;
    let prepare = async |golden: Golden| {
        let upstream = Upstream::new(&address, "chat-v2").golden(golden);
        let backend = OpenAiBackend::builder().upstream(version('2'), upstream);
        let backend = backend.build().unwrap();
        backend.prepare(&version('2'), at(1, 1)).await
    };
    let golden = Golden::new("Name colors.", "1. Red\n2. Blue").max_tokens(12);
    prepare(golden.clone().system("Be brief.")).await.unwrap();
    let wanted = json!({
        "model": "chat-v2", "stream": false, "max_tokens": 12, "temperature": 0.0, "seed": 1,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name colors."}]
    });
    assert_eq!(asked.lock().unwrap().first(), Some(&wanted));
    prepare(Golden::new("Name colors.", "Red").or("1. Red\n2. Blue"))
        .await
        .unwrap();
    let error = prepare(Golden::new("Name colors.", "Red"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    let source = std::error::Error::source(&error).unwrap();
    let other: &OtherModel = source.downcast_ref().unwrap();
    assert_eq!(
        (other.expected.as_str(), other.said.as_str()),
        ("Red", "1. Red 2. Blue")
    );
    assert_eq!(other.version, version('2'));
    assert!(error.to_string().contains("is not what runs"), "{error}");
}

#[tokio::test]
async fn a_golden_generation_is_recorded_where_the_answer_is_always_the_same() {
    let address = server(|_| says("Paris")).await;
    let within = Duration::from_secs(5);
    let client = ChatClient::new(&Upstream::new(&address, "chat-v2")).unwrap();
    let golden = Golden::record(&client, "Capital of France?", 4, within)
        .await
        .unwrap();
    assert_eq!(
        golden,
        Golden::new("Capital of France?", "Paris").max_tokens(4)
    );
    let kept = serde_json::to_string(&golden).unwrap();
    assert_eq!(serde_json::from_str::<Golden>(&kept).unwrap(), golden);
    let count = Arc::new(Mutex::new(0));
    let address = server(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        says(&count.to_string())
    })
    .await;
    let client = ChatClient::new(&Upstream::new(&address, "chat-v2")).unwrap();
    let error = Golden::record(&client, "Count.", 4, within)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("take another prompt"), "{error}");
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn it_conforms() {
    let address = server(|_| says("Hello")).await;
    let (known, unknown) = (version('2'), version('9'));
    let within = Duration::from_secs(60);
    crate::testing::backend::suite(&backend(&address), &known, &unknown, within)
        .await
        .unwrap();
}
