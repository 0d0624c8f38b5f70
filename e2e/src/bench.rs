//! Figures from /proc.
