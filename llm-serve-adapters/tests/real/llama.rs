//! Real models on real engines: what the adapters say of them, and rollouts of which nobody or everybody should hear.

mod adapters;
mod backend;
mod broken;
mod drain;
mod killed;
mod rollouts;
