//! The kubelet's HTTP API: logs, exec, attach, port-forward, statistics.
