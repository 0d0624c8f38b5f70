//! Revisioned key-value state: memory for reads, a durable backend for writes, watch.
