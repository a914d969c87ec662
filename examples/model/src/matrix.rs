//! Matrix products over plain `f32` slices.
//!
//! Every element is summed in the order of the inner dimension, one product
//! after the other, however the rows are grouped: a token gets the same bits
//! whether it is computed alone or in a batch, on every machine.

/// Columns that are computed together, one accumulator each.
const PANEL: usize = 32;

/// A weight matrix of `inputs` x `outputs`, stored in panels of columns.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    inputs: usize,
    outputs: usize,
    panels: Vec<[f32; PANEL]>,
}

impl Matrix {
    /// From values stored input by input.
    pub(super) fn new(inputs: usize, outputs: usize, values: &[f32]) -> Self {
        Self::from_fn(inputs, outputs, |input, output| {
            values.get(input * outputs + output).copied()
        })
    }

    /// From values stored output by output.
    pub(super) fn transposed(inputs: usize, outputs: usize, values: &[f32]) -> Self {
        Self::from_fn(inputs, outputs, |input, output| {
            values.get(output * inputs + input).copied()
        })
    }

    fn from_fn(inputs: usize, outputs: usize, value: impl Fn(usize, usize) -> Option<f32>) -> Self {
        let mut panels = Vec::with_capacity(outputs.div_ceil(PANEL) * inputs);
        for first in (0..outputs).step_by(PANEL) {
            for input in 0..inputs {
                let mut row = [0.0; PANEL];
                for (output, slot) in (first..outputs).zip(&mut row) {
                    *slot = value(input, output).unwrap_or(0.0);
                }
                panels.push(row);
            }
        }
        Self {
            inputs,
            outputs,
            panels,
        }
    }

    /// `out = rows * self`, for rows of `inputs` values.
    pub(super) fn apply(&self, rows: &[f32], out: &mut Vec<f32>) {
        let count = rows.len() / self.inputs;
        out.clear();
        out.resize(count * self.outputs, 0.0);
        for (index, panel) in self.panels.chunks_exact(self.inputs).enumerate() {
            // the panel stays in the nearest cache for all rows
            for (row, out) in rows
                .chunks_exact(self.inputs)
                .zip(out.chunks_exact_mut(self.outputs))
            {
                if let Some(out) = out.chunks_mut(PANEL).nth(index) {
                    store(out, &sums(panel, row));
                }
            }
        }
    }
}

fn store(out: &mut [f32], sums: &[f32; PANEL]) {
    for (slot, sum) in out.iter_mut().zip(sums) {
        *slot = *sum;
    }
}

fn sums(panel: &[[f32; PANEL]], row: &[f32]) -> [f32; PANEL] {
    let mut sums = [0.0; PANEL];
    for (weights, x) in panel.iter().zip(row) {
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += x * weight;
        }
    }
    sums
}

/// The inner product, in eight interleaved sums.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `out += scale * row`.
pub(super) fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
    for (slot, value) in out.iter_mut().zip(row) {
        *slot += scale * value;
    }
}

#[cfg(test)]
mod tests {
    use super::{Matrix, dot};

    #[test]
    fn agrees_with_the_definition_and_with_itself_in_any_grouping() {
        let (inputs, outputs) = (5, 45);
        let values: Vec<f32> = (0..inputs * outputs)
            .map(|n| (n % 7) as f32 - 2.5)
            .collect();
        let rows: Vec<f32> = (0..3 * inputs).map(|n| n as f32 * 0.25).collect();
        let matrix = Matrix::new(inputs, outputs, &values);
        let mut all = Vec::new();
        matrix.apply(&rows, &mut all);
        for row in 0..3 {
            let mut alone = Vec::new();
            matrix.apply(&rows[row * inputs..][..inputs], &mut alone);
            assert_eq!(alone, all[row * outputs..][..outputs]);
            for output in 0..outputs {
                let want: f32 = (0..inputs)
                    .map(|i| rows[row * inputs + i] * values[i * outputs + output])
                    .sum();
                assert!((want - alone[output]).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn dot_takes_the_rest_along() {
        let a: Vec<f32> = (0..11).map(|n| n as f32).collect();
        assert!((dot(&a, &a) - 385.0).abs() < 1e-3);
    }
}
