//! The agent's outbound connection over which servers reach it.
