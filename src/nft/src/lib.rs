//! An nftables ruleset model, a packet tracer for tests, one-transaction writes.
