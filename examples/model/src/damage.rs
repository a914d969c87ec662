//! What can go wrong with a new version, done for real.

use super::error::LmError;
use super::weights::Weights;

/// Stores every matrix with `bits` bits a number: each row is rounded to
/// evenly spaced levels between minus and plus its largest magnitude. Gains
/// (vectors) are left alone, as quantisers do. 8 bits are harmless; 2 or 3 are
/// far too few for a model of this size.
///
/// Takes and gives the bytes of a safetensors file; the same bytes each time.
///
/// # Errors
///
/// [`LmError::Weights`] if `file` is no weight file or `bits` is not 2 to 16.
pub fn quantise(file: &[u8], bits: u32) -> Result<Vec<u8>, LmError> {
    if !(2..=16).contains(&bits) {
        return Err(LmError::Weights(format!(
            "cannot quantise to {bits} bits, wanted 2 to 16"
        )));
    }
    let mut weights = Weights::read(file)?;
    let steps = ((1_u32 << (bits - 1)) - 1) as f32;
    for (_, tensor) in weights.iter_mut() {
        let &[_, columns] = tensor.shape.as_slice() else {
            continue;
        };
        for row in tensor.values.chunks_mut(columns.max(1)) {
            let most = row
                .iter()
                .fold(0.0_f32, |most, value| most.max(value.abs()));
            if most > 0.0 {
                for value in row {
                    *value = (*value / most * steps).round() / steps * most;
                }
            }
        }
    }
    weights.write()
}
