//! The runtime on a real containerd and runc. Needs root, containerd, runc, busybox-static, and for one
//! test docker-registry and skopeo.

mod images;
mod lab;
mod life;
mod restart;
mod streams;
