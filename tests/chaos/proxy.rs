//! The proxy that the integration tests use too.

#[path = "../support/proxy/mod.rs"]
mod shared;

pub(crate) use shared::*;
