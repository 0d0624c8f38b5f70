//! One module per control loop.
