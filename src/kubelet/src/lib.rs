//! Pods on a node: life cycle, probes, volumes, status, logs and streams.
