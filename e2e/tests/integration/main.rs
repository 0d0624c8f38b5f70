//! What a user does with skiff, on real nodes. One module per scenario.

mod up;
