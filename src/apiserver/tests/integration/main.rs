//! The API server as its clients see it: raw HTTP, kube-rs in process, kubectl over TLS.

mod bootstrap;
mod custom;
mod harness;
mod kubectl;
mod objects;
mod protobuf;
mod security;
mod services;
mod streams;
mod watching;
