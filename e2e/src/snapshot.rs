//! Comparing a machine before and after.
