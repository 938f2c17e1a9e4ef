//! The timeline of a start.
