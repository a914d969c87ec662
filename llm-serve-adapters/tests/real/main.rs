//! Adapters against the real components. Each test starts and stops its component itself, on loopback ports that are free, in a
//! folder of its own; since the component must be installed, they are ignored unless asked for. `e2e/run NAME` installs what
//! is missing and asks for them.
#![cfg_attr(
    all(
        feature = "alertmanager",
        feature = "haproxy",
        feature = "postgres",
        feature = "prometheus"
    ),
    expect(
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout,
        clippy::unwrap_used,
        reason = "tests, whose figures the runner prints"
    )
)]

#[cfg(feature = "alertmanager")]
mod alertmanager;
#[cfg(all(unix, feature = "haproxy"))]
mod haproxy;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
#[cfg(feature = "prometheus")]
mod prometheus;
