//! What the numbers say: gates, verdicts and sequential tests with a false-alarm bound
#![deny(missing_docs)]
