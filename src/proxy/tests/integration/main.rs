//! The proxy against the tracer, against the kernel's rules, and with real packets.

mod kernel;
mod lab;
mod objects;
mod properties;
mod traffic;
