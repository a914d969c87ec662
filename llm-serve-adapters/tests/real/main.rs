//! Adapters against the real components. Each test starts and stops its component itself, on loopback ports that are free, in a
//! folder of its own; since the component must be installed, they are ignored unless asked for. `e2e/run NAME` installs what
//! is missing and asks for the tests of the module `NAME`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests, whose figures the runner prints"
)]

mod alertmanager;
mod canary;
mod edge;
mod envoy;
mod etcd;
mod evals;
mod gpu;
mod haproxy;
mod llama;
mod made_up;
mod mlflow;
mod otlp;
mod postgres;
mod process;
mod prometheus;
mod proxies;
mod registry;
mod s3;
mod sqlite;
mod stack;
mod torchserve;
mod triton;
mod vllm;
mod webhook;

/// Tells the runner that this adapter has met this component, for the table of adapters.
fn verified(adapter: &str, component: &str, version: &str) {
    println!("VERIFIED {adapter} {component} {version}");
}
