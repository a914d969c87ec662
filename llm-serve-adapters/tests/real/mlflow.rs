//! The models of a real MLflow, and an alias that follows what is in force.

use crate::made_up::{Users, plan, version};
use crate::process::{Process, free_port, ready, until, version_of};
use crate::stack::env;
use llm_rollout::{EndpointId, Phase, RolloutId};
use llm_serve_adapters::host::{ErrorKind, StateStore};
use llm_serve_adapters::registry::{MlflowAlias, MlflowCode, MlflowError, MlflowModel};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, Run};
use std::sync::Arc;
use std::time::Instant;

/// Its address, and what keeps it running.
async fn start() -> (String, Process, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let number = port.to_string();
    let store = format!("sqlite:///{}/mlflow.db", folder.path().display());
    let mut args = vec!["server", "--host", "127.0.0.1", "--port", &number];
    args.extend(["--workers", "1", "--backend-store-uri", &store]);
    args.extend(["--artifacts-destination", "artifacts"]);
    let process = Process::start_family(folder.path(), &env("LLM_E2E_MLFLOW"), &args);
    ready(port, "/health").await;
    (format!("http://127.0.0.1:{port}"), process, folder)
}

fn id(name: &str) -> RolloutId {
    RolloutId::new(name).unwrap()
}

/// Waits for the alias to mean this version.
async fn means(model: &MlflowModel, major: u8) -> f64 {
    let began = Instant::now();
    until("the alias to follow", async || {
        let found = model.aliased("production").await.unwrap();
        (found == Some(version(major))).then_some(())
    })
    .await;
    began.elapsed().as_secs_f64()
}

async fn phase(run: &Run, wanted: Phase) {
    until(&format!("{wanted}"), async || {
        (run.rollout()?.state().phase == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs MLflow: e2e/run mlflow"]
async fn the_alias_follows_promotion_and_rollback() {
    let (address, _server, _folder) = start().await;
    let model = MlflowModel::open(&address, "chat").unwrap();
    assert_eq!(model.aliased("production").await.unwrap(), None);
    for major in 1..=4 {
        let number = model
            .register(&version(major), "oci://registry.example/models/chat")
            .await
            .unwrap();
        assert_eq!(number, major.to_string());
        assert_eq!(
            model
                .register(&version(major), "oci://registry.example/models/chat")
                .await
                .unwrap(),
            number
        );
    }
    let error = model
        .set_alias("production", &version(9))
        .await
        .unwrap_err();
    assert!(matches!(error, MlflowError::Unregistered { .. }), "{error}");
    let error = model
        .register(&version(9), "file:///tmp/x")
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            MlflowError::Refused {
                code: MlflowCode::InvalidParameterValue,
                ..
            }
        ) && error.kind() == ErrorKind::Permanent,
        "{error}"
    );
    println!("ok      {error}");

    let store = MemoryStore::new();
    let follows = || {
        let store: Arc<dyn StateStore> = Arc::new(store.clone());
        MlflowAlias::new(model.clone(), "production", store)
    };
    let endpoint = Endpoint::builder("chat", store.clone(), Bootstrap(version(1)));
    let endpoint = endpoint.notifier(follows()).open().await.unwrap();
    follows()
        .sync(&EndpointId::new("chat").unwrap())
        .await
        .unwrap();
    let users = Users::begin(&endpoint);

    let run = endpoint
        .submit(id("good"), version(2), plan("3s", "1s"))
        .await
        .unwrap();
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
    let promoted = means(&model, 2).await;

    users.broken(3);
    let run = endpoint
        .submit(id("bad"), version(3), plan("3s", "1s"))
        .await
        .unwrap();
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    let left = means(&model, 2).await;
    users.broken(0);

    let run = endpoint
        .submit(id("regretted"), version(4), plan("3s", "10m"))
        .await
        .unwrap();
    phase(&run, Phase::Baking).await;
    means(&model, 4).await;
    run.abort("ana", "users complain").await.unwrap();
    let returned = means(&model, 2).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    users.finish().await;
    println!(
        "ok      scenario 12: promoted, the alias follows in {promoted:.1} s; rolled back, it stays ({left:.1} s); \
         back from a promotion, it returns in {returned:.1} s"
    );
    crate::verified(
        "mlflow",
        "MLflow",
        &version_of(env("LLM_E2E_MLFLOW"), "--version"),
    );
}
