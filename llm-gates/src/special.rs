//! Special functions: accurate in both tails, in logs, and total on their domains.

pub mod normal;
