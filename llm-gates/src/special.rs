//! Special functions: accurate in both tails, in logs, total on their domains, and bounded in time whatever the counts.
//!
//! Tails of the beta and gamma distributions are integrals of a log-concave function over the logit or the log; a composite Gauss-Legendre rule does
//! them in about 130 evaluations to some 1e-12 relative, at 3 counts as at 10^9. The usual continued fractions need a number of steps that grows with the counts,
//! and their prefactors cancel.

pub mod beta;
pub mod binomial;
pub mod gamma;
pub mod normal;
pub mod student;

mod quadrature;
