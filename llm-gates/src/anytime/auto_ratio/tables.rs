//! What does not depend on data, computed once in a process.

use std::sync::LazyLock;

use super::{LEVELS, NODES, PHI, RATIOS, S, SPREADS, ln_weight, node, stationary, transition};
use crate::Grid;

/// One ratio and one spread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Points {
    /// Index of the spread, 0 for none.
    pub(super) spread: usize,
    /// ln of the ratio with the noise of each node, relative to theta0, and its exponential.
    pub(super) nodes: [(f64, f64); NODES],
}

#[derive(Debug)]
pub(super) struct Tables {
    /// Ratios, then spreads: theta0 itself first.
    pub(super) points: [Points; RATIOS * SPREADS],
    /// ln of the weights of the ratios above theta0.
    pub(super) ln_ratio_weights: [f64; RATIOS - 1],
    /// The same with less weight at both ends, which pays for what learning noise takes from the budget.
    pub(super) ln_tilted_weights: [f64; RATIOS - 1],
    /// ln of the prior weights of the noise levels.
    pub(super) ln_weights: [f64; LEVELS],
    pub(super) stationary: [f64; NODES],
    /// Where the noise goes in one block, per correlation, from node to node.
    pub(super) transitions: [[[f64; NODES]; NODES]; PHI.len()],
}

pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let grid = Grid::Rr7;
    let ratios = grid.alternatives();
    let theta = |j: usize| if j == 0 { 1.0 } else { ratios[j - 1].theta };
    Tables {
        points: std::array::from_fn(|i| {
            let (j, spread) = (i / SPREADS, i % SPREADS);
            let s = if spread == 0 { 0.0 } else { S[spread - 1] };
            let point = |n: usize| {
                let x = libm::log(theta(j)) + s * node(n);
                (x, if spread == 0 { theta(j) } else { libm::exp(x) })
            };
            Points {
                spread,
                nodes: std::array::from_fn(point),
            }
        }),
        ln_ratio_weights: std::array::from_fn(|j| libm::log(ratios[j].weight)),
        ln_tilted_weights: [0.03, 0.345, 0.305, 0.16, 0.10, 0.05, 0.01].map(libm::log),
        ln_weights: std::array::from_fn(ln_weight),
        stationary: stationary(),
        transitions: std::array::from_fn(|phi| std::array::from_fn(|i| transition(PHI[phi], i))),
    }
});
