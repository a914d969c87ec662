//! Adapters against the real components. Each test starts and stops its component itself, on loopback ports that are free, in a
//! folder of its own; since the component must be installed, they are ignored unless asked for. `e2e/run NAME` installs what
//! is missing and asks for them.

#[cfg(feature = "alertmanager")]
mod alertmanager;
mod process;
#[cfg(feature = "prometheus")]
mod prometheus;
